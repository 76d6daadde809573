"""The data doctor: what is wrong with text before anything is computed from it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.checking.findings import Finding as Finding
    from lens.checking.findings import LanguageText as LanguageText
    from lens.checking.findings import TextReport as TextReport
    from lens.checking.text import check_text as check_text

_NAMES = {
    "Finding": "findings",
    "LanguageText": "findings",
    "TextReport": "findings",
    "check_text": "text",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public function the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.checking' has no attribute '{name}'")
    return getattr(import_module(f"lens.checking.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return list(__all__)
