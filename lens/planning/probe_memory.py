"""Memory of a probe, phase by phase: one short function each, which says what it counts.

The phases follow `lens probe` from loading to saving. Weights of a checkpoint that is loaded in its
own dtype are mapped from its files: they take what has been touched since they were last given
back, which the fingerprint of the model does at the beginning and at the end of a probe.
"""

from __future__ import annotations

from dataclasses import dataclass

from lens.planning.memory import Phase, phased

# While a batch is noted in the journal its pooled states are there as numbers, as bytes, with their
# check sum and with their length before them.
_JOURNAL_COPIES = 3
# While a space is saved: its arrays, their bytes for safetensors, and the file twice.
_FILE_COPIES = 4
# Pooled states stay in the heap between what batches free, in blocks below 32 MiB: so much of the
# latter was not used again, as measured with glibc (docs/planning.md).
_HELD = 1.0


@dataclass(frozen=True, slots=True)
class ProbeSizes:
    """Everything that decides the memory of a probe; bytes where nothing else is said.

    Attributes
    ----------
    weights, stored : int
        All weights in the working dtype, and as the files hold them.
    mapped : bool
        Whether the weights are used as they lie in the files.
    by_layer : bool
        Whether one block is held at a time.
    embedding, head : int
        Of these weights, the input embedding and the output head.
    used : int
        Weights of the blocks that are run, and what is around all blocks, the head excepted.
    block : int
        Weights of the largest block.
    activations, scattered : int
        The most that a batch takes, run through all blocks; of it, what lies in the heap.
    states : int
        Hidden states of the largest batch, which enter a block that is run by itself.
    pooled_batch, pooled_window : int
        Pooled states of a batch, and of a window of rows.
    moments : int
        Statistics of all sites and languages.
    results : int
        Means and variances made of them.
    file : int
        The space as it is written.
    tokenizer : int
        The tokenizer.
    """

    weights: int
    stored: int
    mapped: bool
    by_layer: bool
    embedding: int
    head: int
    used: int
    block: int
    activations: int
    scattered: int
    states: int
    pooled_batch: int
    pooled_window: int
    moments: int
    results: int
    file: int
    tokenizer: int


def probe_phases(s: ProbeSizes) -> tuple[Phase, ...]:
    """Memory of every phase, in the order of a probe."""
    each = {"load": loading(s), "probe": probing(s), "save": saving(s)}
    return phased({name: {"tokenizer": s.tokenizer, **parts} for name, parts in each.items()})


def loading(s: ProbeSizes) -> dict[str, int]:
    """Weights as they come in, and a run of four tokens; layer by layer that of one block.

    A conversion holds the files' pages beside its result; of a mapped embedding four rows are read,
    unless it is the output head too. Layer by layer the head is loaded once, to tell the model.
    """
    if s.by_layer and s.mapped:
        return {"weights": s.block}
    if s.by_layer:
        pages = _pages(s, max(s.block, s.head, s.embedding))
        return {"weights": _resident(s) + max(s.block, s.head), "pages of the files": pages}
    if s.mapped:
        return {"weights": s.weights - (s.embedding if s.head else 0)}
    return {"weights": s.weights, "pages of the files": s.stored}


def probing(s: ProbeSizes) -> dict[str, int]:
    """Rows through the model: weights that are used, the largest batch, a window of states."""
    if s.by_layer:
        weights, running = _resident(s) + s.block, s.activations + s.states
    else:
        weights, running = s.used if s.mapped else s.weights, s.activations
    pages = _pages(s, s.block) if s.by_layer and not s.mapped else 0  # before rows are run
    return {
        "weights": weights,
        "activations": max(running, pages, _JOURNAL_COPIES * s.pooled_batch),
        "pooled states": s.pooled_window + s.pooled_batch,
        "moments": s.moments,
        "freed, not given back": int(_HELD * s.scattered),
    }


def saving(s: ProbeSizes) -> dict[str, int]:
    """Statistics become a file in memory; mapped weights have been given back."""
    weights = _resident(s) if s.by_layer else s.weights
    return {
        "weights": 0 if s.mapped else weights,
        "moments": s.moments + s.results,
        "space, being written": _FILE_COPIES * s.file,
    }


def _resident(s: ProbeSizes) -> int:
    """Count what is held beside the block at hand, where blocks are run one by one."""
    return s.used - s.block


def _pages(s: ProbeSizes, part: int) -> int:
    """Bytes that a part of the weights takes in the files."""
    return s.stored * part // max(s.weights, 1)
