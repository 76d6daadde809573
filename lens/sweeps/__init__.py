"""Scripted ablations: a grid of settings, run from shared caches, resumable, in one table."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.sweeps.ablation import Line as Line
    from lens.sweeps.ablation import ablate as ablate
    from lens.sweeps.ablation import table as table
    from lens.sweeps.config import Sweep as Sweep
    from lens.sweeps.config import read_sweep as read_sweep

_NAMES = {
    "Line": "ablation",
    "Sweep": "config",
    "ablate": "ablation",
    "read_sweep": "config",
    "table": "ablation",
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
