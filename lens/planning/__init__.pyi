from .cost import Rates as Rates
from .memory import Phase as Phase
from .model import Structure as Structure
from .plan import plan_probing as plan_probing
from .plan import plan_training as plan_training
from .results import Plan as Plan
from .results import Problem as Problem
