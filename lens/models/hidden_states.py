"""Run rows through a model and keep statistics of their pooled hidden states."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor, nn

from lens import pooling
from lens.arrays import host
from lens.errors import InputError
from lens.models.architecture import (
    DecoderParts,
    SeenError,
    block_output,
    device_of,
    evaluating,
    forward_arguments,
    locate,
    looks_ahead,
    site_module,
    text_config,
)
from lens.models.batching import (
    WINDOW,
    BatchLimit,
    batch_limit,
    require_room_for,
    tokens_within,
    windows,
)
from lens.models.config import CaptureSettings, Pooling
from lens.models.fingerprint import model_fingerprint, sha256_json
from lens.models.layers import FINAL, block_index, block_site, resolve_sites
from lens.models.offload import first_output, passing_through, replace_hidden, store_of
from lens.models.tokenization import Batch, EncodedRow, encode, pad, pad_id_of
from lens.pooling import StreamingMoments
from lens.utils.files import reserve, size_in_bytes, write_at
from lens.utils.progress import bar, say
from lens.utils.records import Log, Record
from lens.utils.settings import takes
from lens.utils.workdir import WorkDir, boot_id

Pooled: TypeAlias = dict[str, NDArray[np.float64]]
Pool: TypeAlias = Callable[[Tensor, Tensor, str], NDArray[np.float64]]
"""Token states (n, t, d), mask (n, t) and site to pooled states (n, d)."""

# Fewer numbers than this are pooled by one thread (the bits are the same): it takes milliseconds,
# and a second thread would wait for a core, as torch's own threads spin after a product.
_ALONE = 1 << 22


class NonFiniteStateError(InputError):
    """A state at a site, in a row of the batch, has NaN or infinity."""

    def __init__(self, site: str, row: int) -> None:
        super().__init__(f"the state at {site} for row {row} of the batch is not finite")
        self.site = site
        self.row = row


class SiteReader:
    """Hooks on block outputs (and the final norm) that pool each state as soon as it appears.

    A context manager: hooks exist only inside it, and only pooled states are ever kept.
    """

    def __init__(
        self,
        parts: DecoderParts,
        sites: Sequence[str],
        *,
        pooling: Pooling,
        n_threads: int | None = None,
    ) -> None:
        self.sites = tuple(sites)
        self._modules = [(site, site_module(parts, site)) for site in sites]
        self._pool: Pool = partial(pool_finite, mode=pooling, n_threads=n_threads)
        self._hooks = ExitStack()
        self._mask: torch.Tensor | None = None
        self._pooled: Pooled = {}

    def __enter__(self) -> Self:
        """Register the hooks."""
        for site, module in self._modules:
            # The last block can also stand for "final" in a model without a final norm.
            self._hooks.enter_context(module.register_forward_hook(self._hook(site)))
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the hooks."""
        self._hooks.close()

    def read(self, model: Any, batch: Batch) -> Pooled:
        """Run one batch and return its pooled states."""
        self._pooled, self._mask = {}, batch.pool_mask
        with suppress(SeenError):
            model(**forward_arguments(model, batch.inputs))
        missing = [site for site, _ in self._modules if site not in self._pooled]
        if missing:
            raise InputError(f"the forward pass did not reach {', '.join(missing)}")
        return self._pooled

    def _hook(self, site: str) -> Callable[[Any, Any, Any], None]:
        def read_state(_module: Any, _args: Any, output: Any) -> None:
            if self._mask is None:
                raise InputError("SiteReader hooks ran outside read()")
            state = block_output(output).detach()
            self._pooled[site] = self._pool(state, self._mask, site)
            if len(self._pooled) == len(self._modules):
                raise SeenError

        return read_state


def pool_finite(
    states: torch.Tensor,
    mask: torch.Tensor,
    site: str,
    *,
    mode: Pooling,
    n_threads: int | None = None,
) -> NDArray[np.float64]:
    """Pool as `pool_states` does; a state that is not finite names site and row."""
    try:
        pooled = pool_states(states, mask, mode=mode, n_threads=n_threads)
    except InputError:
        _raise_non_finite(states, mask, site)
        raise
    if not np.isfinite(pooled).all():
        _raise_non_finite(states, mask, site)
    return pooled


def _raise_non_finite(state: torch.Tensor, mask: torch.Tensor, site: str) -> None:
    """Name the first row with a bad state, if there is one."""
    bad = (~torch.isfinite(state).all(dim=-1)) & mask.to(state.device)
    rows = torch.nonzero(bad.any(dim=1))
    if len(rows):
        raise NonFiniteStateError(site, int(rows[0]))


def pool_states(
    states: torch.Tensor, mask: torch.Tensor, *, mode: Pooling, n_threads: int | None = None
) -> NDArray[np.float64]:
    """Pool token states to one vector per row, on the device they are on.

    `lens.pooling.pool`: the C core on the CPU, torch elsewhere; only the result leaves the device.
    """
    if n_threads is None and states.numel() < _ALONE:
        n_threads = 1
    found = pooling.pool(states.contiguous(), mask, mode=mode, n_threads=n_threads)
    return np.asarray(host(found), dtype=np.float64)


BATCHES, UNIT = "batches", ".unit"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished batch: its rows, their pooled states, and the batch size after it."""

    label: str
    rows: list[int]
    pooled: dict[str, NDArray[np.float64]]
    size: int


class CaptureJournal(WorkDir):
    """Work folder of a probe: finished batches, so that a killed probe can resume.

    Work comes in *units* in a fixed order: a window of rows of one language, or in layer-by-layer
    mode a block. The finished batches of the unit at hand are logged; when the unit is done its
    statistics are written as a whole, and the log begins anew.

    Parameters
    ----------
    path : Path
        Where it is, or will be.
    resume : bool
        Resume the probe in it, if it is the same.
    force : bool
        Without ``resume``, discard what is in it.

    Raises
    ------
    InputError
        If there is an unfinished probe in the folder and neither was given.
    """

    def __init__(self, path: Path, *, resume: bool = False, force: bool = False) -> None:
        super().__init__(path, "probe", keeps="finished batches")
        self.check(resume=resume, force=force)
        self._resume, self._force = resume, force
        self._batches: Log | None = None

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Begin, or resume; True when there was an unfinished probe. As `WorkDir.open`."""
        return self.open(identity, resume=self._resume, force=self._force)

    def statistics(self, unit: str) -> tuple[Arrays, dict[str, Any]] | None:
        """Statistics of a finished unit, and what was noted beside them; None without any.

        Raises
        ------
        DamagedError
            If they are not as they were written.
        """
        found = self.load(f"{unit}{UNIT}")
        return None if found is None else (load(found.data), found.fields)

    def open_unit(self, unit: str) -> Iterator[Finished]:
        """Begin a unit; yield the batches of it that were finished before, in their order.

        Hidden states, of which the batches are pooled, are not waited for: of another boot of the
        machine none counts.
        """
        self._batches = self.log(BATCHES, unit=unit, boot=boot_id())
        return map(_batch, self._batches.records())

    def note(
        self, label: str, rows: Sequence[int], pooled: Mapping[str, NDArray[np.float64]], size: int
    ) -> None:
        """Log a finished batch of the unit at hand.

        Raises
        ------
        InputError
            If the disk is full; the batches before are kept.
        """
        if self._batches is None:
            raise InputError("a batch was noted outside a unit")
        widths = {site: values.shape[1] for site, values in pooled.items()}
        fields = {"label": label, "rows": list(rows), "widths": widths, "size": size}
        self._batches.append(
            fields, b"".join(np.ascontiguousarray(values).data for values in pooled.values())
        )

    def finish_unit(self, unit: str, arrays: Arrays, fields: Mapping[str, Any]) -> None:
        """Write the statistics of a finished unit."""
        self.save(f"{unit}{UNIT}", fields, save(arrays))


def _batch(record: Record) -> Finished:
    fields, at = record.fields, 0
    values, n = np.frombuffer(record.data, np.float64), len(record.fields["rows"])
    pooled = {}
    for site, width in fields["widths"].items():
        pooled[site] = values[at : at + n * width].reshape(n, width)
        at += n * width
    return Finished(fields["label"], fields["rows"], pooled, fields["size"])


@dataclass(frozen=True, slots=True)
class RowSet:
    """Encoded rows under one label, usually a language.

    ``offset`` is the id of the first row.
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


Step = Callable[[Batch, RowSet, list[int]], Pooled]


class Keeper(Protocol):
    """Where pooled states are kept, such as `lens.space.state_store.StateStoreWriter`."""

    def write(self, language: str, site: str, start: int, values: NDArray[np.float64]) -> None:
        """Store consecutive rows of a language."""

    def flush(self) -> None:
        """Wait until they are on the disk."""


@dataclass(slots=True)
class Gathered:
    """Statistics per label and site, and pooled states where they are requested."""

    moments: dict[str, dict[str, StreamingMoments]]
    keeper: Keeper | None = None
    states: dict[str, dict[str, NDArray[np.float64]]] | None = None

    def take(self, group: RowSet, start: int, pooled: Mapping[str, NDArray[np.float64]]) -> None:
        """Add the states of consecutive rows."""
        for site, values in pooled.items():
            self.moments[group.label][site].update(values, group.offset + start)
            if self.keeper is not None:
                self.keeper.write(group.label, site, start, values)
            if self.states is not None:
                self.states[group.label][site][start : start + len(values)] = values

    def arrays(self, labels: Sequence[str], sites: Sequence[str]) -> Arrays:
        """Statistics as arrays, to be written."""
        return pooling.table_to_arrays(
            {label: {site: self.moments[label][site] for site in sites} for label in labels}
        )

    def restore(self, arrays: Arrays) -> None:
        """Restore statistics from `arrays`."""
        for label, found in pooling.table_from_arrays(arrays).items():
            self.moments[label].update(found)


@dataclass(slots=True)
class Job:
    """Constants of a capture, and the batch size, which may shrink."""

    model: Any
    limit: BatchLimit
    pad_id: int
    side: Literal["left", "right"]
    gathered: Gathered
    bar: Any
    journal: CaptureJournal | None = None
    _pending: Iterator[Finished] = field(default_factory=lambda: iter(()))
    _next: Finished | None = None

    def begin(self, unit: str) -> None:
        """Start a unit; batches of it that were finished before are used by `window`."""
        if self.journal is not None:
            self._pending = self.journal.open_unit(unit)
            self._next = next(self._pending, None)

    def end(self, name: str, labels: Sequence[str], sites: Sequence[str]) -> None:
        """Write the statistics of a unit that is done."""
        if self.journal is None:
            return
        if self.gathered.keeper is not None:
            self.gathered.keeper.flush()
        arrays = self.gathered.arrays(labels, sites)
        self.journal.finish_unit(name, arrays, {"size": self.limit.rows})

    def window(self, group: RowSet, window: range, step: Step) -> Pooled:
        """Pooled states of the rows of a window, in their order."""
        order = group.by_length(window)
        lengths = [len(group.rows[i].ids) for i in order]
        pooled: Pooled = {}
        done = 0
        while done < len(order):
            states: Pooled | None
            found = self._found(group, order, done)
            if found is not None:
                chosen, states, self.limit.rows = found.rows, found.pooled, found.size
            else:
                chosen = order[done : done + self.limit.count(lengths, done)]
                states = self._attempt(group, chosen, step)
                if states is None:
                    continue
                if self.journal is not None:
                    self.journal.note(group.label, chosen, states, self.limit.rows)
            places = np.asarray(chosen) - window.start
            for site, values in states.items():
                if site not in pooled:
                    pooled[site] = np.empty((len(window), values.shape[1]))
                pooled[site][places] = values
            done += len(chosen)
            self.bar.update(len(chosen))
        return pooled

    def _found(self, group: RowSet, order: list[int], done: int) -> Finished | None:
        """Return the next batch finished before, if it is the one that would be run now."""
        found = self._next
        if found is None:
            return None
        if found.label != group.label or found.rows != order[done : done + len(found.rows)]:
            return None
        self._next = next(self._pending, None)
        return found

    def _attempt(self, group: RowSet, chosen: list[int], step: Step) -> Pooled | None:
        """Run one batch; on running out of memory halve the batch size and return None."""
        longest = max(len(group.rows[i].ids) for i in chosen)
        try:
            batch = pad(
                [group.rows[i] for i in chosen],
                pad_id=self.pad_id,
                side=self.side,
                device=device_of(self.model),
            )
            return step(batch, group, chosen)
        except NonFiniteStateError as error:
            where = f" of {group.label}" if group.label else ""
            raise InputError(
                f"the state at {error.site} for row {chosen[error.row]}{where} is not finite (NaN "
                "or infinity); load the model in float32 or bfloat16, or check its weights"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(chosen) == 1:
                raise InputError(
                    f"out of memory with a single row of {longest} tokens; use max_tokens, a "
                    "smaller dtype, another device, or load the model layer by layer"
                ) from error
        # Outside the handler: the traceback would keep the failed batch's tensors alive.
        self.limit.rows = max(len(chosen) // 2, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def run_whole(job: Job, sets: Sequence[RowSet], reader: SiteReader) -> None:
    """Send every set through the whole model, all sites at once."""

    def step(batch: Batch, _group: RowSet, _chosen: list[int]) -> Pooled:
        return reader.read(job.model, batch)

    with reader:
        for group in sets:
            counted = 0
            found = job.journal.statistics(group.label) if job.journal is not None else None
            if found is not None:
                job.gathered.restore(found[0])
                job.limit.rows = found[1]["size"]
                counted = job.gathered.moments[group.label][reader.sites[0]].count
                job.bar.update(counted)
            for window in group.windows():
                if window.start < counted:
                    continue
                job.begin(f"{group.label}:{window.start}")
                job.gathered.take(group, window.start, job.window(group, window, step))
                job.end(group.label, [group.label], reader.sites)


class SpilledStates:
    """Hidden states of the real tokens of all rows, in two files that take turns."""

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
        """Store states for `read` of the same turn."""
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
            f"{error.strerror}; free some space (TMPDIR names another place) and continue "
            "with --resume, or probe fewer rows"
        )


def run_layers(
    job: Job,
    sets: Sequence[RowSet],
    parts: DecoderParts,
    *,
    sites: Sequence[str],
    pool: Pool,
) -> None:
    """Send every set through block after block, up to the last one needed."""
    store = store_of(job.model)
    hold = store.block if store is not None else lambda _index: nullcontext()
    folder = job.journal.path if job.journal is not None else None
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
            found = job.journal.statistics(name) if job.journal is not None else None
            if found is not None:
                job.gathered.restore(found[0])
                job.limit.rows = found[1]["size"]
                job.bar.update(sum(len(group.rows) for group in sets))
                continue
            layer = _Layer(job.model, parts, index, form, spilled, turn, wanted, pool)
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


@dataclass(slots=True)
class _Layer:
    """One block, or the final norm, run by itself."""

    model: Any
    parts: DecoderParts
    index: int | None
    form: Any
    spilled: SpilledStates
    turn: int
    sites: Sequence[str]
    pool: Pool
    _entry: Tensor | None = None
    _state: Tensor | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make the blocks before pass their input through, and stop after this one."""
        norm = self.parts.final_norm
        module = norm if self.index is None else self.parts.blocks[self.index]
        if module is None:
            raise InputError("the model has no final norm to run")
        before = list(self.parts.blocks)[: self.index]
        with (
            module.register_forward_pre_hook(self._put_in, with_kwargs=True),
            module.register_forward_hook(self._take_out),
            passing_through(before, self.form),
        ):
            yield

    def step(self, batch: Batch, group: RowSet, chosen: list[int]) -> Pooled:
        """Run a batch, store the resulting states, and pool them."""
        places = batch.attention_mask.bool().cpu()
        self._entry = self._state = None
        if self.turn:
            entry = self.spilled.read(self.turn, group, chosen, places)
            self._entry = entry.to(batch.input_ids.device)
        with suppress(SeenError):
            self.model(**forward_arguments(self.model, batch.inputs))
        state: Tensor | None = self._state
        if state is None:
            raise InputError("the forward pass did not reach the block it was for")
        pooled: Pooled = {}
        if self.sites:
            values = self.pool(state, batch.pool_mask, self.sites[0])
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
        raise SeenError


def _needed(site: str, parts: DecoderParts) -> int:
    """Last block that decides the state at a site."""
    index = block_index(site)
    return len(parts.blocks) - 1 if index is None else index


def _norm_needed(sites: Sequence[str], parts: DecoderParts) -> bool:
    return FINAL in sites and parts.final_norm is not None


def _sites_after(index: int | None, sites: Sequence[str], parts: DecoderParts) -> list[str]:
    """Sites whose state is the output of a block, or of the final norm."""
    if index is None:
        return [FINAL]
    found = [block_site(index)] if block_site(index) in sites else []
    without_norm = parts.final_norm is None and index == len(parts.blocks) - 1
    return [*found, FINAL] if FINAL in sites and without_norm else found


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """Statistics of the pooled states of one set of rows.

    Attributes
    ----------
    sites : tuple of str
        Where states were read.
    moments : dict
        Site to `lens.pooling.StreamingMoments`.
    n_rows, n_tokens, n_truncated : int
        Rows read, tokens run, and rows that were cut to ``max_tokens``.
    batch_size : int
        Batch size at the end (reduced after running out of memory).
    states : dict or None
        Site to (n, d) float64 pooled states in the order of the rows, if requested.
    """

    sites: tuple[str, ...]
    moments: dict[str, StreamingMoments]
    n_rows: int
    n_tokens: int
    n_truncated: int
    batch_size: int
    states: dict[str, NDArray[np.float64]] | None = None


@takes(CaptureSettings)
def capture(
    model: Any,
    tokenizer: Any,
    rows: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    keep_states: bool = False,
    label: str = "",
    settings: CaptureSettings,
) -> CaptureResult:
    """Run rows through a model and keep the moments of their pooled states.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    rows : sequence of str
        Text, one row each.
    prompts : sequence of str, optional
        User prompts that assistant rows follow.
    keep_states : bool
        Return the pooled states too, for measures that need every row.
    label : str
        Language name for the progress bar and for messages.

    Returns
    -------
    CaptureResult
        Moments per site.

    Raises
    ------
    InputError
        When a site does not exist, a row cannot be used, or a state is not finite.
    """
    asked = None if prompts is None else {label: prompts}
    found = capture_sets(
        model, tokenizer, {label: rows}, prompts=asked, keep_states=keep_states, settings=settings
    )
    return found[label]


@takes(CaptureSettings)
def capture_sets(
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Sequence[str]],
    *,
    prompts: Mapping[str, Sequence[str]] | None = None,
    keep_states: bool = False,
    keeper: Keeper | None = None,
    journal: CaptureJournal | None = None,
    settings: CaptureSettings,
) -> dict[str, CaptureResult]:
    """Capture several sets of rows, usually one a language, with labels as in `capture`.

    Every pooled state goes to the ``keeper``, in the order of the rows. With a ``journal`` finished
    batches are kept on disk, and a killed run resumes to the same bits.
    """
    pooling, side, n_threads = settings.pooling, settings.padding_side, settings.n_threads
    parts = locate(model, blocks=settings.blocks)
    names = resolve_sites(settings.sites, len(parts.blocks))
    if side == "left" and looks_ahead(model):
        raise InputError("an encoder counts positions from the left: use padding_side='right'")
    sets = [
        _encoded(tokenizer, label, texts, (prompts or {}).get(label), parts, model, settings)
        for label, texts in rows.items()
    ]
    by_layer = settings.layer_by_layer
    by_layer = store_of(model) is not None if by_layer is None else by_layer
    if store_of(model) is not None and not by_layer:
        raise InputError("the model was loaded layer by layer, and can only be run so")
    limit = _limit(settings, model, parts, sets, names)
    gathered = Gathered(
        {group.label: {site: StreamingMoments(parts.width) for site in names} for group in sets},
        keeper,
        {g.label: {s: np.empty((len(g.rows), parts.width)) for s in names} for g in sets}
        if keep_states
        else None,
    )
    total = None if by_layer else sum(len(group.rows) for group in sets)
    text = f"Capturing {sets[0].label if len(sets) == 1 else ''}".strip()
    drawn = bar(total, text, unit="row", drawn=settings.progress)
    job = Job(model, limit, pad_id_of(tokenizer), side, gathered, drawn, journal)
    if journal is not None:
        identity = _identity(model, sets, names, limit, by_layer, settings)
        if journal.begin(identity):
            say(f"resuming the unfinished probe in {journal.path}")
    with drawn, evaluating(model), journal or nullcontext():
        if by_layer:
            pool: Pool = partial(pool_finite, mode=pooling, n_threads=n_threads)
            run_layers(job, sets, parts, sites=names, pool=pool)
        else:
            run_whole(job, sets, SiteReader(parts, names, pooling=pooling, n_threads=n_threads))
    return {group.label: _result(group, names, job) for group in sets}


def _encoded(
    tokenizer: Any,
    label: str,
    texts: Sequence[str],
    prompts: Sequence[str] | None,
    parts: DecoderParts,
    model: Any,
    settings: CaptureSettings,
) -> RowSet:
    try:
        rows = encode(
            tokenizer,
            texts,
            role=settings.role,
            prompts=prompts,
            chat=settings.chat,
            max_tokens=settings.max_tokens,
            whole=looks_ahead(model),
        )
        check_rows(rows, parts, model)
    except InputError as error:
        raise InputError(f"{label}: {error}" if label else str(error)) from None
    return RowSet(label, rows, settings.row_offset)


def _limit(
    settings: CaptureSettings,
    model: Any,
    parts: DecoderParts,
    sets: Sequence[RowSet],
    names: Sequence[str],
) -> BatchLimit:
    if settings.max_memory is None:
        return batch_limit(settings.batch_size)
    window = min(WINDOW, max(len(group.rows) for group in sets))
    limit = size_in_bytes(settings.max_memory)
    tokens = tokens_within(limit, model, parts, sites=len(names), rows=window)
    require_room_for(max(len(row.ids) for group in sets for row in group.rows), tokens)
    return batch_limit(settings.batch_size, tokens)


def _identity(
    model: Any,
    sets: Sequence[RowSet],
    names: Sequence[str],
    limit: BatchLimit,
    by_layer: bool,
    settings: CaptureSettings,
) -> dict[str, Any]:
    """Everything that decides the bits of the result."""
    return {
        "rows": {
            group.label: sha256_json([(r.ids, r.pool_start, r.pool_stop) for r in group.rows])
            for group in sets
        },
        "row_offset": sets[0].offset,
        "sites": list(names),
        "pooling": settings.pooling,
        "batch": [limit.rows, limit.tokens],
        "padding_side": settings.padding_side,
        "layer_by_layer": by_layer,
        "model": model_fingerprint(model)["weights_sha256"],
        "dtype": str(model.dtype),
        "device": device_of(model).type,
        "attention": getattr(text_config(model), "_attn_implementation", None),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _result(group: RowSet, names: tuple[str, ...], job: Job) -> CaptureResult:
    kept = job.gathered.states
    return CaptureResult(
        sites=names,
        moments=job.gathered.moments[group.label],
        n_rows=len(group.rows),
        n_tokens=sum(len(row.ids) for row in group.rows),
        n_truncated=sum(row.truncated for row in group.rows),
        batch_size=job.limit.rows,
        states=None if kept is None else kept[group.label],
    )
