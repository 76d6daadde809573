"""Language codes and parallel text."""

from typing import TYPE_CHECKING

from lens._lazy import lazy

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

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
