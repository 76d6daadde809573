"""Run rows through a model and keep only statistics of their pooled states.

Importing this package does not import torch: every name is loaded on first use.
"""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.models.capturing.entry import CaptureResult as CaptureResult
    from lens.models.capturing.entry import capture as capture
    from lens.models.capturing.entry import capture_sets as capture_sets
    from lens.models.capturing.journal import Journal as Journal
    from lens.models.capturing.rows import check_rows as check_rows
    from lens.models.capturing.running import Keeper as Keeper

_NAMES = {
    "CaptureResult": "entry",
    "Journal": "journal",
    "Keeper": "running",
    "capture": "entry",
    "capture_sets": "entry",
    "check_rows": "rows",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
