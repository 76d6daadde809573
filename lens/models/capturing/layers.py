"""Run all rows through one block, then through the next: one block's weights are needed at a time.

Between blocks the hidden states of every real token are in two files, one that a block reads and
one that it writes, so that a process killed at any moment has lost nothing but a batch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from lens.errors import InputError
from lens.io import reserve, write_at
from lens.models.blocks import DecoderParts, block_output, forward_arguments
from lens.models.blockwise import first_output, store_of
from lens.models.bypassing import passing_through, replace_hidden
from lens.models.capturing.rows import RowSet
from lens.models.capturing.running import Job
from lens.models.chat import Batch
from lens.models.pooling import Pooled, Pooling, pool_finite
from lens.models.sites import FINAL, block_index, block_site


class _Stop(Exception):
    """Ends a forward pass after the block it is for."""


class SpilledStates:
    """Hidden states of the real tokens of all rows, in two files that take turns.

    Parameters
    ----------
    sets : sequence of RowSet
        Rows, one set after the other.
    width : int
        Width of a state.
    dtype : torch.dtype
        Of the hidden states.
    folder : Path or None
        Keep the files here, to go on later; None uses temporary files that vanish with the
        process.
    """

    def __init__(
        self, sets: Sequence[RowSet], *, width: int, dtype: torch.dtype, folder: Path | None
    ) -> None:
        self.dtype, self.width = dtype, width
        self._row = width * dtype.itemsize
        self._starts: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
        total = 0
        for group in sets:
            ends = total + np.cumsum([len(row.ids) for row in group.rows])
            self._starts[group.label] = np.concatenate([[total], ends[:-1]])
            total = int(ends[-1])
        self.nbytes = total * self._row
        self._files = [self._open(folder, turn) for turn in range(2)]

    def read(self, turn: int, group: RowSet, chosen: list[int], places: Tensor) -> Tensor:
        """States of some rows, padded: (n, t, d) with zeros where ``places`` is False."""
        out = torch.zeros(*places.shape, self.width, dtype=self.dtype)
        for i, row in enumerate(chosen):
            states = torch.empty(len(group.rows[row].ids), self.width, dtype=self.dtype)
            view: Any = states.view(torch.uint8).numpy().reshape(-1)
            at = int(self._starts[group.label][row]) * self._row
            if os.preadv(self._files[turn % 2].fileno(), [view], at) != view.nbytes:
                raise InputError("a file of hidden states was cut short; probe again")
            out[i, places[i]] = states
        return out

    def write(
        self, turn: int, group: RowSet, chosen: list[int], places: Tensor, states: Tensor
    ) -> None:
        """Store what `read` of the same turn will give."""
        for i, row in enumerate(chosen):
            content = states[i, places[i]].contiguous().view(torch.uint8).numpy()
            at = int(self._starts[group.label][row]) * self._row
            try:
                write_at(self._files[turn % 2], at, content)
            except OSError as error:
                raise self._no_room(error, None) from None

    def flush(self, turn: int) -> None:
        """Wait until what was written for a turn is on the disk."""
        os.fsync(self._files[turn % 2].fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _open(self, folder: Path | None, turn: int) -> IO[bytes]:
        if folder is None:
            file: IO[bytes] = tempfile.TemporaryFile(prefix="lens-hidden-", buffering=0)
        else:
            path = folder / f"hidden.{turn}"
            file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        try:
            reserve(file, 0, self.nbytes)
        except OSError as error:
            file.close()
            raise self._no_room(error, folder) from None
        return file

    def _no_room(self, error: OSError, folder: Path | None) -> InputError:
        where = folder or tempfile.gettempdir()
        return InputError(
            f"no room for two files of {self.nbytes / 1e6:.0f} MB of hidden states in '{where}': "
            f"{error.strerror}; free some space (TMPDIR names another place) and go on with "
            "--resume, or probe fewer rows"
        )


def run_layers(
    job: Job,
    sets: Sequence[RowSet],
    parts: DecoderParts,
    *,
    sites: Sequence[str],
    pooling: Pooling,
    n_threads: int | None,
) -> None:
    """Send every set through block after block, up to the last one needed."""
    store = store_of(job.model)
    hold = store.block if store is not None else lambda _index: nullcontext()
    folder = job.journal.folder if job.journal is not None else None
    labels = [group.label for group in sets]
    with hold(0):
        form, dtype = first_output(job.model, parts)
    spilled = SpilledStates(sets, width=parts.width, dtype=dtype, folder=folder)
    last = max(_needed(site, parts) for site in sites)
    steps = [*range(last + 1), *([None] if _norm_needed(sites, parts) else [])]
    try:
        for turn, index in enumerate(steps):
            name = FINAL if index is None else block_site(index)
            wanted = _sites_after(index, sites, parts)
            found = job.journal.finished(name) if job.journal is not None else None
            if found is not None:
                job.gathered.restore(found[0])
                job.limit.rows = found[1]["size"]
                job.bar.update(sum(len(group.rows) for group in sets))
                continue
            layer = _Layer(job.model, parts, index, form, spilled, turn, wanted, pooling, n_threads)
            job.begin(name)
            with hold(index) if index is not None else nullcontext(), layer.running():
                for group in sets:
                    for window in group.windows():
                        pooled = job.window(group, window, layer.step)
                        job.gathered.take(group, window.start, pooled)
            spilled.flush(turn + 1)
            job.end(name, labels, wanted)
    finally:
        spilled.close()


class _Layer:
    """One block, or the final norm, run by itself."""

    def __init__(
        self,
        model: Any,
        parts: DecoderParts,
        index: int | None,
        form: Any,
        spilled: SpilledStates,
        turn: int,
        sites: Sequence[str],
        pooling: Pooling,
        n_threads: int | None,
    ) -> None:
        self.model, self.parts, self.index, self.form = model, parts, index, form
        self.spilled, self.turn, self.sites = spilled, turn, sites
        self.pooling, self.n_threads = pooling, n_threads
        self._entry: Tensor | None = None
        self._state: Tensor | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let every other block pass its input on, and stop behind this one."""
        norm = self.parts.final_norm
        module = norm if self.index is None else self.parts.blocks[self.index]
        if module is None:
            raise InputError("the model has no final norm to run")
        before = list(self.parts.blocks)[: self.index]
        handles = [
            module.register_forward_pre_hook(self._put_in, with_kwargs=True),
            module.register_forward_hook(self._take_out),
        ]
        try:
            with passing_through(before, self.form):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def step(self, batch: Batch, group: RowSet, chosen: list[int]) -> Pooled:
        """Run a batch, store what comes out, and pool it."""
        places = batch.attention_mask.bool().cpu()
        self._entry = self._state = None
        if self.turn:
            entry = self.spilled.read(self.turn, group, chosen, places)
            self._entry = entry.to(batch.input_ids.device)
        tensors = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "position_ids": batch.position_ids,
        }
        try:
            self.model(**forward_arguments(self.model, tensors))
        except _Stop:
            pass
        state: Tensor | None = self._state
        if state is None:
            raise InputError("the forward pass did not reach the block it was for")
        pooled: Pooled = {}
        if self.sites:
            values = pool_finite(
                state, batch.pool_mask, self.sites[0], mode=self.pooling, n_threads=self.n_threads
            )
            pooled = dict.fromkeys(self.sites, values)
        if self.index is not None:
            self.spilled.write(self.turn + 1, group, chosen, places, state.cpu())
        return pooled

    def _put_in(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self._entry is None else replace_hidden(args, kwargs, self._entry)

    def _take_out(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._state = block_output(output).detach()
        raise _Stop


def _needed(site: str, parts: DecoderParts) -> int:
    """Last block that decides the state at a site."""
    index = block_index(site)
    return len(parts.blocks) - 1 if index is None else index


def _norm_needed(sites: Sequence[str], parts: DecoderParts) -> bool:
    return FINAL in sites and parts.final_norm is not None


def _sites_after(index: int | None, sites: Sequence[str], parts: DecoderParts) -> list[str]:
    """Sites whose state is what comes out of a block, or of the final norm."""
    if index is None:
        return [FINAL]
    found = [block_site(index)] if block_site(index) in sites else []
    without_norm = parts.final_norm is None and index == len(parts.blocks) - 1
    return [*found, FINAL] if FINAL in sites and without_norm else found
