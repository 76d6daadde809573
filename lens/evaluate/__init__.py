"""Measure a model: fidelity, in-language accuracy and pivot drift, each with n and an interval.

``generate`` answers prompts, ``identifier`` names the language of an answer, ``outcomes`` and
``score`` turn both into numbers with 95 % intervals, ``pivot_kl`` says how far the pivot moved.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "AVERAGE": "rows",
    "METRICS": "rows",
    "ResultRow": "rows",
    "read_rows": "rows",
    "rows_from_json": "rows",
    "rows_to_json": "rows",
    "write_rows": "rows",
    "McNemar": "intervals",
    "PairedDifference": "intervals",
    "mcnemar": "intervals",
    "mean_interval": "intervals",
    "paired_bootstrap": "intervals",
    "wilson": "intervals",
    "Identifier": "identify",
    "agreement": "identify",
    "identifier": "identify",
    "generate": "generation",
    "strip_thinking": "generation",
    "Comparison": "scoring",
    "Outcomes": "scoring",
    "compare": "scoring",
    "outcomes": "scoring",
    "score": "scoring",
    "PivotDrift": "drift",
    "pivot_kl": "drift",
    "Evaluation": "suite",
    "evaluate": "suite",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public name the first time it is asked for (PEP 562)."""
    if name in _NAMES:
        return getattr(import_module(f"lens.evaluate.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'lens.evaluate' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return __all__
