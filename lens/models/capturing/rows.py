"""Rows to be captured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lens.errors import InputError
from lens.models.batching import windows
from lens.models.blocks import DecoderParts, text_config
from lens.models.chat import EncodedRow


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
        return windows(len(self.rows))

    def by_length(self, window: range) -> list[int]:
        """Positions of a window, the shortest rows first."""
        return sorted(window, key=lambda i: (len(self.rows[i].ids), i))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any allocator, ours, NumPy's, torch's or a device's, means no memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        said in text for said in ("out of memory", "can't allocate memory", "not enough memory")
    )


def check_rows(
    rows: list[EncodedRow], parts: DecoderParts, model: Any, *, advice: str = ""
) -> None:
    """Refuse rows the model cannot take before anything is run; say how to make them shorter."""
    if not rows:
        raise InputError("there are no rows to capture; expected at least one")
    longest = getattr(text_config(model), "max_position_embeddings", None)
    too_long = [i for i, row in enumerate(rows) if longest and len(row.ids) > longest]
    if too_long:
        raise InputError(
            f"{len(too_long)} row(s) are longer than the {longest} positions of the model "
            f"(first: row {too_long[0]}, {len(rows[too_long[0]].ids)} tokens); "
            + (advice or f"set max_tokens={longest} to cut them")
        )
    weight = getattr(parts.embedding, "weight", None)
    largest = max(max(row.ids) for row in rows)
    if isinstance(weight, torch.Tensor) and largest >= weight.shape[0]:
        raise InputError(
            f"the tokenizer gives token id {largest}, but the model has {weight.shape[0]} "
            "embeddings; use the tokenizer that belongs to the model"
        )
