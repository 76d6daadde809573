"""An ability taught in English alone, carried to other languages by weights: the MAEC study."""

from lens.world.transfer.config import TransferStudy, read_study
from lens.world.transfer.study import study
from lens.world.transfer.summary import Line, summarise, tables

__all__ = ["Line", "TransferStudy", "read_study", "study", "summarise", "tables"]
