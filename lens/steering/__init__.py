"""Steering without training: add a language step, or project a language out, inside a `with`."""

from importlib import import_module
from typing import Any

_NAMES = {
    "Policy": "rules",
    "PolicyRule": "rules",
    "Rule": "rules",
    "carry": "controls",
    "diffmean_rules": "controls",
    "project_rules": "controls",
    "random_basis": "controls",
    "random_rules": "controls",
    "random_subspace": "controls",
    "steer": "hooks",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public function the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.steering' has no attribute '{name}'")
    return getattr(import_module(f"lens.steering.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return list(__all__)
