"""States made elsewhere: arrays of any library, files, dumps of a server, artifacts of papers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.space.sources.arrays import as_states as as_states
    from lens.space.sources.artifacts import read_bases as read_bases
    from lens.space.sources.reading import States as States
    from lens.space.sources.reading import read_states as read_states

_NAMES = {
    "States": "reading",
    "as_states": "arrays",
    "read_bases": "artifacts",
    "read_states": "reading",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public function the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.space.sources' has no attribute '{name}'")
    return getattr(import_module(f"lens.space.sources.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return list(__all__)
