"""Search the settings of merges on validation questions, with Optuna."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lens.errors import MissingExtraError
from lens.world.transfer.config import TransferStudy
from lens.world.transfer.judging import Judged
from lens.world.transfer.systems import Merge, Values, space, start

Tried = Callable[[Merge, Values], Judged]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a merge must keep.

    Attributes
    ----------
    pivot : float
        Least share of right answers in the pivot.
    perplexity : float
        Largest perplexity of the language's text.
    """

    pivot: float
    perplexity: float

    def misses(self, judged: Judged) -> tuple[float, float]:
        """How far it is outside; 0 or less is inside."""
        return self.pivot - judged.pivot, judged.perplexity / self.perplexity - 1


@dataclass(frozen=True, slots=True)
class Trial:
    """Settings and what they gave on validation questions."""

    values: Values
    judged: Judged


def search(
    merge: Merge,
    study: TransferStudy,
    *,
    judge: Tried,
    bounds: Bounds,
    seed: int,
    best: Values | None,
) -> list[Trial]:
    """Try settings of a merge method, beginning where task arithmetic is at its best."""
    optuna = _optuna()
    ranges = space(merge, study)
    count = study.trials if len(ranges) <= 2 else round(study.trials * study.wider)
    going = optuna.create_study(direction="maximize")
    first = start(merge.kind, {"gamma": 1.0, "eta": 1.0} if best is None else best)
    going.enqueue_trial(
        {k: ranges[k].index(v) if isinstance(ranges[k], list) else v for k, v in first.items()}
    )
    found = []
    for number in range(count):
        own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        going.sampler = optuna.samplers.TPESampler(seed=own, multivariate=True, n_startup_trials=8)
        trial = going.ask()
        values = {name: _suggested(trial, name, taken) for name, taken in ranges.items()}
        judged = judge(merge, values)
        for name, miss in zip(("pivot", "perplexity"), bounds.misses(judged), strict=True):
            trial.set_constraint(name, miss)
        going.tell(trial, judged.share)
        found.append(Trial(values, judged))
    return found


def chosen(trials: Sequence[Trial], bounds: Bounds, *, text: bool = True) -> Trial:
    """Best trial within the bounds; where none is, the one that misses them least.

    Parameters
    ----------
    text : bool
        Ask for the bound on perplexity too.
    """

    def miss(trial: Trial) -> float:
        pivot, perplexity = bounds.misses(trial.judged)
        return max(pivot, 0.0) + (max(perplexity, 0.0) if text else 0.0)

    return min(trials, key=lambda t: (miss(t), -t.judged.share, -t.judged.pivot))


def _suggested(trial: Any, name: str, taken: Any) -> Any:
    if isinstance(taken, list):
        return taken[trial.suggest_categorical(name, list(range(len(taken))))]
    return float(trial.suggest_float(name, *taken))


def _optuna() -> Any:
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtraError("optuna", "tune", "searching settings")
    found: Any = importlib.import_module("optuna")
    found.logging.set_verbosity(found.logging.WARNING)
    return found
