"""Rows to be captured, and the batches they run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lens.errors import InputError
from lens.models.blocks import DecoderParts, text_config
from lens.models.chat import EncodedRow

# Rows are sorted by length inside windows of this many, and enter the statistics window by window
# in their own order, so that the batch size never changes which numbers are added to which.
WINDOW = 256
AUTO_BATCH = 32


@dataclass(frozen=True, slots=True)
class RowSet:
    """Encoded rows under one label, usually a language.

    Attributes
    ----------
    label : str
        For messages and records.
    rows : list of EncodedRow
        In their own order.
    offset : int
        Id of the first row.
    """

    label: str
    rows: list[EncodedRow]
    offset: int

    def windows(self) -> Iterator[range]:
        """Positions of the rows, a window at a time."""
        for start in range(0, len(self.rows), WINDOW):
            yield range(start, min(start + WINDOW, len(self.rows)))

    def by_length(self, window: range) -> list[int]:
        """Positions of a window, the shortest rows first."""
        return sorted(window, key=lambda i: (len(self.rows[i].ids), i))


@dataclass(slots=True)
class BatchLimit:
    """Most rows of a batch, which shrink when memory runs out, and most tokens with padding."""

    rows: int
    tokens: int | None = None

    def take(self, order: Sequence[int], done: int, rows: Sequence[EncodedRow]) -> list[int]:
        """Positions of the next batch: rows come sorted, so the last one is the longest."""
        count = min(self.rows, len(order) - done)
        while (
            self.tokens is not None
            and count > 1
            and count * len(rows[order[done + count - 1]].ids) > self.tokens
        ):
            count -= 1
        return list(order[done : done + count])


def batch_limit(batch_size: int | Literal["auto"], tokens: int | None = None) -> BatchLimit:
    """Read a batch size."""
    if batch_size == "auto":
        return BatchLimit(AUTO_BATCH, tokens)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected 'auto' or a number from 1")
    return BatchLimit(batch_size, tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any allocator, ours, NumPy's, torch's or a device's, means no memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        said in text for said in ("out of memory", "can't allocate memory", "not enough memory")
    )


def check_rows(rows: list[EncodedRow], parts: DecoderParts, model: Any) -> None:
    """Refuse rows the model cannot take before anything is run."""
    if not rows:
        raise InputError("there are no rows to capture; expected at least one")
    longest = getattr(text_config(model), "max_position_embeddings", None)
    too_long = [i for i, row in enumerate(rows) if longest and len(row.ids) > longest]
    if too_long:
        raise InputError(
            f"{len(too_long)} row(s) are longer than the {longest} positions of the model "
            f"(first: row {too_long[0]}, {len(rows[too_long[0]].ids)} tokens); "
            f"set max_tokens={longest} to cut them"
        )
    weight = getattr(parts.embedding, "weight", None)
    largest = max(max(row.ids) for row in rows)
    if isinstance(weight, torch.Tensor) and largest >= weight.shape[0]:
        raise InputError(
            f"the tokenizer gives token id {largest}, but the model has {weight.shape[0]} "
            "embeddings; use the tokenizer that belongs to the model"
        )
