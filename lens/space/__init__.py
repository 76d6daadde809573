"""The language space: statistics of a model's states per site and language, and what they give."""

from lens.space.about import About, Shard
from lens.space.sources import States, as_states, read_bases, read_states
from lens.space.space import Space
from lens.space.states import States as KeptStates

__all__ = [
    "About",
    "KeptStates",
    "Shard",
    "Space",
    "States",
    "as_states",
    "read_bases",
    "read_states",
]
