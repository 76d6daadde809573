"""Merge checkpoints of any size: abilities and languages in weight space (MAEC, arXiv 2410.07825).

A merge is planned from headers, streamed slice by slice in bounded memory, can be interrupted and
resumed to the same bytes, and verified afterwards. torch is not needed.
"""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.maec.atlas import Atlas as Atlas
    from lens.maec.atlas import delta as delta
    from lens.maec.config import Ability as Ability
    from lens.maec.config import Language as Language
    from lens.maec.config import MergeConfig as MergeConfig
    from lens.maec.config import Model as Model
    from lens.maec.config import parse_config as parse_config
    from lens.maec.config import read_config as read_config
    from lens.maec.extracting import Extraction as Extraction
    from lens.maec.extracting import extract as extract
    from lens.maec.lora import AdapterResult as AdapterResult
    from lens.maec.lora import to_adapter as to_adapter
    from lens.maec.merging import MergeResult as MergeResult
    from lens.maec.merging import merge as merge
    from lens.maec.methods import METHODS as METHODS
    from lens.maec.planning import MergePlan as MergePlan
    from lens.maec.planning import plan_merge as plan_merge
    from lens.maec.verifying import Verification as Verification
    from lens.maec.verifying import verify as verify

_NAMES = {
    "Ability": "config",
    "AdapterResult": "lora",
    "Atlas": "atlas",
    "Extraction": "extracting",
    "Language": "config",
    "METHODS": "methods",
    "MergeConfig": "config",
    "MergePlan": "planning",
    "MergeResult": "merging",
    "Model": "config",
    "Verification": "verifying",
    "delta": "atlas",
    "extract": "extracting",
    "merge": "merging",
    "parse_config": "config",
    "plan_merge": "planning",
    "read_config": "config",
    "to_adapter": "lora",
    "verify": "verifying",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
