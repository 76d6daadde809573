"""Language codes and parallel text."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.data.corpora import Corpus as Corpus
    from lens.data.corpora import read_found as read_found
    from lens.data.corpora import read_parallel as read_parallel
    from lens.data.found import Found as Found
    from lens.data.languages import canonical as canonical
    from lens.data.languages import english_name as english_name

_NAMES = {
    "Corpus": "corpora",
    "Found": "found",
    "canonical": "languages",
    "english_name": "languages",
    "read_found": "corpora",
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
