"""Scripted ablations and tuning: many settings, run from shared caches, resumable."""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.sweeps.ablation import ablate as ablate
    from lens.sweeps.config import Sweep as Sweep
    from lens.sweeps.config import read_sweep as read_sweep
    from lens.sweeps.summary import Line as Line
    from lens.sweeps.summary import table as table
    from lens.sweeps.summary import tables as tables
    from lens.sweeps.tuning import TuneResult as TuneResult
    from lens.sweeps.tuning import Tuning as Tuning
    from lens.sweeps.tuning import read_tuning as read_tuning
    from lens.sweeps.tuning import tune as tune

_NAMES = {
    "Line": "summary",
    "Sweep": "config",
    "TuneResult": "tuning",
    "Tuning": "tuning",
    "ablate": "ablation",
    "read_sweep": "config",
    "read_tuning": "tuning",
    "table": "summary",
    "tables": "summary",
    "tune": "tuning",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
