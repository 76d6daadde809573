"""Turn a finished run into a page, a table and files; nothing here computes a result."""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.report.console import print_rows as print_rows
    from lens.report.console import print_table as print_table
    from lens.report.figures import plot_grid as plot_grid
    from lens.report.figures import plot_languages as plot_languages
    from lens.report.figures import plot_losses as plot_losses
    from lens.report.figures import plot_spectra as plot_spectra
    from lens.report.files import read_run as read_run
    from lens.report.files import write_run as write_run
    from lens.report.page import render as render
    from lens.report.record import Example as Example
    from lens.report.record import GridCell as GridCell
    from lens.report.record import LossCurve as LossCurve
    from lens.report.record import RunRecord as RunRecord
    from lens.report.record import Spectrum as Spectrum
    from lens.report.record import System as System
    from lens.report.tables import finding as finding

_NAMES = {
    "Example": "record",
    "GridCell": "record",
    "LossCurve": "record",
    "RunRecord": "record",
    "Spectrum": "record",
    "System": "record",
    "finding": "tables",
    "plot_grid": "figures",
    "plot_languages": "figures",
    "plot_losses": "figures",
    "plot_spectra": "figures",
    "print_rows": "console",
    "print_table": "console",
    "read_run": "files",
    "render": "page",
    "write_run": "files",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
