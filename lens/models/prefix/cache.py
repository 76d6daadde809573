"""Prefix states of a set of rows, and the trained band run from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lens.errors import InputError
from lens.models.blocks import DecoderParts, block_input, block_output, device_of, with_block_output
from lens.models.prefix import storage
from lens.models.prefix.keys import SCHEMA, frozen_facts, rows_key
from lens.models.prefix.rows import Batch, CachedRow, Keep, kept_tokens, pad_right
from lens.models.residence import Heap, release
from lens.models.sites import FINAL, block_index
from lens.progress import progress, say


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
    folder : str or Path, optional
        Keep the states in files of this folder, to be found again by any later run over the same
        model and rows. A file is named by the hash of everything its content depends on; one that
        is damaged is made again, and said so.
    memory : int, optional
        Without ``folder``: bytes of states that may stay in memory; what passes them goes to
        temporary files that vanish with the process.
    low_memory : bool
        Give memory that passes have freed back to the system at once.

    Raises
    ------
    InputError
        If ``first_block`` is outside the model, a site lies below it, or the folder cannot be
        used.
    """

    def __init__(
        self,
        model: Any,
        parts: DecoderParts,
        *,
        first_block: int,
        sites: Sequence[str] = ("final",),
        folder: str | Path | None = None,
        memory: int | None = None,
        low_memory: bool = False,
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
        self.reused = 0
        self.device = next(parts.blocks[first_block].parameters()).device
        self.folder = None if folder is None else Path(folder)
        self._frozen: dict[str, Any] = {}
        self._memory, self._in_memory = memory, 0
        self._heap = Heap() if low_memory else None
        if self.folder is not None:
            storage.prepare_folder(self.folder)
            self._frozen = frozen_facts(model, parts, first_block=first_block, sites=self.sites)
        self._output_form = self._form() if first_block else None

    @property
    def nbytes(self) -> int:
        """Bytes held by entries and references, in memory or on disk."""
        kept = [t for row in self.rows for t in (row.entry, *row.reference.values())]
        return sum(t.numel() * t.element_size() for t in kept)

    @torch.no_grad()
    def add(
        self,
        rows: Sequence[Sequence[int]],
        *,
        keep: Keep = "last",
        batch_size: int = 32,
        label: str = "Caching prefix",
    ) -> range:
        """Run encoded rows through the frozen model and keep what training needs.

        Parameters
        ----------
        rows : sequence of sequence of int
            Token ids of each row.
        keep : {"last", "all"} or int
            Reference states of the last token only, of every token, or of the last so many.
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
        if not len(rows):
            return range(start, start)
        lengths = [len(row) for row in rows]
        kept = [kept_tokens(t, keep) for t in lengths]
        totals = {"entry": sum(lengths)} | dict.fromkeys(map(_stored, self.sites), sum(kept))
        if self.folder is None:
            tensors = self._compute(rows, kept, totals, batch_size=batch_size, label=label)
        else:
            key = rows_key(self._frozen, rows, keep=keep, batch_size=batch_size)
            path = self.folder / f"{key}.safetensors"
            found = self._found(path, key, totals)
            if found is None:
                self._compute(rows, kept, totals, batch_size=batch_size, label=label, path=path)
                found = storage.open_file(path, {"key": key}, verify=False)
            tensors = found
        entries = tensors["entry"].split(lengths)
        references = {site: tensors[_stored(site)].split(kept) for site in self.sites}
        for i, (row, entry) in enumerate(zip(rows, entries, strict=True)):
            reference = {site: parts[i] for site, parts in references.items()}
            self.rows.append(CachedRow(torch.tensor(list(row)), entry, reference))
        release(tensors.values())
        return range(start, len(self.rows))

    def _found(self, path: Path, key: str, totals: Mapping[str, int]) -> dict[str, Tensor] | None:
        """Tensors of an earlier run, if its file is there and sound."""
        if not path.exists():
            return None
        try:
            tensors = storage.open_file(path, {"key": key})
            if {name: len(tensor) for name, tensor in tensors.items()} != totals:
                raise storage.DamagedError("holds other tensors than its name says")
        except storage.DamagedError as error:
            say(f"cached states in {path} are damaged: the file {error}; they are made again")
            return None
        self.reused += 1
        return tensors

    def _compute(
        self,
        rows: Sequence[Sequence[int]],
        kept: Sequence[int],
        totals: Mapping[str, int],
        *,
        batch_size: int,
        label: str,
        path: Path | None = None,
    ) -> dict[str, Tensor]:
        """Run rows, the longest first, and write their states in the order of the rows.

        Rows of like length share a batch, so that little of it is padding.
        """
        tensors: dict[str, Tensor] = {}
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        entry_ends = list(accumulate(map(len, rows)))
        reference_ends = list(accumulate(kept))
        with ExitStack() as stack:
            for at in progress(range(0, len(rows), batch_size), label):
                chosen = order[at : at + batch_size]
                ids = [torch.tensor(list(rows[i])) for i in chosen]
                seen: dict[str, Tensor] = {}
                with _entry_of(self.parts.blocks[self.first_block], seen):
                    states = self._forward(pad_right(ids))
                states = {"entry": seen["entry"]} | {_stored(s): states[s] for s in self.sites}
                if not tensors:
                    shapes = {n: (x.dtype, (totals[n], x.shape[-1])) for n, x in states.items()}
                    tensors = stack.enter_context(self._room(shapes, path))
                for at_batch, i in enumerate(chosen):
                    length = len(rows[i])
                    for name, values in states.items():
                        count, end = kept[i], reference_ends[i]
                        if name == "entry":
                            count, end = length, entry_ends[i]
                        tensors[name][end - count : end] = values[at_batch, length - count : length]
        return tensors

    def _room(
        self, shapes: storage.Shapes, path: Path | None
    ) -> AbstractContextManager[dict[str, Tensor]]:
        """Tensors to fill, wherever this cache keeps them."""
        if path is not None:
            return storage.new_file(path, shapes, {"key": path.stem, "schema": SCHEMA})
        size = storage.nbytes(shapes)
        if self._memory is None or self._in_memory + size <= self._memory:
            self._in_memory += size
            return nullcontext(storage.in_memory(shapes))
        say(
            f"{size / 1e6:.0f} MB of cached states go to a temporary file: with "
            f"{self._in_memory / 1e6:.0f} MB in memory already, they would pass the "
            f"{self._memory / 1e6:.0f} MB that the memory limit leaves"
        )
        return nullcontext(storage.in_unnamed_file(shapes))

    def batch(self, indices: Sequence[int], length: int | None = None) -> Batch:
        """Gather rows into one right-padded batch, at least ``length`` tokens long."""
        rows = [self.rows[i] for i in indices]
        ids = [row.input_ids for row in rows]
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        entry = pad_right([row.entry for row in rows], length).to(self.device)
        release(row.entry for row in rows)
        return Batch(pad_right(ids, length).to(self.device), entry, lengths)

    def reference(self, indices: Sequence[int], site: str) -> Tensor:
        """Frozen states of rows at a site: (n, k, d) padded, of the last k tokens kept."""
        return pad_right([self.rows[i].reference[site] for i in indices]).to(self.device)

    def last_reference(self, indices: Sequence[int], site: str) -> Tensor:
        """Frozen states of the last token of rows at a site, shape (n, d)."""
        return torch.stack([self.rows[i].reference[site][-1] for i in indices]).to(self.device)

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
        if self._heap is not None:
            self._heap.tidy()
        states: dict[str, Tensor] = {}
        handles = [self._record(site, states) for site in self.sites if site != FINAL]
        try:
            out = self.model.base_model(
                input_ids=input_ids.to(device_of(self.model)), use_cache=False
            )
        finally:
            for handle in handles:
                handle.remove()
        states[FINAL] = out.last_hidden_state
        return {site: values.to(self.device) for site, values in states.items()}

    @torch.no_grad()
    def _form(self) -> Any:
        """Find what a block returns beside the states: None for nothing, else a tuple to fill."""
        form: list[Any] = []

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            form.append((None,) * len(output) if isinstance(output, tuple) else None)

        handle = self.parts.blocks[0].register_forward_hook(hook)
        try:
            self._forward(torch.zeros(1, 1, dtype=torch.int64))
        finally:
            handle.remove()
        return form[0]

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

    bypassed = [(block, vars(block).get("forward")) for block in blocks]
    for block, _ in bypassed:
        block.forward = bypass
    try:
        yield
    finally:
        for block, own in bypassed:
            if own is None:
                del block.forward
            else:  # accelerate puts one there for a model over several devices
                block.forward = own


def _stored(site: str) -> str:
    """Name of a site's references among the stored tensors."""
    return f"reference.{site}"
