"""The data doctor: what is wrong with text before anything is computed from it."""

from typing import TYPE_CHECKING

from lens._lazy import lazy

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

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
