"""Select: how alike ability and languages are, tensor by tensor, with a null beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lens.arrays import to_dict
from lens.errors import InputError
from lens.maec.drawing import signs
from lens.maec.targets import Cut, Target
from lens.maec.work import Work
from lens.weights import compare, sum_of_squares

if TYPE_CHECKING:
    from lens.maec.stream import Stream

Float32 = NDArray[np.float32]
Part = Callable[[Work, Cut], Float32]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Ability and languages at one tensor.

    Attributes
    ----------
    cosine : float or None
        Of the flattened changes; None where one of them is zero.
    null : float or None
        The same after the signs of the ability's change were drawn anew.
    null_sd : float or None
        Standard deviation of that over all draws: √Σ(xy)² / (|x| |y|). A masked change is nearly
        orthogonal to anything; only a cosine of several times this size says something.
    ability, language : float
        Norms of the two changes.
    """

    cosine: float | None
    null: float | None
    null_sd: float | None
    ability: float
    language: float

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self)


def measure(
    stream: Stream,
    targets: Sequence[Target],
    seed: int,
    facts: dict[str, Any],
    *,
    ability: Part,
    language: Part,
) -> dict[str, Likeness]:
    """Compare two changes at every tensor, in one pass over the sources.

    Parameters
    ----------
    seed : int
        Of the null's signs.
    facts : dict
        What ``ability`` and ``language`` need to know.
    ability, language : callable
        The changes of a slice.

    Returns
    -------
    dict of str to Likeness
    """

    def sums(work: Work) -> list[float]:
        cut = work.cuts[0]
        x, y = ability(work, cut), language(work, cut)
        try:
            found = compare((x, None), (y, None))
        except InputError:
            raise work.blame(cut) from None
        drawn = x * signs(seed, work.target.name, cut.number, cut.size)
        null = compare((drawn, None), (y, None)).dot
        drawn *= y
        return [*found.squares, found.dot, null, sum_of_squares(drawn)]

    totals: dict[str, list[float]] = {t.name: [0.0] * 5 for t in targets if not t.copied}
    chosen = [t for t in targets if not t.copied]
    for piece, made in stream.map(sums, chosen, whole=False, label="Comparing", facts=facts):
        total = totals[piece.target.name]
        for k, value in enumerate(made):
            total[k] += value
    return {name: _likeness(*total) for name, total in totals.items()}


def _likeness(xx: float, yy: float, xy: float, null: float, variance: float) -> Likeness:
    size = math.sqrt(xx) * math.sqrt(yy)
    if size == 0:
        return Likeness(None, None, None, math.sqrt(xx), math.sqrt(yy))
    cosine = max(-1.0, min(1.0, xy / size))
    return Likeness(cosine, null / size, math.sqrt(variance) / size, math.sqrt(xx), math.sqrt(yy))
