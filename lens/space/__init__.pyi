from .importers import ImportedStates as ImportedStates
from .importers import as_states as as_states
from .importers import read_states as read_states
from .provenance import Provenance as Provenance
from .provenance import SpaceShard as SpaceShard
from .space import Space as Space
from .state_store import StateStore as StateStore
