from .checks import Problem as Problem
from .model import Structure as Structure
from .plan import Plan as Plan
from .plan import plan_probing as plan_probing
from .plan import plan_training as plan_training
from .resources import Phase as Phase
from .resources import Rates as Rates
