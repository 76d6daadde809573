"""Refits of a subspace to resampled rows, and their angles with the fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lens import _core
from lens.arrays import Array, Float64, Result, core_errors, threads, whole
from lens.errors import InputError
from lens.resample.gram import Gram

STABLE = math.pi / 4  # beyond it a direction is nearer to what lies outside the subspace than to it
BLOCK = 1024  # refits drawn and computed at a time: what is held grows with it, results do not
_ROUNDING = 64 * float(np.finfo(np.float64).eps)  # of a product of means, against the states' size
DOUBTFUL = 1e-3  # radians of error beyond which a refit counts as ill-conditioned


@dataclass(frozen=True, slots=True)
class BootstrapResult(Result):
    """Angles between a fit and its refits to resampled rows.

    Attributes
    ----------
    rank : int
        r.
    interval : float
        Coverage of ``largest``.
    angles : numpy.ndarray (R, r)
        Principal angles between each refit and the fit, radians, ascending.
    largest : tuple of float
        Quantiles of the largest angle that hold ``interval`` of the refits between them.
    stable_share : float
        Share of the refits that are reliable and whose largest angle is below pi/4.
    agnostic_angles : numpy.ndarray (R,)
        Angles between the agnostic directions M_a; pi/2 where one of them is zero.
    singular_values : numpy.ndarray (R, L-1)
        Of the centred means of each refit, descending.
    fit_singular_values : numpy.ndarray (L-1,)
        Of the fit.
    errors : numpy.ndarray (R,)
        Bound of the rounding error of an angle near 0; that of an angle a is at most
        ``errors**2 / sin(a)``.
    reliable : numpy.ndarray (R,), bool
        Whether that bound is at most 1e-3.
    """

    rank: int
    interval: float
    angles: Float64
    largest: tuple[float, float]
    stable_share: float
    agnostic_angles: Float64
    singular_values: Float64
    fit_singular_values: Float64
    errors: Float64
    reliable: Array


@dataclass(frozen=True, slots=True)
class StabilityCurve(Result):
    """Largest angle between a fit and refits to as many rows as asked for.

    Attributes
    ----------
    rank : int
        r.
    interval : float
        Coverage from ``low`` to ``high``.
    sizes : numpy.ndarray (k,), int64
        Rows of each language in a refit.
    angles : numpy.ndarray (k, R)
        Largest principal angle of each refit, radians.
    low, median, high : numpy.ndarray (k,)
        Quantiles of them.
    """

    rank: int
    interval: float
    sizes: Array
    angles: Float64
    low: Float64
    median: Float64
    high: Float64


class Refits:
    """Products of the means of refits: what every question about them starts from."""

    def __init__(self, gram: Gram, *, joint: bool, n_threads: int | None) -> None:
        L, N = len(gram.counts), len(gram.matrix)
        if joint:
            require_parallel(gram)
        self.gram, self.joint, self.n_threads = gram, joint, threads(n_threads)
        self.rows = gram.counts.astype(np.uint64)
        self.fixed = np.empty((L + 1, N))  # W*^T G and the drift
        self.fixed[:L] = np.add.reduceat(gram.matrix, gram.starts, axis=0)
        self.fixed[:L] /= gram.counts[:, None]
        self.fixed[L] = gram.drift
        sums = np.add.reduceat(self.fixed, gram.starts, axis=1)
        self.fit = np.ascontiguousarray((sums / gram.counts).T)  # (L, L+1)
        self.mean_square = float(gram.mean @ gram.mean)
        self.size = float(np.trace(gram.matrix)) / N

    def draw(self, rng: np.random.Generator, n: int, size: int | None) -> Float64:
        """Weights (n, rows) of n draws with replacement of `size` rows, None: as many as there are.

        Joint: one draw of row numbers for all languages; else one for each, in their order.
        """
        spans = self.gram.counts[:1] if self.joint else self.gram.counts
        parts = []
        for rows in spans.tolist():
            m = rows if size is None else size
            drawn = rng.integers(rows, size=(n, m)) + rows * np.arange(n)[:, None]
            parts.append(np.bincount(drawn.ravel(), minlength=n * rows).reshape(n, rows) / m)
        return np.ascontiguousarray(np.concatenate(parts, axis=1))

    def products(self, weights: Float64) -> tuple[Float64, Float64]:
        """K (R, L, L) of the refits' means, and their products with the fit's (R, L, L+1)."""
        R, L = len(weights), len(self.rows)
        K, cross = np.empty((R, L, L)), np.empty((R, L, L + 1))
        with core_errors():
            _core.resample_refits(
                K, cross, self.gram.matrix, self.fixed, weights, self.rows, self.n_threads
            )
        return K, cross

    def angles(self, K: Float64, cross: Float64, rank: int) -> tuple[Float64, Float64, Float64]:
        """Angles (R, rank) with the fit, angles (R,) of M_a, singular values (R, L-1)."""
        R, L = K.shape[:2]
        angles, agnostic, sigma = np.empty((R, rank)), np.empty(R), np.empty((R, L - 1))
        with core_errors():
            _core.resample_angles(
                angles, agnostic, sigma, K, cross, self.fit, self.mean_square, self.n_threads
            )
        return angles, agnostic, sigma

    def blocks(
        self, rng: np.random.Generator, n: int, size: int | None = None
    ) -> Iterator[tuple[Float64, Float64]]:
        """Products of n refits to random draws, BLOCK at a time."""
        for done in range(0, n, BLOCK):
            yield self.products(self.draw(rng, min(BLOCK, n - done), size))

    def singular_values(self) -> Float64:
        """Singular values of the fit itself, shape (L-1,)."""
        sigma: Float64 = spectra(np.ascontiguousarray(self.fit[None, :, :-1]), self.n_threads)[0]
        return sigma

    def errors(self, sigma: Float64, rank: int) -> Float64:
        """Bound of the error of an angle near 0 for singular values (..., L-1)."""
        # A product of means is off by rounding against the size of the states it averages; divided
        # by the last singular value squared that is the error of a cosine.
        size = np.maximum(sigma[..., 0] ** 2, self.size)
        last = np.maximum(sigma[..., rank - 1] ** 2, np.finfo(np.float64).tiny)
        bound: Float64 = np.minimum(np.sqrt(_ROUNDING * size / last), math.pi / 2)
        return bound

    def check_rank(self, rank: int | Literal["full"]) -> int:
        """Return the rank as a number; refuse one that the fit does not have."""
        L, names = len(self.rows), ", ".join(self.gram.languages)
        r = L - 1 if rank == "full" else whole(rank, "rank", 1, L - 1)
        have = self.numerical_rank()
        if r > have:
            raise InputError(
                f"rank: {r}, but the means of {names} span only {have} "
                f"direction{'s' if have != 1 else ''} that rounding leaves certain; check that no "
                "text was given twice, or use a smaller rank"
            )
        return r

    def numerical_rank(self) -> int:
        """How many directions of the fit rounding leaves certain."""
        sigma = self.singular_values()
        return sum(bool(self.errors(sigma, k + 1) <= DOUBTFUL) for k in range(len(sigma)))


def require_parallel(gram: Gram) -> None:
    """Refuse unequal numbers of rows where rows are taken to be parallel."""
    if (gram.counts != gram.counts[0]).any():
        listed = ", ".join(
            f"{name} {n}" for name, n in zip(gram.languages, gram.counts.tolist(), strict=True)
        )
        raise InputError(
            f"joint: rows are drawn together, but their numbers differ ({listed}); give parallel "
            "rows, or joint=False"
        )


def check_gram(gram: Any) -> None:
    """Refuse what is no Gram."""
    if not isinstance(gram, Gram):
        raise InputError(
            f"gram: got {type(gram).__name__}, expected a Gram; make one from the states with "
            "lens.resample.gram"
        )


def spectra(K: Float64, n_threads: int) -> Float64:
    """Singular values (R, L-1) of the centred means with products K (R, L, L)."""
    sigma = np.empty((len(K), K.shape[1] - 1))
    with core_errors():
        _core.resample_angles(None, None, sigma, K, None, None, 0.0, n_threads)
    return sigma


def check_interval(interval: float) -> float:
    """Return a coverage; refuse what is not between 0 and 1."""
    number = isinstance(interval, float | np.floating)
    if not number or not 0.0 < interval < 1.0:
        raise InputError(f"interval: got {interval!r}, expected a share between 0 and 1")
    return float(interval)


def _tails(interval: float) -> tuple[float, float]:
    return (1 - interval) / 2, (1 + interval) / 2


def bootstrap(
    gram: Gram,
    *,
    rank: int | Literal["full"],
    n_resamples: int = 1000,
    joint: bool = True,
    seed: int = 0,
    interval: float = 0.95,
    n_threads: int | None = None,
) -> BootstrapResult:
    """How far a language subspace moves when the rows are drawn again.

    Parameters
    ----------
    gram : Gram
        From `lens.resample.gram`.
    rank : int or "full"
        Directions of the fit and of every refit, 1 to L-1.
    n_resamples : int
        Refits.
    joint : bool
        Whether rows are parallel: one draw of row numbers then serves all languages. False draws
        for each language alone.
    seed : int
        Seed of the draws.
    interval : float
        Coverage of the interval of the largest angle.
    n_threads : int, optional
        Threads to use, by default the CPUs of this process; the draws do not depend on it, and the
        rest agrees to rounding.

    Returns
    -------
    BootstrapResult

    Raises
    ------
    InputError
        If the rank is more than the means span, ``joint`` is asked for with unequal numbers of
        rows, or another argument is out of range.

    Notes
    -----
    Rows are drawn with replacement by NumPy's PCG64 generator from ``seed``, as ``integers(n,
    size=(refits, n))``, at most 1024 refits at a time, language after language when not joint. A
    draw is a matrix W of weights with one nonzero a row; the means' products are W^T G W and their
    products with the fit's W*^T G W, which give singular values and cosines. Cosines hide angles
    below about 1e-7 times the condition of the means: ``errors`` bounds that, and refits where it
    exceeds 1e-3 are not counted as stable.

    References
    ----------
    Lens, arXiv:2410.04407.

    Examples
    --------
    >>> import numpy as np
    >>> from lens.resample import bootstrap, gram
    >>> x = np.random.default_rng(0).normal(size=(3, 200, 8))
    >>> x[1, :, 0] += 5
    >>> x[2, :, 1] += 5
    >>> result = bootstrap(gram(x), rank=2, n_resamples=100)
    >>> result.stable_share
    1.0
    """
    check_gram(gram)
    refits = Refits(gram, joint=joint, n_threads=n_threads)
    r, level = refits.check_rank(rank), check_interval(interval)
    R = whole(n_resamples, "n_resamples", 1)
    rng = np.random.default_rng(whole(seed, "seed", 0))
    parts = [refits.angles(K, cross, r) for K, cross in refits.blocks(rng, R)]
    angles, agnostic, sigma = (np.concatenate(column) for column in zip(*parts, strict=True))
    fit_sigma = refits.singular_values()
    errors = np.maximum(refits.errors(sigma, r), refits.errors(fit_sigma, r))
    reliable = errors <= DOUBTFUL
    low, high = np.quantile(angles[:, -1], _tails(level))
    stable = float(np.mean(reliable & (angles[:, -1] < STABLE)))
    return BootstrapResult(
        r,
        level,
        angles,
        (float(low), float(high)),
        stable,
        agnostic,
        sigma,
        fit_sigma,
        errors,
        reliable,
    )


def stability_curve(
    gram: Gram,
    sizes: Sequence[int],
    *,
    rank: int | Literal["full"],
    n_resamples: int = 200,
    joint: bool = True,
    seed: int = 0,
    interval: float = 0.95,
    n_threads: int | None = None,
) -> StabilityCurve:
    """How many rows are enough: angles with the fit for refits to fewer, or more, rows.

    Parameters
    ----------
    sizes : sequence of int
        Rows of each language in a refit.
    gram, rank, n_resamples, joint, seed, interval, n_threads
        As in `bootstrap`, for each size.

    Returns
    -------
    StabilityCurve

    Raises
    ------
    InputError
        As in `bootstrap`, or if a size is below 1.

    Notes
    -----
    Rows are drawn with replacement, so the refit to as many rows as there are does not equal the
    fit, and sizes beyond it show what more rows of the same kind would bring.
    """
    check_gram(gram)
    refits = Refits(gram, joint=joint, n_threads=n_threads)
    r, level = refits.check_rank(rank), check_interval(interval)
    R = whole(n_resamples, "n_resamples", 1)
    try:
        asked = list(sizes)
    except TypeError:
        raise InputError(f"sizes: got {sizes!r}, expected a sequence of integers") from None
    if not asked:
        raise InputError("sizes: empty, expected at least one number of rows")
    numbers = [whole(size, "sizes", 1) for size in asked]
    rng = np.random.default_rng(whole(seed, "seed", 0))
    largest = np.stack(
        [
            np.concatenate(
                [refits.angles(K, C, r)[0][:, -1] for K, C in refits.blocks(rng, R, size)]
            )
            for size in numbers
        ]
    )
    low, median, high = np.quantile(largest, [_tails(level)[0], 0.5, _tails(level)[1]], axis=1)
    sizes_array = np.array(numbers, dtype=np.int64)
    return StabilityCurve(r, level, sizes_array, largest, low, median, high)
