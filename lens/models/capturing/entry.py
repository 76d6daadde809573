"""The two functions that capture: one set of rows, or several under one journal."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from lens.errors import InputError
from lens.models.batching import WINDOW, BatchLimit, batch_limit
from lens.models.blocks import DecoderParts, device_of, evaluating, locate, looks_ahead, text_config
from lens.models.blockwise import store_of
from lens.models.capturing.journal import Journal
from lens.models.capturing.layers import run_layers
from lens.models.capturing.rows import RowSet, check_rows
from lens.models.capturing.running import Gathered, Job, Keeper, run_whole
from lens.models.chat import ChatOptions, Role, encode, pad_id_of
from lens.models.fingerprint import model_fingerprint, sha256_json
from lens.models.limits import require_room_for, tokens_within
from lens.models.pooling import Pooling, SiteReader, check_pooling
from lens.models.sites import SiteSpec, resolve_sites
from lens.progress import say, shown
from lens.sizes import size_in_bytes
from lens.stats import StreamingMoments

Side = Literal["left", "right"]


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
    moments: dict[str, StreamingMoments]
    n_rows: int
    n_tokens: int
    n_truncated: int
    batch_size: int
    states: dict[str, NDArray[np.float64]] | None = None


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
    max_memory: str | int | None = None,
    row_offset: int = 0,
    keep_states: bool = False,
    label: str = "",
    blocks: str | None = None,
    padding_side: Side = "right",
    layer_by_layer: bool | None = None,
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
    max_memory : str or int, optional
        Limit for weights, activations and pooled states, such as ``"12GB"``: batches are made
        smaller to keep it, by an estimate (`lens.models.limits.tokens_within`).
    row_offset : int
        Id of the first row, when the rows are one shard of a larger set.
    keep_states : bool
        Return the pooled states too, for measures that need every row.
    label : str
        Language name for the progress bar and for messages.
    blocks : str, optional
        Dotted name of the block list, when `lens.models.locate` cannot find it.
    padding_side : str
        ``"right"`` or ``"left"``; the result is the same to rounding.
    layer_by_layer : bool, optional
        Run all rows through one block, then through the next, with the states between them in a
        temporary file. By default only for a model that was loaded so; the result is the same.
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
    return capture_sets(
        model,
        tokenizer,
        {label: rows},
        sites=sites,
        pooling=pooling,
        role=role,
        prompts=None if prompts is None else {label: prompts},
        chat=chat,
        batch_size=batch_size,
        max_tokens=max_tokens,
        max_memory=max_memory,
        row_offset=row_offset,
        keep_states=keep_states,
        blocks=blocks,
        padding_side=padding_side,
        layer_by_layer=layer_by_layer,
        n_threads=n_threads,
        progress=progress,
    )[label]


def capture_sets(
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Sequence[str]],
    *,
    sites: SiteSpec = "all",
    pooling: Pooling = "mean",
    role: Role = "text",
    prompts: Mapping[str, Sequence[str]] | None = None,
    chat: ChatOptions | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    max_memory: str | int | None = None,
    row_offset: int = 0,
    keep_states: bool = False,
    keeper: Keeper | None = None,
    journal: Journal | None = None,
    blocks: str | None = None,
    padding_side: Side = "right",
    layer_by_layer: bool | None = None,
    n_threads: int | None = None,
    progress: bool | None = None,
) -> dict[str, CaptureResult]:
    """Capture several sets of rows, usually one a language; parameters as in `capture`.

    Parameters
    ----------
    rows, prompts : mapping
        Label to what `capture` takes.
    keeper : Keeper, optional
        Gets every pooled state, in the order of the rows.
    journal : Journal, optional
        Keeps finished batches on disk; a run that was killed goes on where it was, to the same
        bits.

    Returns
    -------
    dict
        Label to result.

    Raises
    ------
    InputError
        As `capture`; or when the journal is of another run, or the disk is full.
    """
    check_pooling(pooling)
    parts = locate(model, blocks=blocks)
    names = resolve_sites(sites, len(parts.blocks))
    if padding_side == "left" and looks_ahead(model):
        raise InputError("an encoder counts positions from the left: use padding_side='right'")
    sets = [
        _encoded(tokenizer, label, texts, parts, model, role, (prompts or {}).get(label), chat,
                 max_tokens, row_offset)
        for label, texts in rows.items()
    ]  # fmt: skip
    by_layer = store_of(model) is not None if layer_by_layer is None else layer_by_layer
    if store_of(model) is not None and not by_layer:
        raise InputError("the model was loaded layer by layer, and can only be run so")
    limit = _limit(batch_size, max_memory, model, parts, sets, names)
    gathered = Gathered(
        {group.label: {site: StreamingMoments(parts.width) for site in names} for group in sets},
        keeper,
        {g.label: {s: np.empty((len(g.rows), parts.width)) for s in names} for g in sets}
        if keep_states
        else None,
    )
    drawn = shown() if progress is None else progress
    total = sum(len(group.rows) for group in sets)
    desc = f"Capturing {sets[0].label if len(sets) == 1 else ''}".strip()
    bar = tqdm(total=None if by_layer else total, desc=desc, unit="row", disable=not drawn)
    job = Job(model, limit, pad_id_of(tokenizer), padding_side, gathered, bar, journal)
    if journal is not None:
        identity = _identity(model, sets, names, pooling, limit, padding_side, by_layer)
        if journal.begin(identity):
            say(f"going on with the unfinished probe in {journal.folder}")
    with bar, evaluating(model), journal or nullcontext():
        if by_layer:
            run_layers(job, sets, parts, sites=names, pooling=pooling, n_threads=n_threads)
        else:
            run_whole(job, sets, SiteReader(parts, names, pooling=pooling, n_threads=n_threads))
    return {group.label: _result(group, names, job) for group in sets}


def _encoded(
    tokenizer: Any,
    label: str,
    texts: Sequence[str],
    parts: DecoderParts,
    model: Any,
    role: Role,
    prompts: Sequence[str] | None,
    chat: ChatOptions | None,
    max_tokens: int | None,
    row_offset: int,
) -> RowSet:
    try:
        rows = encode(
            tokenizer,
            texts,
            role=role,
            prompts=prompts,
            chat=chat,
            max_tokens=max_tokens,
            whole=looks_ahead(model),
        )
        check_rows(rows, parts, model)
    except InputError as error:
        raise InputError(f"{label}: {error}" if label else str(error)) from None
    return RowSet(label, rows, row_offset)


def _limit(
    batch_size: int | Literal["auto"],
    max_memory: str | int | None,
    model: Any,
    parts: DecoderParts,
    sets: Sequence[RowSet],
    names: Sequence[str],
) -> BatchLimit:
    if max_memory is None:
        return batch_limit(batch_size)
    window = min(WINDOW, max(len(group.rows) for group in sets))
    tokens = tokens_within(size_in_bytes(max_memory), model, parts, sites=len(names), rows=window)
    require_room_for(max(len(row.ids) for group in sets for row in group.rows), tokens)
    return batch_limit(batch_size, tokens)


def _identity(
    model: Any,
    sets: Sequence[RowSet],
    names: Sequence[str],
    pooling: str,
    limit: BatchLimit,
    side: str,
    by_layer: bool,
) -> dict[str, Any]:
    """Everything that decides the bits of the result."""
    return {
        "rows": {
            group.label: sha256_json([(r.ids, r.pool_start, r.pool_stop) for r in group.rows])
            for group in sets
        },
        "row_offset": sets[0].offset,
        "sites": list(names),
        "pooling": pooling,
        "batch": [limit.rows, limit.tokens],
        "padding_side": side,
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
