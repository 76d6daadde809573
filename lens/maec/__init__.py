"""Merge checkpoints of any size: abilities and languages in weight space (MAEC, arXiv 2410.07825).

A merge is planned from headers, streamed slice by slice in bounded memory, can be interrupted and
resumed to the same bytes, and verified afterwards. torch is not needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens.maec.config import Ability, Language, MergeConfig, Model, parse_config, read_config
    from lens.maec.extracting import Extraction, extract
    from lens.maec.merging import MergeResult, merge
    from lens.maec.methods import METHODS
    from lens.maec.planning import MergePlan, plan_merge
    from lens.maec.verifying import Verification, verify

_NAMES = {
    "Ability": "config",
    "Extraction": "extracting",
    "Language": "config",
    "METHODS": "methods",
    "MergeConfig": "config",
    "MergePlan": "planning",
    "MergeResult": "merging",
    "Model": "config",
    "Verification": "verifying",
    "extract": "extracting",
    "merge": "merging",
    "parse_config": "config",
    "plan_merge": "planning",
    "read_config": "config",
    "verify": "verifying",
}

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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: starting up is part of a merge's time."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.maec' has no attribute '{name}'")
    return getattr(import_module(f"lens.maec.{_NAMES[name]}"), name)
