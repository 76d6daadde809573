"""Measure one site of a space, on the states that a probe kept where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lens import metrics, resample
from lens.arrays import Float64
from lens.errors import InputError
from lens.evaluate.intervals import wilson
from lens.inspection.geometry import Geometry, language_geometry
from lens.inspection.results import (
    Alignment,
    Angles,
    Curve,
    Separation,
    SiteInspection,
    Spectrum,
)
from lens.resample.grams import Gram
from lens.resample.refits import STABLE, Refits
from lens.space import KeptStates, Space

if TYPE_CHECKING:
    from lens.resample import RankChoice

_SIZES = (
    1 / 64,
    1 / 32,
    1 / 16,
    1 / 8,
    1 / 4,
    1 / 2,
    1,
    2,
    4,
)  # of the rows there are, in the curve
LEAST = 4  # rows of a refit
_SMALL = 200  # refits of a size of the curve, and to disjoint rows


@dataclass(frozen=True, slots=True)
class Options:
    """How the states of a site are looked at."""

    joint: bool
    limit: int | None
    n_resamples: int
    n_permutations: int
    bound: float
    seed: int
    n_threads: int | None


def inspect_site(
    space: Space, states: KeptStates | None, site: str, options: Options
) -> SiteInspection:
    """Everything about one site."""
    noise, shape = space.noise(site), _geometry(space, site)
    try:
        fit = space.fit(site, agnostic="complement")
    except InputError as error:
        return SiteInspection(site, None, str(error), np.empty(0), float("nan"), shape)
    L, between = len(space.languages), float((fit.singular_values**2).sum())
    share = min(1.0, float(noise.mean()) * (L - 1) / between)
    rank, reason, sigma = fit.rank, fit.rank_reason, fit.singular_values
    if states is None:
        return SiteInspection(site, rank, reason, sigma, share, shape)
    gram = states.gram(site, limit=options.limit, n_threads=options.n_threads)
    if int(gram.counts.min()) < LEAST:
        return SiteInspection(site, rank, reason, sigma, share, shape)
    choice = _choice(gram, options)
    picked = _picked(states, site, gram)
    disjoint, matched = _disjoint(gram, choice.rank, options)
    return SiteInspection(
        site, choice.rank, choice.reason, sigma, share, shape,
        spectrum=_spectrum(gram, options), angles=_angles(gram, choice.rank, options),
        curve=_curve(gram, choice.rank, options), disjoint=disjoint, matched=matched,
        alignment=_alignment(states, picked, space.pivot, options),
        separation=_separation(states, picked, options),
    )  # fmt: skip


def _geometry(space: Space, site: str) -> Geometry | None:
    try:
        return language_geometry(space.means(site), languages=space.languages)
    except InputError:  # two equal languages: the reason is told where the rank would be
        return None


def _choice(gram: Gram, options: Options) -> RankChoice:
    return resample.choose_rank(
        gram, n_permutations=options.n_permutations, joint=options.joint, seed=options.seed,
        n_threads=options.n_threads,
    )  # fmt: skip


def _spectrum(gram: Gram, options: Options) -> Spectrum:
    null = resample.permutation_spectrum(
        gram, n_permutations=options.n_permutations, joint=options.joint, seed=options.seed,
        n_threads=options.n_threads,
    )  # fmt: skip
    high = null.quantiles(0.975)
    return Spectrum(null.singular_values, high, null.p_values, null.p_value, options.n_permutations)


def _angles(gram: Gram, rank: int, options: Options) -> Angles:
    found = resample.bootstrap(
        gram, rank=rank, n_resamples=options.n_resamples, joint=options.joint, seed=options.seed,
        n_threads=options.n_threads,
    )  # fmt: skip
    return _summed(found.angles, found.stable_share)


def _summed(angles: Float64, stable: float | None = None) -> Angles:
    """Sum up principal angles (R, r) given in radians."""
    largest = angles[:, -1]
    low, median, high = np.degrees(np.quantile(largest, (0.025, 0.5, 0.975))).tolist()
    share = float(np.mean(largest < STABLE)) if stable is None else stable
    each = tuple(np.degrees(np.median(angles, axis=0)).tolist())
    return Angles(median, low, high, share, len(largest), each)


def _curve(gram: Gram, rank: int, options: Options) -> Curve:
    n = int(gram.counts.min())
    sizes = sorted({max(LEAST, round(n * share)) for share in _SIZES})
    found = resample.stability_curve(
        gram, sizes, rank=rank, n_resamples=_SMALL, joint=options.joint, seed=options.seed,
        n_threads=options.n_threads,
    )  # fmt: skip
    median, low, high = (np.degrees(x) for x in (found.median, found.low, found.high))
    enough = rows_enough(sizes, high.tolist(), options.bound)
    return Curve(
        tuple(sizes), tuple(median.tolist()), tuple(low.tolist()), tuple(high.tolist()),
        options.bound, enough,
    )  # fmt: skip


def rows_enough(sizes: Sequence[int], high: Sequence[float], bound: float) -> int | None:
    """Rows from which an angle stays below a bound.

    Parameters
    ----------
    sizes : sequence of int
        Ascending.
    high : sequence of float
        The angle at each, such as its 97.5 % quantile.
    bound : float
        In the same unit.

    Returns
    -------
    int or None
        By a line in logarithms between the last size above the bound and the next one, rounded up;
        the first size if none is above, None if the last one is.

    Examples
    --------
    >>> rows_enough([100, 400], [20.0, 10.0], 14.2)
    199
    """
    above = [i for i, angle in enumerate(high) if angle >= bound]
    if not above:
        return int(sizes[0])
    i = above[-1]
    if i + 1 == len(sizes):
        return None
    x, y = np.log([sizes[i], sizes[i + 1]]), np.log([high[i], max(high[i + 1], 1e-12)])
    at = x[0] + (np.log(bound) - y[0]) / (y[1] - y[0]) * (x[1] - x[0])
    return min(int(np.ceil(np.exp(at) - 1e-9)), int(sizes[i + 1]))


def _disjoint(gram: Gram, rank: int, options: Options) -> tuple[Angles | None, Angles | None]:
    """Angles of fits to rows that no two languages share, and to as many parallel rows."""
    L, n = len(gram.counts), int(gram.counts[0])
    few = n // L
    if not options.joint or few < 2:
        return None, None
    rng = np.random.default_rng(options.seed)
    apart, together = np.zeros((_SMALL, L, n)), np.zeros((_SMALL, n))
    for r in range(_SMALL):
        drawn = rng.permutation(n)
        for language in range(L):
            apart[r, language, drawn[language * few : (language + 1) * few]] = 1 / few
        together[r, drawn[:few]] = 1 / few
    found = []
    for joint, weights in ((False, apart.reshape(_SMALL, -1)), (True, together)):
        refits = Refits(gram, joint=joint, n_threads=options.n_threads)
        angles = refits.angles(*refits.products(np.ascontiguousarray(weights)), rank)[0]
        found.append(_summed(angles))
    return found[0], found[1]


def _picked(states: KeptStates, site: str, gram: Gram) -> dict[str, Any]:
    """Return the stored states of the rows that the Gram matrix was made of."""
    return {
        code: np.ascontiguousarray(states.raw(site, code)[states.spread(code, int(n))])
        for code, n in zip(gram.languages, gram.counts.tolist(), strict=True)
    }


def _alignment(
    states: KeptStates, picked: dict[str, Any], pivot: str, options: Options
) -> tuple[Alignment, ...]:
    if not options.joint:
        return ()
    dtype = "bfloat16" if states.dtype == "bfloat16" else None
    out = []
    for code, other in picked.items():
        if code == pivot:
            continue
        found = metrics.mexa(
            picked[pivot], other, permutations=options.n_permutations, seed=options.seed,
            n_threads=options.n_threads, dtype=dtype,
        )  # fmt: skip
        low, high = wilson(round(found.score * found.n), found.n)
        null = float(np.quantile(found.null, 0.975))
        out.append(
            Alignment(code, found.score, low, high, null, found.p_value, found.variance,
                      found.pivot_variance, found.n)
        )  # fmt: skip
    return tuple(out)


def _separation(states: KeptStates, picked: dict[str, Any], options: Options) -> Separation:
    dtype = "bfloat16" if states.dtype == "bfloat16" else None
    found = metrics.separability(picked, n_threads=options.n_threads, dtype=dtype)
    right = int(np.trace(found.confusion))
    low, high = wilson(right, found.n)
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    most = np.argsort(-wrong, axis=None, kind="stable")[:5]
    pairs = [divmod(int(k), len(wrong)) for k in most]
    mistaken = tuple(
        (found.languages[a], found.languages[b], int(wrong[a, b])) for a, b in pairs if wrong[a, b]
    )
    return Separation(found.accuracy, low, high, found.n, 1 / len(picked), mistaken)
