"""Merge checkpoints of any size: abilities and languages in weight space (MAEC, arXiv 2410.07825).

A merge is planned from headers, streamed slice by slice in bounded memory, can be interrupted and
resumed to the same bytes, and verified afterwards. torch is not needed.
"""

from lens.maec.config import Ability, Language, MergeConfig, Model, parse_config, read_config
from lens.maec.merging import MergeResult, merge
from lens.maec.methods import METHODS
from lens.maec.planning import MergePlan, plan_merge

__all__ = [
    "METHODS",
    "Ability",
    "Language",
    "MergeConfig",
    "MergePlan",
    "MergeResult",
    "Model",
    "merge",
    "parse_config",
    "plan_merge",
    "read_config",
]
