"""Measure a language space: what its statistics tell alone, and what kept states add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lens.errors import InputError
from lens.inspection.band import Band, Line, above_chance, crossing
from lens.inspection.readings import Reading, compare_readings
from lens.inspection.results import Inspection, SiteInspection
from lens.inspection.sites import LEAST, Options, inspect_site
from lens.models.sites import FINAL
from lens.progress import progress
from lens.resample.grams import whole
from lens.space import KeptStates, Space

_HOW = (
    "lens probe … --keep-states DIR, then lens inspect SPACE --states DIR (in Python "
    "lens.probe(…, keep=DIR) and lens.inspect_space(space, DIR))"
)
_TEXT = "lens inspect SPACE --model M --data TEXT (in Python model=, tokenizer=, rows=)"


def inspect_space(
    space: Space | str | Path,
    states: KeptStates | str | Path | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    rows: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    text_limit: int = 200,
    n_resamples: int = 1000,
    n_permutations: int = 200,
    bound: float = 15.0,
    seed: int = 0,
    n_threads: int | None = None,
) -> Inspection:
    """Look into a language space: what it holds, how certain that is, and what to make of it.

    Parameters
    ----------
    space : Space, str or Path
        A space or its file.
    states : KeptStates, str or Path, optional
        Those that its probe kept. Without them there are singular values, ranks and geometry only;
        ``missing`` says how to get the rest.
    model, tokenizer, rows : optional
        Model and parallel text, all three, to measure what other ways of reading states would have
        changed (`compare_readings`).
    limit : int, optional
        Rows of each language to look at, evenly spread; by default at most 4096 of all languages
        together, because N rows make an N x N matrix.
    text_limit : int
        Rows of each language for `compare_readings`.
    n_resamples : int
        Bootstrap refits.
    n_permutations : int
        Shuffles of the null of the spectrum, at least 39, and random pairings of MEXA's.
    bound : float
        Angle in degrees that counts as small enough for "how many rows are enough".
    seed : int
        Seed of all draws.
    n_threads : int, optional
        Threads of the C core, by default the CPUs of this process.

    Returns
    -------
    Inspection
        With `to_dict`, `summary`, `figures`, `save` and a table in notebooks.

    Raises
    ------
    InputError
        If states, model or text are not those of the space, or an argument is out of range.

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
    kept = states if isinstance(states, KeptStates | None) else KeptStates(states)
    given = [thing is not None for thing in (model, tokenizer, rows)]
    if any(given) and not all(given):
        raise InputError("readings need all of model=, tokenizer= and rows=; give none or all")
    if not isinstance(bound, int | float) or isinstance(bound, bool) or not 0 < bound < 90:
        raise InputError(f"bound: got {bound!r}, expected an angle between 0 and 90 degrees")
    options = Options(
        joint=kept is not None and kept.parallel,
        limit=limit,
        n_resamples=whole(n_resamples, "n_resamples", 20),
        n_permutations=whole(n_permutations, "n_permutations", 39),
        bound=float(bound),
        seed=whole(seed, "seed", 0),
        n_threads=n_threads,
    )
    if kept is not None:
        kept.require_source(found.about)
    sites = tuple(inspect_site(found, kept, site, options)
                  for site in progress(found.sites, "Inspecting", unit="site"))  # fmt: skip
    readings: tuple[Reading, ...] = ()
    if rows is not None:
        ranks = {site.site: site.rank for site in sites if site.rank is not None}
        readings = compare_readings(
            found, model, tokenizer, rows, ranks=ranks, limit=whole(text_limit, "text_limit", 2)
        )
    seen = None if kept is None else _rows_seen(kept, limit)
    disjoint = None if seen is None or not options.joint else seen // len(found.languages)
    return Inspection(
        languages=found.languages, pivot=found.pivot, counts=found.counts, sites=sites, rows=seen,
        disjoint_rows=disjoint if disjoint and disjoint >= 2 else None, band=_band(sites),
        readings=readings, missing=_missing(found, kept, disjoint, bool(readings)),
        about=_about(found, kept, options),
    )  # fmt: skip


def _band(sites: Sequence[SiteInspection]) -> Band | None:
    """Curves over the block outputs; the final norm is no place to act on."""
    seen = [s for s in sites if s.alignment and s.separation is not None and s.site != FINAL]
    if not seen:
        return None
    chance = [1 / s.alignment[0].n for s in seen]
    means = [
        [float(np.mean([getattr(a, part) for a in s.alignment])) for s in seen]
        for part in ("score", "low", "high")
    ]
    aligned = Line(*(above_chance(values, chance) for values in means))
    separations = [s.separation for s in seen if s.separation is not None]
    luck = [s.chance for s in separations]
    separate = Line(*(
        above_chance([float(getattr(s, part)) for s in separations], luck)
        for part in ("accuracy", "low", "high")
    ))  # fmt: skip
    return crossing([s.site for s in seen], alignment=aligned, separability=separate)


def _rows_seen(states: KeptStates, limit: int | None) -> int:
    return min(*states.counts.values(), states.most(limit))


def _missing(
    space: Space, states: KeptStates | None, disjoint: int | None, read: bool
) -> dict[str, str]:
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
    if not read:
        out["readings"] = (
            f"What other ways of reading would have changed needs model and text: {_TEXT}"
        )
    return out


def _about(space: Space, states: KeptStates | None, options: Options) -> dict[str, Any]:
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
