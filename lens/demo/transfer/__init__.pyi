from .config import TransferStudy as TransferStudy
from .config import read_study as read_study
from .study import study as study
from .summary import TransferRow as TransferRow
from .summary import summarise as summarise
from .summary import tables as tables
