"""Run rows through a model and keep only statistics of their pooled states."""

from lens.models.capturing.entry import CaptureResult, capture, capture_sets
from lens.models.capturing.journal import Journal
from lens.models.capturing.rows import AUTO_BATCH, WINDOW, check_rows
from lens.models.capturing.running import Keeper

__all__ = [
    "AUTO_BATCH",
    "WINDOW",
    "CaptureResult",
    "Journal",
    "Keeper",
    "capture",
    "capture_sets",
    "check_rows",
]
