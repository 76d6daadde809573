"""Search all settings of a merge at once, on validation questions, with Optuna."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens.demo.transfer.spaces import Space, Steps, Values
from lens.experiments.tuning import require_optuna, sampler

_DIGITS = 6  # a multiple of a step is that number, not the nearest sum of binary fractions


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a merge does on validation questions, over the languages that are searched.

    Attributes
    ----------
    share : float
        Share of right answers in the language asked.
    pivot : float
        The same in the pivot.
    perplexity : float
        Of text in the language, over that of its own further pre-training.
    """

    share: float
    pivot: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a merge must keep.

    Attributes
    ----------
    pivot : float
        Least share of right answers in the pivot.
    perplexity : float
        Largest relative perplexity; infinite where it is not bounded.
    """

    pivot: float
    perplexity: float

    def miss(self, found: SearchResult) -> float:
        """How far it is outside: points of the pivot's share, plus the relative perplexity."""
        return max(self.pivot - found.pivot, 0.0) + max(found.perplexity / self.perplexity - 1, 0)


@dataclass(frozen=True, slots=True)
class MergeTrial:
    """Settings and what they gave on validation questions."""

    values: Values
    found: SearchResult


def search(
    space: Space,
    *,
    judge: Callable[[Values], SearchResult],
    bounds: Bounds,
    starts: Sequence[Values],
    trials: int,
    seed: int = 0,
) -> MergeTrial:
    """Choose settings: a number of trials, all settings changed together; the best within bounds.

    Parameters
    ----------
    space : dict of str to Steps or tuple
        What each setting may be.
    judge : callable
        Merges with some settings and asks validation questions.
    bounds : Bounds
        Settings within them come before those outside.
    starts : sequence of dict
        Tried first, as they are.
    trials : int
        In all, those of ``starts`` included.
    seed : int
        Of what is proposed.

    Raises
    ------
    MissingExtraError
        If Optuna is not installed.

    Notes
    -----
    Each trial is proposed from a seed of its own and the trials before it. A search that was cut
    off therefore proposes the same again, and finds what was judged in its journal.
    """
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposals = optuna.create_study(direction="maximize")
    for values in starts:
        proposals.enqueue_trial(_inside(space, values))
    made = []
    for number in range(trials):
        proposals.sampler = sampler(seed, number)
        trial = proposals.ask()
        values = {name: _suggested(trial, name, choice) for name, choice in space.items()}
        made.append(MergeTrial(values, judge(values)))
        trial.set_constraint("bounds", bounds.miss(made[-1].found))
        proposals.tell(trial, made[-1].found.share)
    return chosen(made, bounds)


def chosen(trials: Sequence[MergeTrial], bounds: Bounds) -> MergeTrial:
    """Best trial within the bounds; where none is, the one that misses them least."""
    return min(trials, key=lambda t: (bounds.miss(t.found), -t.found.share, -t.found.pivot))


def _suggested(trial: Any, name: str, choice: Steps | tuple[str, ...]) -> Any:
    if isinstance(choice, Steps):
        value = trial.suggest_float(name, choice.low, choice.high, step=choice.step)
        return round(value, _DIGITS)
    return trial.suggest_categorical(name, choice)


def _inside(space: Space, values: Mapping[str, Any]) -> Values:
    """Put numbers on the nearest step; what Optuna would refuse is no start."""
    found: Values = {}
    for name, choice in space.items():
        value = values[name]
        if isinstance(choice, Steps):
            steps = round((min(max(value, choice.low), choice.high) - choice.low) / choice.step)
            value = round(choice.low + steps * choice.step, _DIGITS)
        found[name] = value
    return found
