"""Find, train, steer and measure the languages inside a language model.

Everything is loaded on first use, so that ``import lens`` costs almost nothing and never
imports NumPy, torch or transformers by itself.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = ("checking", "data", "errors", "evaluate", "inspection", "losses", "lsm", "maec",
            "metrics", "models", "neurons", "planning", "recipes", "report", "resample", "space",
            "stats", "steering", "subspace", "sweeps", "tensors", "weights", "world")  # fmt: skip
_NAMES = {
    "inspect_space": "lens.inspection",
    "Inspection": "lens.inspection",
    "probe": "lens.probing",
    "Space": "lens.space",
    "steer": "lens.steering",
    "train": "lens.lsm",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    """Import a submodule or a public function the first time it is asked for (PEP 562)."""
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _MODULES:
        return import_module(f"lens.{name}")
    raise AttributeError(f"module 'lens' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return sorted(__all__)
