"""Inspect a language space: what its statistics show, and what stored states add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens import metrics, resample
from lens.analysis.config import InspectSettings
from lens.analysis.geometry import LanguageGeometry, language_geometry
from lens.analysis.layer_band import LayerBand, LayerCurve, above_chance, crossing
from lens.analysis.results import (
    Alignment,
    Angles,
    Curve,
    Inspection,
    Separation,
    SiteInspection,
    SiteSpectrum,
)
from lens.arrays import Float64
from lens.errors import InputError
from lens.models.layers import FINAL
from lens.resample.bootstrap import STABLE, Refits
from lens.resample.gram import Gram
from lens.space.space import Space
from lens.space.state_store import StateStore
from lens.stats import wilson
from lens.utils.progress import progress
from lens.utils.settings import takes

if TYPE_CHECKING:
    from lens.resample.rank import RankChoice

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
    """How the states of a site are measured."""

    joint: bool
    limit: int | None
    n_resamples: int
    n_permutations: int
    bound: float
    seed: int
    n_threads: int | None

    @property
    def draws(self) -> dict[str, Any]:
        """Arguments that every resampling takes."""
        return {"joint": self.joint, "seed": self.seed, "n_threads": self.n_threads}


def inspect_site(
    space: Space, states: StateStore | None, site: str, options: Options
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
        site,
        choice.rank,
        choice.reason,
        sigma,
        share,
        shape,
        spectrum=_spectrum(gram, options),
        angles=_angles(gram, choice.rank, options),
        curve=_curve(gram, choice.rank, options),
        disjoint=disjoint,
        matched=matched,
        alignment=_alignment(states, picked, space.pivot, options),
        separation=_separation(states, picked, options),
    )


def _geometry(space: Space, site: str) -> LanguageGeometry | None:
    try:
        return language_geometry(space.means(site), languages=space.languages)
    except InputError:  # two equal languages: the reason stands where the rank would
        return None


def _choice(gram: Gram, options: Options) -> RankChoice:
    return resample.choose_rank(gram, n_permutations=options.n_permutations, **options.draws)


def _spectrum(gram: Gram, options: Options) -> SiteSpectrum:
    null = resample.permutation_spectrum(
        gram, n_permutations=options.n_permutations, **options.draws
    )
    high = null.quantiles(0.975)
    return SiteSpectrum(
        null.singular_values, high, null.p_values, null.p_value, options.n_permutations
    )


def _angles(gram: Gram, rank: int, options: Options) -> Angles:
    found = resample.bootstrap(gram, rank=rank, n_resamples=options.n_resamples, **options.draws)
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
    found = resample.stability_curve(gram, sizes, rank=rank, n_resamples=_SMALL, **options.draws)
    median, low, high = (np.degrees(x) for x in (found.median, found.low, found.high))
    enough = rows_enough(sizes, high.tolist(), options.bound)
    return Curve(
        tuple(sizes),
        tuple(median.tolist()),
        tuple(low.tolist()),
        tuple(high.tolist()),
        options.bound,
        enough,
    )


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


def _picked(states: StateStore, site: str, gram: Gram) -> dict[str, Any]:
    """Return the stored states of the rows that the Gram matrix was made of."""
    return {
        code: np.ascontiguousarray(states.raw(site, code)[states.spread(code, int(n))])
        for code, n in zip(gram.languages, gram.counts.tolist(), strict=True)
    }


def _alignment(
    states: StateStore, picked: dict[str, Any], pivot: str, options: Options
) -> tuple[Alignment, ...]:
    if not options.joint:
        return ()
    dtype = "bfloat16" if states.dtype == "bfloat16" else None
    out = []
    for code, other in picked.items():
        if code == pivot:
            continue
        found = metrics.mexa(
            picked[pivot],
            other,
            permutations=options.n_permutations,
            seed=options.seed,
            n_threads=options.n_threads,
            dtype=dtype,
        )
        low, high = wilson(round(found.score * found.n), found.n)
        null = float(np.quantile(found.null, 0.975))
        out.append(
            Alignment(
                code,
                found.score,
                low,
                high,
                null,
                found.p_value,
                found.variance,
                found.pivot_variance,
                found.n,
            )
        )
    return tuple(out)


def _separation(states: StateStore, picked: dict[str, Any], options: Options) -> Separation:
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


_HOW = (
    "lens probe … --keep-states DIR, then lens inspect SPACE --states DIR (in Python "
    "lens.probe(…, keep_states=DIR) and lens.inspect_space(space, DIR))"
)


@takes(InspectSettings)
def inspect_space(
    space: Space | str | Path,
    states: StateStore | str | Path | None = None,
    *,
    settings: InspectSettings,
) -> Inspection:
    """Look into a language space: what it holds, how certain that is, and what to make of it.

    Parameters
    ----------
    space : Space, str or Path
        A space or its file.
    states : StateStore, str or Path, optional
        Those that its probe kept. Without them there are singular values, ranks and geometry only;
        ``missing`` says how to get the rest.

    Returns
    -------
    Inspection
        With `to_dict` and a short table in notebooks; `lens.report` has figures,
        `print_inspection` and `save_inspection`.

    Raises
    ------
    InputError
        If states are not those of the space, or an argument is out of range.

    Notes
    -----
    Per site: rank and its reason (`lens.resample.choose_rank`), the permutation null of the
    singular values, principal angles between bootstrap refits and the fit, the same against the
    number of rows, MEXA with its null and the variance between sentences, and held-out accuracy of
    the nearest mean. Intervals of shares are Wilson's; those of accuracy take states as
    independent.

    References
    ----------
    Lens, arXiv:2410.04407; MEXA, arXiv:2410.05873; LSAR, arXiv:2401.05792.
    """
    found = space if isinstance(space, Space) else Space.load(space)
    kept = states if isinstance(states, StateStore | None) else StateStore(states)
    options = Options(
        joint=kept is not None and kept.parallel,
        **{f.name: getattr(settings, f.name) for f in fields(Options) if f.name != "joint"},
    )
    if kept is not None:
        kept.require_source(found.about)
    sites = tuple(
        inspect_site(found, kept, site, options)
        for site in progress(found.sites, "Inspecting", unit="site")
    )
    seen = None if kept is None else _rows_seen(kept, settings.limit)
    disjoint = None if seen is None or not options.joint else seen // len(found.languages)
    return Inspection(
        languages=found.languages,
        pivot=found.pivot,
        counts=found.counts,
        sites=sites,
        rows=seen,
        disjoint_rows=disjoint if disjoint and disjoint >= 2 else None,
        band=_band(sites),
        missing=_missing(found, kept, disjoint),
        about=_about(found, kept, options),
    )


def _band(sites: Sequence[SiteInspection]) -> LayerBand | None:
    """Curves over the block outputs; the final norm is no place to act on."""
    seen = [s for s in sites if s.alignment and s.separation is not None and s.site != FINAL]
    if not seen:
        return None
    chance = [1 / s.alignment[0].n for s in seen]
    means = [
        [float(np.mean([getattr(a, part) for a in s.alignment])) for s in seen]
        for part in ("score", "low", "high")
    ]
    aligned = LayerCurve(*(above_chance(values, chance) for values in means))
    separations = [s.separation for s in seen if s.separation is not None]
    chances = [s.chance for s in separations]
    separate = LayerCurve(
        *(
            above_chance([float(getattr(s, part)) for s in separations], chances)
            for part in ("accuracy", "low", "high")
        )
    )
    return crossing([s.site for s in seen], alignment=aligned, separability=separate)


def _rows_seen(states: StateStore, limit: int | None) -> int:
    return min(*states.counts.values(), states.most(limit))


def _missing(space: Space, states: StateStore | None, disjoint: int | None) -> dict[str, str]:
    out = {}
    if states is None:
        out["states"] = (
            "Null, bootstrap, rows needed, alignment, separability and band need the state of "
            f"every row: {_HOW}"
        )
    elif min(states.counts.values()) < LEAST:
        out["states"] = f"resampling needs at least {LEAST} rows of each language; probe more text"
    elif not states.parallel:
        out["alignment"] = (
            "Alignment and band need row i to say the same in every language; the rows of this "
            "space are not parallel"
        )
    elif disjoint is not None and disjoint < 2:
        L = len(space.languages)
        out["disjoint"] = f"rows that are not parallel need at least {2 * L} rows to draw from"
    return out


def _about(space: Space, states: StateStore | None, options: Options) -> dict[str, Any]:
    about = space.about
    model = {
        key: about.model[key]
        for key in ("model_type", "num_hidden_layers", "hidden_size", "weights_sha256")
        if about.model.get(key) is not None
    }
    return {
        "space": space.sha256,
        "model": model,
        "pooling": about.pooling,
        "role": about.role,
        "rows": space.counts,
        "states": None if states is None else states.dtype,
        "bootstrap refits": options.n_resamples,
        "permutations": options.n_permutations,
        "seed": options.seed,
        "lens": about.package_version,
    }
