"""States made elsewhere: arrays of any library, files, dumps of a server, artifacts of papers."""

from typing import TYPE_CHECKING

from lens._lazy import lazy

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

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
