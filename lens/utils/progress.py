"""Progress bars: on a terminal and in a notebook, silent elsewhere and with ``--quiet``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence every later progress bar (the command line's ``--quiet``)."""
    global _quiet
    _quiet = quiet


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, as `tqdm.auto` finds it out."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def shown() -> bool:
    """Whether bars are drawn: not quiet, and stderr is a terminal or the output of a notebook."""
    return not _quiet and (sys.stderr.isatty() or _in_notebook())


def bar(total: int | None, label: str, *, unit: str = "batch", drawn: bool | None = None) -> Any:
    """Open a bar to be updated by hand; ``drawn`` overrides `shown`."""
    from tqdm.auto import tqdm

    disable = not (shown() if drawn is None else drawn)
    return tqdm(total=total, desc=label, unit=unit, disable=disable)


def progress(
    items: Iterable[T], label: str, *, total: int | None = None, unit: str = "batch"
) -> Iterable[T]:
    """Iterate over ``items`` with a bar where bars are `shown`."""
    if not shown():
        return items
    from tqdm.auto import tqdm

    drawn: Iterable[T] = tqdm(items, desc=label, total=total, unit=unit, leave=False)
    return drawn


def say(text: str) -> None:
    """Write one line on stderr about what starts now, unless quiet."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)
