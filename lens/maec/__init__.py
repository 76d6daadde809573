"""Merge checkpoints of any size: abilities and languages in weight space (MAEC, arXiv 2410.07825).

A merge is planned from headers, streamed slice by slice in bounded memory, can be interrupted and
resumed to the same bytes, and verified afterwards. torch is not needed.
"""

from lens.maec.config import Ability, Language, MergeConfig, Model, parse_config, read_config
from lens.maec.extracting import Extraction, extract
from lens.maec.merging import MergeResult, merge
from lens.maec.methods import METHODS
from lens.maec.planning import MergePlan, plan_merge
from lens.maec.verifying import Verification, verify

__all__ = [
    "METHODS",
    "Ability",
    "Extraction",
    "Language",
    "MergeConfig",
    "MergePlan",
    "MergeResult",
    "Model",
    "Verification",
    "extract",
    "merge",
    "parse_config",
    "plan_merge",
    "read_config",
    "verify",
]
