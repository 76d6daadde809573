"""Fit language subspaces to means, one site or many."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lens import _core
from lens.arrays import (
    F64,
    Array,
    ArrayIn,
    Float64,
    anywhere,
    core_errors,
    float64,
    threads,
    to_dict,
)
from lens.errors import InputError
from lens.subspace._factors import thin_svd
from lens.subspace._rank import Rank, check_options, choose_rank, rounding_floor


@dataclass(frozen=True, slots=True)
class SubspaceResult:
    """A language subspace at one site.

    Attributes
    ----------
    basis : numpy.ndarray (d, r)
        Orthonormal M_s, column-major; the largest component of each column is positive.
    agnostic : numpy.ndarray (d,)
        M_a, the mean without its part in the subspace; not normalised.
    singular_values : numpy.ndarray (L-1,)
        Of the centred means, descending.
    mean : numpy.ndarray (d,)
        Mean of the languages' means.
    rank : int
        r.
    rank_reason : str
        Why this rank, for people to read.
    """

    basis: Float64
    agnostic: Float64
    singular_values: Float64
    mean: Float64
    rank: int
    rank_reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, arrays as nested lists."""
        return to_dict(self)


@anywhere
def fit(
    means: ArrayIn,
    *,
    rank: Rank = "auto",
    languages: Sequence[str] | None = None,
    agnostic: Literal["mean", "complement"] = "mean",
    noise: ArrayIn = None,
) -> SubspaceResult:
    """Split the means of several languages into what they share and what tells them apart.

    Parameters
    ----------
    means : array (L, d), float64
        Mean state of each language; 2 <= L <= d.
    rank : {"auto", "full"} or int
        "auto": the smallest rank that holds 95 % of the variance between languages left after the
        noise of the means is taken off, at most L-2 when L >= 3. "full": L-1, as published.
    languages : sequence of str, optional
        Names, for messages.
    agnostic : {"mean", "complement"}
        What the agnostic space will be: the direction M_a (published) or everything orthogonal to
        the subspace. "mean" needs M_a to be different from zero.
    noise : array (L,), optional
        Variance of each mean, summed over the coordinates (the sum of variance/count).

    Returns
    -------
    SubspaceResult

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If there is one language only, a language comes twice, the means span fewer directions than
        the rank asks for (the message names the languages), M_a is zero with ``agnostic="mean"``,
        or a value is not finite.

    Notes
    -----
    With M = [m_1 … m_L] and w the mean of its columns, M_s holds the first r left singular vectors
    of M - w 1^T and M_a = w - M_s M_s^T w: the same span and the same M_a direction as the
    published two full decompositions and pseudo-inverse, at O(d L^2). The L x L Gram matrix is used
    while its condition allows about 1e-12, then QR and the SVD of R. Sampling noise adds the mean
    of ``noise`` to each squared singular value, which "auto" subtracts. Whoever has the states can
    ask for more than means can tell: `lens.resample.choose_rank` looks at held-out rows, bootstrap
    and shuffled labels, and ``rank=choice.rank`` takes its answer.

    References
    ----------
    Lens, arXiv:2410.04407; LSAR, arXiv:2401.05792.

    Examples
    --------
    >>> import numpy as np
    >>> result = fit(np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]))
    >>> result.rank, result.agnostic.tolist()
    (1, [1.0, 0.0, 0.0])
    """
    data = float64(means, "means", shape=(None, None), finite=False)
    noises = None if noise is None else float64(noise, "noise", shape=(len(data),))[None]
    return fit_batch(
        data[None], rank=rank, languages=languages, agnostic=agnostic, noise=noises, n_threads=1
    )[0]


@anywhere
def fit_batch(
    means: ArrayIn,
    *,
    rank: Rank = "auto",
    languages: Sequence[str] | None = None,
    agnostic: Literal["mean", "complement"] = "mean",
    noise: ArrayIn = None,
    n_threads: int | None = None,
) -> tuple[SubspaceResult, ...]:
    """Fit several sites at once, in parallel.

    Parameters
    ----------
    means : array (S, L, d), float64
        Mean state of each language at each site.
    rank, languages, agnostic
        As in `fit`; ``rank="auto"`` chooses for each site.
    noise : array (S, L), optional
        As in `fit`, for each site.
    n_threads : int, optional
        Threads to use, by default the CPUs of this process; any number gives the same bits.

    Returns
    -------
    tuple of SubspaceResult
        One a site.

    Raises
    ------
    ShapeError, DtypeError, InputError
        As in `fit`; the message names the site by its index.
    """
    data = float64(means, "means", shape=(None, None, None), finite=False)
    S, L, d = data.shape
    names = check_options(L, d, rank, languages, agnostic)
    noises = None if noise is None else float64(noise, "noise", shape=(S, L))
    if noises is not None and (noises < 0).any():
        raise InputError("noise: holds negative values, expected variances")
    vectors, sigma = np.empty((S, L - 1, d)), np.empty((S, L - 1))
    mean, route = np.empty((S, d)), np.empty(S, dtype=np.uint8)
    try:
        with core_errors():
            _core.subspace_fit(vectors, sigma, mean, route, data, threads(n_threads))
    except InputError as error:
        float64(data, "means", shape=data.shape)  # names the first value that is not finite
        raise InputError(f"means: {error}") from None
    results = []
    longest = np.sqrt(np.einsum("sld,sld->sl", data, data)).max(axis=1)  # no copy of the squares
    for s in range(S):
        site = f"site {s}: " if S > 1 else ""
        floor = rounding_floor(sigma[s], mean[s], L, d)
        if sigma[s, -1] <= floor:
            _check_twins(data[s], names, floor, site)
        r, reason = choose_rank(
            rank, sigma[s], None if noises is None else float(noises[s].mean()), L
        )
        if sigma[s, r - 1] <= floor:
            _raise_dependent(data[s], sigma[s], floor, names, r, site)
        rows = vectors[s, :r]
        m_a = _leave(_leave(mean[s], rows), rows)  # twice: orthogonal to rounding
        if agnostic == "mean":
            _check_agnostic(m_a, float(longest[s]), site)
        results.append(SubspaceResult(rows.T, m_a, sigma[s], mean[s], r, reason))
    return tuple(results)


def _check_twins(means: Float64, names: list[str], floor: float, site: str) -> None:
    L = len(names)
    for a in range(L):
        apart = np.linalg.norm(means[a + 1 :] - means[a], axis=1)
        for b in np.flatnonzero(apart <= floor):
            raise InputError(
                f"means: {site}{names[a]} and {names[a + 1 + int(b)]} have the same mean; expected "
                "different languages: check that the same text was not given twice, or drop one"
            )


def _raise_dependent(
    means: Float64, sigma: Float64, floor: float, names: list[str], r: int, site: str
) -> None:
    """Name the languages whose means depend on each other: those in the null vectors."""
    have = int((sigma > floor).sum())
    centred = means - means.mean(axis=0)
    coefficients = thin_svd(centred).left[:, have : len(names) - 1]
    L = len(names)
    coefficients = coefficients - np.ones((L, 1)) @ coefficients.mean(axis=0, keepdims=True)
    size = np.abs(coefficients).max(axis=1)
    involved = [n for n, c in zip(names, size, strict=True) if c > 1e-6 * size.max()]
    raise InputError(
        f"means: {site}the {L} means span {have} direction{'s' if have != 1 else ''}, but rank {r} "
        f"was asked for; the means of {', '.join(involved)} depend on each other: use a rank of "
        f"at most {have}, or drop one of these languages"
    )


def _leave(x: Float64, rows: Array) -> Float64:
    out = np.empty_like(x)
    _core.project(out[None], x[None], rows, 1.0, F64, 1)
    return out


def _check_agnostic(m_a: Float64, size: float, site: str) -> None:
    """Refuse a direction that is nothing beside means of this length."""
    if float(np.linalg.norm(m_a)) <= 1e-9 * size:
        raise InputError(
            f"means: {site}the mean over languages lies inside the language subspace, so the "
            'agnostic direction M_a is zero; use agnostic="complement" or a smaller rank'
        )
