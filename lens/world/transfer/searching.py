"""Search the settings of merges on validation questions, one setting at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lens.world.transfer.judging import Judged
from lens.world.transfer.systems import Merge, Values, axes, grid, start

Tried = Callable[[Values], Judged]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a merge must keep.

    Attributes
    ----------
    pivot : float
        Least share of right answers in the pivot.
    perplexity : float
        Largest perplexity of the language's text; infinite where it is not bounded.
    """

    pivot: float
    perplexity: float

    def miss(self, judged: Judged) -> float:
        """How far it is outside: points of the pivot's share, plus the relative perplexity."""
        return max(self.pivot - judged.pivot, 0.0) + max(judged.perplexity / self.perplexity - 1, 0)


@dataclass(frozen=True, slots=True)
class Trial:
    """Settings and what they gave on validation questions."""

    values: Values
    judged: Judged


def search(
    merge: Merge, *, judge: Tried, bounds: Bounds, k1: Sequence[float], best: Values | None
) -> Trial:
    """Choose settings: task arithmetic from a grid, others from there, one setting at a time.

    Parameters
    ----------
    merge : Merge
        Method and ability.
    judge : callable
        Merges with some settings and asks validation questions.
    bounds : Bounds
        Settings within them come before those outside.
    k1 : sequence of float
        Shares of key neurons that were trained alone.
    best : dict or None
        Settings of task arithmetic with the same ability and bounds, from which others begin.
    """
    if best is None:
        return chosen([Trial(values, judge(values)) for values in grid()], bounds)
    now = start(merge.kind, best)
    at = Trial(now, judge(now))
    for changes in axes(merge, now, k1):
        at = chosen([at, *_changed(at, changes, judge)], bounds)
    return at


def chosen(trials: Sequence[Trial], bounds: Bounds) -> Trial:
    """Best trial within the bounds; where none is, the one that misses them least."""
    return min(trials, key=lambda t: (bounds.miss(t.judged), -t.judged.share, -t.judged.pivot))


def _changed(at: Trial, changes: Sequence[Values], judge: Tried) -> Iterator[Trial]:
    for change in changes:
        values = {**at.values, **change}
        yield Trial(values, judge(values))
