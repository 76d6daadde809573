"""Language codes and parallel text."""

from importlib import import_module
from typing import Any

_NAMES = {
    "Corpus": "corpora",
    "canonical": "languages",
    "display_name": "languages",
    "read_parallel": "corpora",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public function the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.data' has no attribute '{name}'")
    return getattr(import_module(f"lens.data.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return list(__all__)
