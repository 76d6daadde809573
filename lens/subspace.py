"""Language subspaces: fit, choice of rank, principal angles, projection, thin factorisations.

NumPy arrays or CPU torch tensors in, NumPy arrays out; tensors on another device are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lens import _core
from lens.arrays import (
    F64,
    Array,
    ArrayIn,
    Float64,
    Result,
    block,
    core_errors,
    float64,
    is_tensor,
    rows_of,
    threads,
)
from lens.errors import InputError, ShapeError

__all__ = [
    "SubspaceResult",
    "ThinQr",
    "ThinSvd",
    "fit",
    "fit_batch",
    "principal_angles",
    "project",
    "thin_qr",
    "thin_svd",
]


@dataclass(frozen=True, slots=True)
class ThinSvd(Result):
    """X = left · diag(singular_values) · rightᵀ.

    Attributes
    ----------
    left : numpy.ndarray (n, r)
        Orthonormal columns.
    singular_values : numpy.ndarray (r,)
        Descending.
    right : numpy.ndarray (d, r)
        Orthonormal columns, column-major; the largest component of each is positive.
    """

    left: Float64
    singular_values: Float64
    right: Float64


@dataclass(frozen=True, slots=True)
class ThinQr(Result):
    """X = Q · R.

    Attributes
    ----------
    Q : numpy.ndarray (d, r)
        Orthonormal columns, column-major, whatever the rank of X.
    R : numpy.ndarray (r, r)
        Upper triangular; its diagonal is not negative.
    """

    Q: Float64
    R: Float64


def thin_svd(X: ArrayIn, *, rank: int | None = None) -> ThinSvd:
    """Singular values and vectors of a matrix, or the first of them.

    Parameters
    ----------
    X : array (n, d), float
        Any matrix; calculated in float64.
    rank : int, optional
        How many to give, from 1 to min(n, d), by default all.

    Returns
    -------
    ThinSvd

    Raises
    ------
    ShapeError, DtypeError
        If X is no matrix of real numbers, or has no element.
    InputError
        If a value is not finite, a singular value would not be, or the rank does not fit.

    Notes
    -----
    LAPACK's divide and conquer (dgesdd), of X divided by a power of two where its squares would
    overflow or vanish: errors are a few roundings of the largest singular value, at any scale.
    Signs are settled by the right vectors. Vectors of equal singular values are any basis of their
    span, and those of zeros any completion.

    Examples
    --------
    >>> import numpy as np
    >>> found = thin_svd(np.array([[0.0, -3.0], [2.0, 0.0]]))
    >>> found.singular_values.tolist(), found.right.tolist(), found.left.tolist()
    ([3.0, 2.0], [[0.0, 1.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, 1.0]])
    """
    data = float64(X, "X", shape=(None, None))
    n, d = data.shape
    if not n or not d:
        raise ShapeError(f"X: shape ({n}, {d}), expected at least one row and one column")
    k = min(n, d)
    if rank is not None and not (_is_whole(rank) and 1 <= rank <= k):
        raise InputError(
            f"rank: got {rank!r}, expected None or an integer from 1 to {k}, the smaller side of X "
            f"({n}, {d})"
        )
    left, sigma, right = np.empty((n, k)), np.empty(k), np.empty((k, d))
    with core_errors(X=data):
        _core.thin_svd(left, sigma, right, data)
    return ThinSvd(left[:, :rank], sigma[:rank], right[:rank].T)


def thin_qr(X: ArrayIn) -> ThinQr:
    """Orthonormal columns that span at least what the columns of a matrix span.

    Parameters
    ----------
    X : array (d, r), float
        Columns, no more of them than rows; calculated in float64.

    Returns
    -------
    ThinQr

    Raises
    ------
    ShapeError, DtypeError
        If X is no matrix of real numbers, or has no column, or more columns than rows.
    InputError
        If a value is not finite, or an element of R would not be.

    Notes
    -----
    Householder reflections (dgeqrf, dorgqr): Q is orthonormal to rounding even where columns depend
    on each other; their diagonal element of R is then about zero, and the column of Q some
    completion. With a positive diagonal both factors are unique.

    Examples
    --------
    >>> import numpy as np
    >>> found = thin_qr(np.array([[-3.0, 1.0], [0.0, 2.0], [-4.0, 3.0]]))
    >>> np.allclose(found.Q @ found.R, [[-3, 1], [0, 2], [-4, 3]]), np.diag(found.R)[0].tolist()
    (True, 5.0)
    """
    data = float64(X, "X", shape=(None, None))
    d, r = data.shape
    if not 1 <= r <= d:
        raise ShapeError(f"X: shape ({d}, {r}), expected 1 to {d} columns")
    rows = np.ascontiguousarray(data.T)
    Q, R = np.empty((r, d)), np.empty((r, r))
    with core_errors(X=rows):
        _core.thin_qr(Q, R, rows)
    return ThinQr(Q.T, R.T)


Rank = Literal["auto", "full"] | int
_SHARE = 0.95  # of the noise-corrected variance between languages, for rank="auto"


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_options(
    L: int, d: int, rank: Rank, languages: Sequence[str] | None, agnostic: str
) -> list[str]:
    """Refuse what does not fit L means of width d; return the languages' names."""
    names = _check_names(languages, L)
    if L < 2 or L > d:
        raise InputError(
            f"means: {L} language{'s' if L != 1 else ''} of width {d}, expected at least 2 "
            "languages and no more of them than dimensions"
        )
    _check_rank(rank, L)
    if agnostic not in ("mean", "complement"):
        raise InputError(f"agnostic: got {agnostic!r}, expected 'mean' or 'complement'")
    return names


def _check_names(languages: Sequence[str] | None, L: int) -> list[str]:
    if languages is None:
        return [f"language {i}" for i in range(L)]
    names = list(languages)
    if len(names) != L:
        raise ShapeError(f"languages: {len(names)} names, expected {L} as means has rows")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"languages: {', '.join(twice)} given more than once; expected every language once"
        )
    return names


def _check_rank(rank: Rank, L: int) -> None:
    if rank in ("auto", "full"):
        return
    if not (_is_whole(rank) and 1 <= int(rank) < L):
        raise InputError(
            f"rank: got {rank!r}, expected 'auto', 'full' or an integer from 1 to {L - 1} "
            f"(one less than the {L} languages)"
        )


def _rounding_floor(sigma: Float64, mean: Float64, L: int, d: int) -> float:
    """Singular values at or below this are rounding errors of means of this size."""
    scale = float(sigma[0]) + float(np.linalg.norm(mean))
    return scale * max(L, d) * float(np.finfo(np.float64).eps)


def _choose_rank(rank: Rank, sigma: Float64, noise: float | None, L: int) -> tuple[int, str]:
    """Return the rank for given singular values, and why."""
    if rank == "full":
        return L - 1, f"full: L-1 = {L - 1} of {L} languages"
    if rank != "auto":
        return int(rank), f"given: {int(rank)}"
    most = max(1, L - 2)
    signal = np.maximum(sigma**2 - (noise or 0.0), 0.0)
    total = float(signal.sum())
    if total == 0.0:
        return 1, "auto: 1, as no variance between languages exceeds the noise of the means"
    share = np.cumsum(signal) / total
    needed = int(np.searchsorted(share, _SHARE - 1e-12)) + 1
    r = min(needed, most)
    what = "variance between languages" + ("" if noise is None else " after noise correction")
    text = f"auto: {r} of {L - 1} directions hold {100 * share[r - 1]:.1f} % of the {what}"
    if needed > most:
        return r, f"{text} (95 % would need {needed}, but at most L-2 = {most} are taken)"
    return r, f"{text} (goal 95 %)"


@dataclass(frozen=True, slots=True)
class SubspaceResult(Result):
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


def fit(
    means: ArrayIn,
    *,
    rank: Rank = "auto",
    languages: Sequence[str] | None = None,
    agnostic: Literal["mean", "complement"] = "mean",
    noise: ArrayIn = None,
) -> SubspaceResult:
    """Split the means of several languages into a language subspace and an agnostic direction.

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
    names = _check_options(L, d, rank, languages, agnostic)
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
        floor = _rounding_floor(sigma[s], mean[s], L, d)
        if sigma[s, -1] <= floor:
            _check_twins(data[s], names, floor, site)
        r, reason = _choose_rank(
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


def principal_angles(A: ArrayIn, B: ArrayIn) -> Float64:
    """Angles between two subspaces.

    Parameters
    ----------
    A : array (d, a), float
        Columns span the first subspace; they need not be orthonormal.
    B : array (d, b), float
        Columns span the second.

    Returns
    -------
    numpy.ndarray (min(a, b),), float64
        Radians, ascending, from 0 to pi/2.

    Raises
    ------
    ShapeError
        If the widths differ, or there are no columns, or more columns than rows.
    InputError
        If columns of A or of B are linearly dependent, or a value is not finite.

    Notes
    -----
    Small angles come from sines, large ones from cosines (Björck and Golub, 1973), so that both are
    right to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> principal_angles(np.eye(3)[:, :1], np.eye(3)[:, 1:])
    array([1.57079633])
    """
    shape = np.shape(A)
    if len(shape) != 2 or 0 in shape:
        raise ShapeError(f"A: shape {tuple(shape)}, expected (d, a) with at least one column")
    d = int(shape[0])
    rows_a = rows_of(A, "A", d, np.dtype(np.float64))
    rows_b = rows_of(B, "B", d, np.dtype(np.float64))
    for name, rows in (("A", rows_a), ("B", rows_b)):
        if not 1 <= len(rows) <= d:
            raise ShapeError(f"{name}: shape ({d}, {len(rows)}), expected 1 to {d} columns")
    angles = np.empty(min(len(rows_a), len(rows_b)))
    with core_errors():
        _core.principal_angles(angles, rows_a, rows_b)
    return angles


def project(
    X: ArrayIn,
    basis: ArrayIn,
    *,
    strength: float = 1.0,
    n_threads: int = 1,
    dtype: str | None = None,
) -> Array:
    """Move states out of a subspace, or further into it.

    Parameters
    ----------
    X : array (..., d), float32, float64, float16 or bfloat16
        States.
    basis : array (d, r), float
        Orthonormal M_s; cast to float32, or float64 for float64 states.
    strength : float
        1 removes the part inside the subspace, a negative value adds to it, 0 changes no bit.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when X is raw uint16.

    Returns
    -------
    numpy.ndarray
        X - strength X M_s M_s^T, in the dtype and shape of X (bfloat16 as raw uint16).

    Raises
    ------
    ShapeError, DtypeError, InputError
        If the arrays do not fit together, or strength is not finite.

    References
    ----------
    arXiv:2505.15257.
    """
    x = block(X, "X", dtype=dtype)
    if x.data.ndim < 1:
        raise ShapeError("X: a scalar, expected (..., d)")
    if isinstance(strength, bool) or is_tensor(strength) or not np.isfinite(strength):
        raise InputError(f"strength: got {strength!r}, expected a finite number")
    d = x.data.shape[-1]
    rows = rows_of(basis, "basis", d, x.accumulator)
    n = x.data.size // d if d else 0
    out = np.empty((n, d), dtype=x.data.dtype)
    flat = x.data.reshape(n, d)
    with core_errors():
        _core.project(out, flat, rows, float(strength), x.code, threads(n_threads))
    return out.reshape(x.data.shape)
