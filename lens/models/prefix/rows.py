"""Rows of a prefix cache, how much of each is kept, and batches padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lens.errors import InputError

Keep: TypeAlias = Literal["last", "all"] | int


@dataclass(frozen=True, slots=True)
class CachedRow:
    """One encoded row and what the frozen model made of it.

    Attributes
    ----------
    input_ids : Tensor
        Token ids, shape (t,), int64.
    entry : Tensor
        Residual stream entering the first trained block, shape (t, d), dtype of the model.
    reference : dict of str to Tensor
        Frozen states by site, shape (k, d): those of the last k tokens, k as it was asked for.
    """

    input_ids: Tensor
    entry: Tensor
    reference: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length.

    A decoder never looks right, so real tokens do not see the padding and no attention mask is
    needed: ``lengths`` alone tells what is real.
    """

    input_ids: Tensor
    entry: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """1 for real tokens, 0 for padding; shape (n, t), float32."""
        steps = torch.arange(self.input_ids.shape[1], device=self.lengths.device)
        return (steps < self.lengths[:, None]).float()

    def last(self, states: Tensor) -> Tensor:
        """States of the last real token of every row, shape (n, d)."""
        return states[torch.arange(len(states), device=states.device), self.lengths - 1]


def pad_right(rows: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Stack tensors of different length along a new first axis, zeros behind the shorter ones."""
    padded: Tensor = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    if length is None or padded.shape[1] >= length:
        return padded
    extra = padded.new_zeros(padded.shape[0], length - padded.shape[1], *padded.shape[2:])
    return torch.cat([padded, extra], dim=1)


def kept_tokens(length: int, keep: Keep) -> int:
    """How many reference states of a row of ``length`` tokens are kept."""
    if keep == "all":
        return length
    wanted = 1 if keep == "last" else keep
    if not isinstance(wanted, int) or wanted < 1:
        raise InputError(f"keep is {keep!r}; expected 'last', 'all' or a number of tokens from 1")
    return min(wanted, length)
