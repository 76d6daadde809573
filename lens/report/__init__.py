"""Turn a finished run into a page, a table and files; nothing here computes a result."""

from importlib import import_module
from typing import Any

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
    "render": "render",
    "write_run": "files",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public name the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.report' has no attribute '{name}'")
    value = getattr(import_module(f"lens.report.{_NAMES[name]}"), name)
    # the submodule `render` has the name of its function: the function wins, as it is the API
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return __all__
