"""Run rows through a model and keep only statistics of their pooled states."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from lens.errors import InputError
from lens.models.blocks import DecoderParts, device_of, evaluating, locate, text_config
from lens.models.chat import ChatOptions, EncodedRow, Role, encode, pad, pad_id_of
from lens.models.pooling import NonFiniteStateError, Pooled, Pooling, SiteReader
from lens.models.sites import SiteSpec, resolve_sites
from lens.progress import shown

if TYPE_CHECKING:
    from lens.stats import StreamingMoments

# Rows are sorted by length inside windows of this many, and enter the statistics window by window
# in their own order, so that the batch size never changes which numbers are added to which.
WINDOW = 256
AUTO_BATCH = 32


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """Statistics of the pooled states of one set of rows.

    Attributes
    ----------
    sites : tuple of str
        Where states were read.
    moments : dict
        Site to `lens.stats.StreamingMoments`.
    n_rows, n_tokens, n_truncated : int
        Rows read, tokens run, and rows that were cut to ``max_tokens``.
    batch_size : int
        Batch size at the end (smaller than asked for after running out of memory).
    states : dict or None
        Site to (n, d) float64 pooled states in the order of the rows, when they were asked for.
    """

    sites: tuple[str, ...]
    moments: "dict[str, StreamingMoments]"
    n_rows: int
    n_tokens: int
    n_truncated: int
    batch_size: int
    states: dict[str, NDArray[np.float64]] | None = None


@dataclass(slots=True)
class _Job:
    """What stays the same over the windows of one capture, and the batch size that may shrink."""

    model: Any
    rows: list[EncodedRow]
    reader: SiteReader
    size: int
    pad_id: int
    side: Literal["left", "right"]
    label: str
    bar: Any


def capture(
    model: Any,
    tokenizer: Any,
    rows: Sequence[str],
    *,
    sites: SiteSpec = "all",
    pooling: Pooling = "mean",
    role: Role = "text",
    prompts: Sequence[str] | None = None,
    chat: ChatOptions | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    row_offset: int = 0,
    keep_states: bool = False,
    on_states: Callable[[str, int, NDArray[np.float64]], None] | None = None,
    label: str = "",
    blocks: str | None = None,
    padding_side: Literal["left", "right"] = "right",
    n_threads: int | None = None,
    progress: bool | None = None,
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
    sites : str, int or sequence
        Where to read, see `lens.models.resolve_sites`.
    pooling : str
        ``"mean"``, ``"last"`` or ``"weighted"`` over the positions of the role.
    role : str
        ``"text"``, ``"user"`` or ``"assistant"``, see `lens.models.encode`.
    prompts : sequence of str, optional
        User prompts that assistant rows follow.
    chat : ChatOptions, optional
        Template options.
    batch_size : int or "auto"
        Rows at once; halved, keeping finished work, when memory runs out.
    max_tokens : int, optional
        Longest row in tokens; longer ones are cut and counted.
    row_offset : int
        Id of the first row, when the rows are one shard of a larger set.
    keep_states : bool
        Return the pooled states too, for measures that need every row.
    on_states : callable, optional
        Called with site, position of the first row and the (n, d) states of consecutive rows.
    label : str
        Language name for the progress bar and for messages.
    blocks : str, optional
        Dotted name of the block list, when `lens.models.locate` cannot find it.
    padding_side : str
        ``"right"`` or ``"left"``; the result is the same to rounding.
    n_threads : int, optional
        Threads of the C core.
    progress : bool, optional
        Show a progress bar; by default only on a terminal.

    Returns
    -------
    CaptureResult
        Moments per site.

    Raises
    ------
    InputError
        When a site does not exist, a row cannot be used, or a state is not finite.
    """
    from lens.stats import StreamingMoments

    parts = locate(model, blocks=blocks)
    names = resolve_sites(sites, len(parts.blocks))
    try:
        encoded = encode(
            tokenizer, rows, role=role, prompts=prompts, chat=chat, max_tokens=max_tokens
        )
        check_rows(encoded, parts, model)
    except InputError as error:
        raise InputError(f"{label}: {error}" if label else str(error)) from None
    moments = {site: StreamingMoments(parts.width) for site in names}
    kept = {site: np.empty((len(encoded), parts.width)) for site in names} if keep_states else None
    drawn = shown() if progress is None else progress
    bar = tqdm(total=len(rows), desc=f"Capturing {label}".strip(), unit="row", disable=not drawn)
    reader = SiteReader(parts, names, pooling=pooling, n_threads=n_threads)
    size = _batch_size(batch_size)
    job = _Job(model, encoded, reader, size, pad_id_of(tokenizer), padding_side, label, bar)
    with reader, bar, evaluating(model):
        for start, pooled in _windows(job):
            for site, states in pooled.items():
                moments[site].update(states, row_offset + start)
                if on_states is not None:
                    on_states(site, start, states)
                if kept is not None:
                    kept[site][start : start + len(states)] = states
    return CaptureResult(
        sites=names,
        moments=moments,
        n_rows=len(encoded),
        n_tokens=sum(len(row.ids) for row in encoded),
        n_truncated=sum(row.truncated for row in encoded),
        batch_size=job.size,
        states=kept,
    )


def _windows(job: _Job) -> Iterator[tuple[int, Pooled]]:
    """Yield the pooled states of consecutive rows, window by window."""
    for start in range(0, len(job.rows), WINDOW):
        window = range(start, min(start + WINDOW, len(job.rows)))
        order = sorted(window, key=lambda i: (len(job.rows[i].ids), i))
        pooled: Pooled = {}
        done = 0
        while done < len(order):
            chosen = order[done : done + job.size]
            states = _read(job, chosen)
            if states is None:
                continue
            places = np.asarray(chosen) - start
            for site, values in states.items():
                if site not in pooled:
                    pooled[site] = np.empty((len(window), values.shape[1]))
                pooled[site][places] = values
            done += len(chosen)
            job.bar.update(len(chosen))
        yield start, pooled


def _read(job: _Job, chosen: list[int]) -> Pooled | None:
    """Run one batch; on running out of memory halve the batch size and return None."""
    batch = pad(
        [job.rows[i] for i in chosen],
        pad_id=job.pad_id,
        side=job.side,
        device=device_of(job.model),
    )
    try:
        return job.reader.read(job.model, batch)
    except NonFiniteStateError as error:
        where = f" of {job.label}" if job.label else ""
        raise InputError(
            f"the state at {error.site} for row {chosen[error.row]}{where} is not finite (NaN or "
            "infinity); load the model in float32 or bfloat16, or check its weights"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        if len(chosen) == 1:
            raise InputError(
                f"out of memory with a single row of {batch.input_ids.shape[1]} tokens; "
                "use max_tokens, a smaller dtype or another device"
            ) from error
    # Outside the handler: the traceback would keep the failed batch's tensors alive.
    job.size = max(len(chosen) // 2, 1)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _batch_size(batch_size: int | Literal["auto"]) -> int:
    if batch_size == "auto":
        return AUTO_BATCH
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected 'auto' or a number from 1")
    return batch_size


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
