"""Memory of a job, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lens.planning.cost import StepCost
from lens.planning.model import BlockWork

# Python with torch, transformers and lens at work, before any weight: measured, Linux, torch 2.13.
LIBRARIES = 460_000_000
_FLOAT = 4
# Freed blocks below 32 MiB stay in the heap of the C library until others fit into their place.
# Shares of what was freed that were not used again, measured with glibc (docs/planning.md).
_HELD_OF_ACTIVATIONS = 0.25
_HELD_OF_OPTIMIZER = 0.9


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that decides the memory of a run; bytes where nothing else is said.

    Attributes
    ----------
    weights, stored : int
        All weights in the working dtype, and as the files hold them.
    mapped : bool
        Whether the weights are used as they lie in the files.
    kept, largest, largest_idle : int
        Weights of the trained band and what else training needs; the largest tensor of the model,
        and of those that training does not need.
    low_memory : bool
        Whether what is not needed is dropped as soon as it has been used.
    trained, largest_trained : int
        Trained elements, and those of the largest trained tensor.
    scattered : int
        Trained elements in tensors below 32 MiB.
    itemsize : int
        Bytes of a trained element in the model.
    adapters : bool
        Whether adapters are trained and not the weights themselves.
    states : int
        Cached states that stay in memory.
    forward : Work
        A batch of rows through the frozen model.
    step : Step
        A pass of a training step.
    passes : int
        Passes in a step.
    vocabulary_used : bool
        Whether a loss needs the output head.
    validation : bool
        Whether the best weights so far are kept.
    """

    weights: int
    stored: int
    mapped: bool
    kept: int
    largest: int
    largest_idle: int
    low_memory: bool
    trained: int
    largest_trained: int
    scattered: int
    itemsize: int
    adapters: bool
    states: int
    forward: BlockWork
    step: StepCost
    passes: int
    vocabulary_used: bool
    validation: bool


@dataclass(frozen=True, slots=True)
class Phase:
    """What is in memory during a part of a run.

    Attributes
    ----------
    name : str
        ``"load"``, ``"cache"``, ``"train"`` or ``"save"``; ``"load"``, ``"probe"`` or ``"save"``.
    parts : dict of str to int
        Bytes of each part.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def phases(sizes: Sizes) -> tuple[Phase, ...]:
    """Memory of every phase, in the order of a run."""
    return phased(
        {
            "load": loading(sizes),
            "cache": caching(sizes),
            "train": training(sizes),
            "save": saving(sizes),
        }
    )


def phased(each: Mapping[str, Mapping[str, int]]) -> tuple[Phase, ...]:
    """Phases of named parts, with the libraries in each and without what takes nothing."""
    return tuple(
        Phase(name, {p: size for p, size in {"libraries": LIBRARIES, **parts}.items() if size})
        for name, parts in each.items()
    )


def loading(s: Sizes) -> dict[str, int]:
    """Weights as they come in; a conversion holds the files' pages beside its result."""
    if s.mapped:
        return {"weights": s.largest if s.low_memory else s.weights}
    return {"weights": s.weights, "pages of the files": s.stored}


def caching(s: Sizes) -> dict[str, int]:
    """Rows through the whole frozen model; with low_memory one idle weight at a time."""
    if not s.low_memory:
        weights = s.weights
    elif s.mapped:
        weights = s.largest
    else:
        weights = s.kept + s.largest_idle
    return {"weights": weights, "cached states": s.states, "activations": s.forward.peak}


def training(s: Sizes) -> dict[str, int]:
    """Take steps of the band; moments exist from the first on, gradients while there are any."""
    gradients, passing = _pass(s)
    numbers = 3 if _masters(s) else 2
    freed = _HELD_OF_ACTIVATIONS * max(s.step.first.scattered, s.step.again.scattered)
    freed += _HELD_OF_OPTIMIZER * (numbers + 1) * _FLOAT * s.scattered
    return {
        **_held(s),
        "optimizer": numbers * _FLOAT * s.trained,
        "gradients": gradients,
        "activations": passing - gradients,
        "cached states": s.states,
        "freed, not given back": int(freed),
    }


def saving(s: Sizes) -> dict[str, int]:
    """Take the result out of the model; files are written one tensor at a time."""
    return {
        **_held(s),
        "trained weights, copied": s.trained * s.itemsize,
        "cached states": s.states,
    }


def _held(s: Sizes) -> dict[str, int]:
    """Weights beside the trained ones, and the copy that undoes training."""
    if not s.low_memory:
        held = s.weights
    else:
        held = s.kept + (s.largest_idle if s.vocabulary_used else 0)
    copied = 0 if s.low_memory else s.trained * s.itemsize
    adapters = s.trained * s.itemsize if s.adapters else 0
    best = s.trained * s.itemsize if s.validation else 0
    return {
        "weights": held,
        "adapters": adapters,
        "original of the trained weights": copied,
        "best weights so far": best,
    }


def _pass(s: Sizes) -> tuple[int, int]:
    """Gradients, and the most that they take together with activations or the update."""
    gradients = _FLOAT * s.trained
    backward = s.step.first.peak
    if s.passes > 1:
        backward = max(backward, gradients + s.step.again.peak)
    if _masters(s):  # 16-bit gradients are widened one by one
        backward = max(backward, gradients + s.trained * s.itemsize)
    update = gradients + 2 * _FLOAT * s.largest_trained
    return gradients, max(backward, update)


def _masters(s: Sizes) -> bool:
    return s.itemsize < _FLOAT


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
    each = {"load": loading_to_probe(s), "probe": probing(s), "save": saving_space(s)}
    return phased({name: {"tokenizer": s.tokenizer, **parts} for name, parts in each.items()})


def loading_to_probe(s: ProbeSizes) -> dict[str, int]:
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


def saving_space(s: ProbeSizes) -> dict[str, int]:
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
