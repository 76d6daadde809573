"""Say what a job will need, and everything that is wrong with it, before any weight is read.

`checkpoints` and `structures` know models from configs and safetensors headers alone, `known` what
every job has; `training` is the plan of `lens.train`, `probing` that of `lens.probe`. Importing
this package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.planning.checkpoints import Checkpoint as Checkpoint
    from lens.planning.checkpoints import read_checkpoint as read_checkpoint
    from lens.planning.memory import Phase as Phase
    from lens.planning.plans import Plan as Plan
    from lens.planning.plans import Problem as Problem
    from lens.planning.probing import plan_probing as plan_probing
    from lens.planning.rates import Rates as Rates
    from lens.planning.structures import Structure as Structure
    from lens.planning.training import plan_training as plan_training

_NAMES = {
    "Checkpoint": "checkpoints",
    "Phase": "memory",
    "Problem": "plans",
    "Rates": "rates",
    "Structure": "structures",
    "Plan": "plans",
    "plan_probing": "probing",
    "plan_training": "training",
    "read_checkpoint": "checkpoints",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public name the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.planning' has no attribute '{name}'")
    return getattr(import_module(f"lens.planning.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return list(__all__)
