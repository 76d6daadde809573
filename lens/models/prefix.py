"""Cached prefix states: run what is frozen once, train what is above it many times.

When only blocks ``first_block`` and up are trained, nothing below them ever changes. So each row
is sent through the whole frozen model once; the residual stream that enters the first trained
block and the reference outputs are kept, and every training step starts from there. No second
model is held and no frozen lower block runs again (``docs/training.md``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lens.errors import InputError
from lens.models.blocks import DecoderParts, block_input, block_output, with_block_output
from lens.models.sites import FINAL, block_index
from lens.progress import progress


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
        Frozen states by site: shape (t, d) when every token was kept, else (1, d), the last one.
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


class PrefixCache:
    """Prefix states and frozen reference states of a set of rows.

    Parameters
    ----------
    model : PreTrainedModel
        Any decoder that `lens.models.locate` understands.
    parts : DecoderParts
        What `lens.models.locate` returned for it.
    first_block : int
        0-based index of the lowest block that will be trained.
    sites : sequence of str
        Sites whose states the losses read, such as ``("final",)``; none may lie below
        ``first_block``.

    Raises
    ------
    InputError
        If ``first_block`` is outside the model or a site lies below it.
    """

    def __init__(
        self,
        model: Any,
        parts: DecoderParts,
        *,
        first_block: int,
        sites: Sequence[str] = ("final",),
    ) -> None:
        count = len(parts.blocks)
        if not 0 <= first_block < count:
            raise InputError(
                f"first_block is {first_block}, but the model has blocks 0 to {count - 1}; "
                "choose one of these"
            )
        for site in sites:
            if site != FINAL and (block_index(site) or 0) < first_block:
                raise InputError(
                    f"site '{site}' lies below the first trained block ({first_block}), where "
                    "training changes nothing; choose a site at or above it"
                )
        self.model, self.parts = model, parts
        self.first_block, self.sites = first_block, tuple(sites)
        self.rows: list[CachedRow] = []
        self._output_form: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes held by entries and references."""
        kept = [t for row in self.rows for t in (row.entry, *row.reference.values())]
        return sum(t.numel() * t.element_size() for t in kept)

    @torch.no_grad()
    def add(
        self,
        rows: Sequence[Sequence[int]],
        *,
        keep: str = "last",
        batch_size: int = 32,
        label: str = "Caching prefix",
    ) -> range:
        """Run encoded rows through the frozen model and keep what training needs.

        Parameters
        ----------
        rows : sequence of sequence of int
            Token ids of each row.
        keep : {"last", "all"}
            Reference states of the last token only, or of every token.
        batch_size : int
            Rows in one forward pass; does not change the result beyond rounding.
        label : str
            What the progress bar says.

        Returns
        -------
        range
            Indices of the new rows, for `batch`.
        """
        start = len(self.rows)
        device = next(self.model.parameters()).device
        for at in progress(range(0, len(rows), batch_size), label):
            ids = [torch.tensor(list(row)) for row in rows[at : at + batch_size]]
            lengths = [len(row) for row in ids]
            seen: dict[str, Tensor] = {}
            with _entry_of(self.parts.blocks[self.first_block], seen), self._noting_form():
                states = self._forward(pad_right(ids).to(device))
            for i, (row, t) in enumerate(zip(ids, lengths, strict=True)):
                low = 0 if keep == "all" else t - 1
                reference = {site: states[site][i, low:t].clone() for site in self.sites}
                self.rows.append(CachedRow(row.to(device), seen["entry"][i, :t].clone(), reference))
        return range(start, len(self.rows))

    def batch(self, indices: Sequence[int], length: int | None = None) -> Batch:
        """Gather rows into one right-padded batch, at least ``length`` tokens long."""
        rows = [self.rows[i] for i in indices]
        ids = [row.input_ids for row in rows]
        lengths = torch.tensor([len(row) for row in ids], device=ids[0].device)
        entry = pad_right([row.entry for row in rows], length)
        return Batch(pad_right(ids, length), entry, lengths)

    def reference(self, indices: Sequence[int], site: str) -> Tensor:
        """Frozen states of rows at a site: (n, t, d) padded, t = 1 where only the last is kept."""
        return pad_right([self.rows[i].reference[site] for i in indices])

    def last_reference(self, indices: Sequence[int], site: str) -> Tensor:
        """Frozen states of the last token of rows at a site, shape (n, d)."""
        return torch.stack([self.rows[i].reference[site][-1] for i in indices])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """States of the model *as it is now* at every site, from the cached entry.

        Blocks below ``first_block`` pass their input through, so the cost is that of the trained
        band (and of the embedding look-up, whose result is replaced). Position data and masks are
        made by the model's own code, hence right for every architecture.
        """
        blocks = self.parts.blocks
        with _passing_through(blocks[: self.first_block], self._output_form):
            handle = blocks[self.first_block].register_forward_pre_hook(
                lambda _module, args, kwargs: _replace_hidden(args, kwargs, batch.entry),
                with_kwargs=True,
            )
            try:
                return self._forward(batch.input_ids)
            finally:
                handle.remove()

    def _forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        states: dict[str, Tensor] = {}
        handles = [self._record(site, states) for site in self.sites if site != FINAL]
        try:
            out = self.model.base_model(input_ids=input_ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        states[FINAL] = out.last_hidden_state
        return states

    @contextmanager
    def _noting_form(self) -> Iterator[None]:
        """Remember whether blocks return a tensor or a tuple, to imitate it when bypassing."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            rest = len(output) - 1 if isinstance(output, tuple) else None
            self._output_form = None if rest is None else (None, *[None] * rest)

        handle = self.parts.blocks[0].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _record(self, site: str, states: dict[str, Tensor]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            states[site] = block_output(output)

        block = self.parts.blocks[block_index(site) or 0]
        return block.register_forward_hook(hook)


def _replace_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put ``hidden`` where a block call carries its hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


@contextmanager
def _entry_of(block: nn.Module, seen: dict[str, Tensor]) -> Iterator[None]:
    """Record the hidden states that enter a block."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["entry"] = block_input(args, kwargs)

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _passing_through(blocks: Iterable[nn.Module], form: Any) -> Iterator[None]:
    """Make blocks return their input, in the form their real output has."""

    def bypass(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return with_block_output(form, hidden_states)

    bypassed = list(blocks)
    for block in bypassed:
        block.forward = bypass
    try:
        yield
    finally:
        for block in bypassed:
            del block.forward
