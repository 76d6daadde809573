"""Language subspace manipulation: train a model to answer in the language it is asked in.

Importing this package does not import torch: every name is loaded on first use.
"""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.lsm.adapters import Lora as Lora
    from lens.lsm.config import PRESETS as PRESETS
    from lens.lsm.config import Align as Align
    from lens.lsm.config import LanguageModel as LanguageModel
    from lens.lsm.config import LensConfig as LensConfig
    from lens.lsm.config import Norm as Norm
    from lens.lsm.config import PivotKL as PivotKL
    from lens.lsm.config import Retain as Retain
    from lens.lsm.config import Separate as Separate
    from lens.lsm.config import resolve as resolve
    from lens.lsm.entry import train as train
    from lens.lsm.result import TrainResult as TrainResult
    from lens.lsm.running import Running as Running
    from lens.lsm.selection import Choice as Choice
    from lens.lsm.selection import Trial as Trial
    from lens.lsm.selection import choose_strengths as choose_strengths
    from lens.lsm.training import LensTrainer as LensTrainer

_NAMES = {
    "Align": "config",
    "Choice": "selection",
    "LanguageModel": "config",
    "LensConfig": "config",
    "LensTrainer": "training",
    "Lora": "adapters",
    "Norm": "config",
    "PRESETS": "config",
    "PivotKL": "config",
    "Retain": "config",
    "Running": "running",
    "Separate": "config",
    "TrainResult": "result",
    "Trial": "selection",
    "choose_strengths": "selection",
    "resolve": "config",
    "train": "entry",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
