"""Which rows run together: windows of rows, sorted by length, cut into batches.

Needs lengths alone and no torch, so that a plan counts the batches that a probe will run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lens.errors import InputError

# Rows are sorted by length inside windows of this many, and enter the statistics window by window
# in their own order, so that the batch size never changes which numbers are added to which.
WINDOW = 256
AUTO_BATCH = 32


@dataclass(slots=True)
class BatchLimit:
    """Most rows of a batch, which shrink when memory runs out, and most tokens with padding."""

    rows: int
    tokens: int | None = None

    def count(self, lengths: Sequence[int], done: int) -> int:
        """Rows of the next batch: lengths come sorted, so that the last row is the longest."""
        count = min(self.rows, len(lengths) - done)
        while (
            self.tokens is not None
            and count > 1
            and count * lengths[done + count - 1] > self.tokens
        ):
            count -= 1
        return count


def batch_limit(batch_size: int | Literal["auto"], tokens: int | None = None) -> BatchLimit:
    """Read a batch size."""
    if batch_size == "auto":
        return BatchLimit(AUTO_BATCH, tokens)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected 'auto' or a number from 1")
    return BatchLimit(batch_size, tokens)


def windows(count: int) -> Iterator[range]:
    """Positions of so many rows, a window at a time."""
    for start in range(0, count, WINDOW):
        yield range(start, min(start + WINDOW, count))


def batches(lengths: Sequence[int], limit: BatchLimit) -> Iterator[tuple[int, int]]:
    """Rows and tokens of every batch, padding included, that rows of these lengths run in."""
    for window in windows(len(lengths)):
        ordered = sorted(lengths[i] for i in window)
        done = 0
        while done < len(ordered):
            rows = limit.count(ordered, done)
            done += rows
            yield rows, ordered[done - 1]
