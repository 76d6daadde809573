"""Scripted ablations and tuning: many settings, run from shared caches, resumable."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.sweeps.ablation import ablate as ablate
    from lens.sweeps.config import Sweep as Sweep
    from lens.sweeps.config import read_sweep as read_sweep
    from lens.sweeps.summary import Line as Line
    from lens.sweeps.summary import table as table
    from lens.sweeps.summary import tables as tables
    from lens.sweeps.tuning import Tuning as Tuning
    from lens.sweeps.tuning import read_tuning as read_tuning
    from lens.sweeps.tuning import tune as tune

_NAMES = {
    "Line": "summary",
    "Sweep": "config",
    "Tuning": "tuning",
    "ablate": "ablation",
    "read_sweep": "config",
    "read_tuning": "tuning",
    "table": "summary",
    "tables": "summary",
    "tune": "tuning",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public function the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.sweeps' has no attribute '{name}'")
    return getattr(import_module(f"lens.sweeps.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return __all__
