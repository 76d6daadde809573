"""Memory of a training run, phase by phase: one short function each, which says what it counts.

The phases follow `lens.lsm.LensTrainer` from loading to saving; whoever changes what is held when
changes the function of that phase. Weights of a checkpoint that is loaded in its own dtype are
mapped from its files, so what they take is what has been touched and not been given back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lens.planning.models import Work
from lens.planning.work import Step

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
    forward: Work
    step: Step
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
