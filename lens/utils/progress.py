"""Progress bars: on stderr, with a verb as label, silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence every later progress bar (the command line's ``--quiet``)."""
    global _quiet
    _quiet = quiet


def shown() -> bool:
    """Whether bars are drawn: not quiet, and stderr is a terminal."""
    return not _quiet and sys.stderr.isatty()


def progress(
    items: Iterable[T], label: str, *, total: int | None = None, unit: str = "batch"
) -> Iterable[T]:
    """Iterate over ``items`` with a bar, unless quiet or stderr is not a terminal."""
    if not shown():
        return items
    from tqdm.auto import tqdm

    bar: Iterable[T] = tqdm(items, desc=label, total=total, unit=unit, leave=False)
    return bar


def say(text: str) -> None:
    """Write one line on stderr about what starts now, unless quiet."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)
