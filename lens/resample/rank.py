"""The rank of a language subspace, chosen on held-out rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lens.arrays import Array, Float64, Result, whole
from lens.errors import InputError
from lens.resample.bootstrap import DOUBTFUL, STABLE, Refits, check_gram
from lens.resample.gram import Gram
from lens.resample.permutation import NullSpectrum, permutation_spectrum

SHARE = 0.95  # of the held-out variance between languages; of the refits that must be stable
ALPHA = 0.05  # level of the permutation gate


@dataclass(frozen=True, slots=True)
class RankChoice(Result):
    """A rank and why; pass it on as ``subspace.fit(means, rank=choice.rank)``.

    Attributes
    ----------
    rank : int
        Chosen.
    reason : str
        Why, for people to read.
    held_out : numpy.ndarray (L-1,)
        Share of the noise-corrected variance between languages on held-out rows that the first
        1, 2, … directions hold; the last is 1, or all are 0 where there is no such variance.
    stable_shares : numpy.ndarray (L-1,)
        Share of the bootstrap refits whose largest angle is below pi/4, for the ranks that were
        looked at; NaN for others.
    stable : bool
        Whether that share is at least 95 % at the chosen rank.
    p_values : numpy.ndarray (L-1,)
        Of each component under shuffled labels.
    p_value : float
        Of the whole variance between languages.
    """

    rank: int
    reason: str
    held_out: Float64
    stable_shares: Float64
    stable: bool
    p_values: Float64
    p_value: float


def choose_rank(
    gram: Gram,
    *,
    n_splits: int = 10,
    n_resamples: int = 200,
    n_permutations: int = 200,
    joint: bool = True,
    seed: int = 0,
    n_threads: int | None = None,
) -> RankChoice:
    """Choose the rank: the smallest that holds on held-out rows and is stable.

    Parameters
    ----------
    n_splits : int
        Random splits of the rows into halves; each half is fitted once and held out once.
    n_resamples : int
        Bootstrap refits.
    n_permutations : int
        Shuffles of the language labels; at least 19, or nothing could pass at 5 %.
    gram, joint, seed, n_threads
        As in `lens.resample.bootstrap`.

    Returns
    -------
    RankChoice

    Raises
    ------
    InputError
        If a language has fewer than 4 rows, rows are not parallel with ``joint``, or an argument is
        out of range.

    Notes
    -----
    Directions are fitted on one half of the rows. On the other half the variance between languages
    along each is sum over languages of the squared centred mean, without the terms of a row with
    itself: noise that differs between rows adds nothing to its expectation. The rank is the
    smallest r whose directions hold 95 % of what all L-1 hold and of whose bootstrap refits 95 %
    have their largest angle below pi/4 (beyond that a direction is nearer to what lies outside).
    If a larger r is needed for stability it is taken; if none is stable up to the most, the largest
    stable one below. The most is L-2 when L >= 3, and no component that shuffled labels reach
    (p > 0.05) or that rounding leaves uncertain is taken beyond the first.

    References
    ----------
    Lens, arXiv:2410.04407.

    Examples
    --------
    >>> import numpy as np
    >>> from lens.resample import choose_rank, gram
    >>> x = np.random.default_rng(0).normal(size=(4, 100, 16))
    >>> x[:, :, 0] += np.array([0, 3, 6, 9])[:, None]
    >>> choose_rank(gram(x)).rank
    1
    """
    check_gram(gram)
    few = int(gram.counts.min())
    if few < 4:
        raise InputError(
            f"gram: {few} rows in a language, expected at least 4, so that halves have a spread"
        )
    refits = Refits(gram, joint=joint, n_threads=n_threads)
    splits = whole(n_splits, "n_splits", 1)
    R, P = whole(n_resamples, "n_resamples", 1), whole(n_permutations, "n_permutations", 19)
    rng = np.random.default_rng(whole(seed, "seed", 0))
    null = permutation_spectrum(gram, n_permutations=P, joint=joint, seed=seed, n_threads=n_threads)
    held = _held_out(refits, rng, splits)
    parts = list(refits.blocks(rng, R))
    products = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    stable = np.full(len(held), np.nan)

    def is_stable(r: int) -> bool:
        largest = refits.angles(products[0], products[1], r)[0][:, -1]
        stable[r - 1] = np.mean(largest < STABLE)
        return bool(stable[r - 1] >= SHARE)

    total = held[-1]
    shares = held / total if total > 0 else np.zeros_like(held)
    rank, reason, sure = _decide(shares, null, refits, is_stable)
    return RankChoice(rank, reason, shares, stable, sure, null.p_values, null.p_value)


def _held_out(refits: Refits, rng: np.random.Generator, splits: int) -> Float64:
    """Mean over splits of the held-out variance in the first 1, 2, … directions, shape (L-1,)."""
    counts = refits.gram.counts
    L = len(counts)
    halves = [_half(rng, counts, refits.joint) for _ in range(splits)]
    trains = np.stack([train for half in halves for train in (half, ~half)])
    language = np.repeat(np.arange(L), counts)
    one_hot = (language == np.arange(L)[:, None]) & trains[:, None]
    weights = one_hot / one_hot.sum(2, keepdims=True)
    images = weights.reshape(-1, len(language)) @ refits.gram.matrix  # means times every row
    total = np.zeros(L - 1)
    for train, W, T in zip(trains, weights, images.reshape(weights.shape), strict=True):
        scores = _directions(refits, T @ W.T) @ T[:, ~train]
        spans = np.bincount(language[~train], minlength=L)
        total += _joint_variance(scores, L) if refits.joint else _variance(scores, spans)
    return np.cumsum(total / len(trains))


def _half(rng: np.random.Generator, counts: Array, joint: bool) -> Array:
    """Mask (N,) of a random half of the rows of each language, the same half when joint."""
    masks = [rng.permutation(n) < n // 2 for n in (counts[:1] if joint else counts).tolist()]
    return np.tile(masks[0], len(counts)) if joint else np.concatenate(masks)


def _directions(refits: Refits, K: Float64) -> Float64:
    """Coefficients (L-1, L) that turn means with products K into orthonormal directions."""
    L = len(K)
    centred = K - K.mean(0) - K.mean(1)[:, None] + K.mean()
    values, vectors = np.linalg.eigh(centred)
    sigma = np.sqrt(np.maximum(values[:0:-1], 0.0))
    sure = [k for k in range(L - 1) if refits.errors(sigma, k + 1) <= DOUBTFUL]
    out = np.zeros((L - 1, L))
    out[sure] = vectors[:, :0:-1].T[sure] / sigma[sure, None]
    centred_out: Float64 = out - out.mean(1, keepdims=True)
    return centred_out


def _joint_variance(scores: Float64, L: int) -> Float64:
    """Variance between languages along each direction, from pairs of different rows."""
    z = scores.reshape(len(scores), L, -1)
    z = z - z.mean(1, keepdims=True)
    m = z.shape[2]
    out: Float64 = ((z.sum(2) ** 2).sum(1) - (z**2).sum((1, 2))) / (m * (m - 1))
    return out


def _variance(scores: Float64, spans: Array) -> Float64:
    """As `_joint_variance`, when rows of different languages have nothing in common."""
    starts = np.cumsum(spans) - spans
    sums = np.add.reduceat(scores, starts, axis=1)
    squares = (sums**2 - np.add.reduceat(scores**2, starts, axis=1)) / (spans * (spans - 1))
    means, L = sums / spans, len(spans)
    crossed = means.sum(1) ** 2 - (means**2).sum(1)
    out: Float64 = (1 - 1 / L) * squares.sum(1) - crossed / L
    return out


def _decide(
    shares: Float64, null: NullSpectrum, refits: Refits, is_stable: Callable[[int], bool]
) -> tuple[int, str, bool]:
    """Rank, reason, and whether it is stable."""
    if null.p_value > ALPHA:
        text = f"shuffled labels vary as much between languages (p = {null.p_value:.2g})"
        return 1, f"1, as {text}", is_stable(1)
    if not shares.any():
        return 1, "1, as held-out rows show no variance between languages", is_stable(1)
    most = max(1, len(shares) - 1)
    passing = int(np.argmin(np.append(null.p_values <= ALPHA, False)))
    limit = max(1, min(most, passing, refits.numerical_rank()))
    needed = int(np.argmax(shares >= SHARE - 1e-12)) + 1
    start = min(needed, limit)
    rank = next((r for r in range(start, limit + 1) if is_stable(r)), None)
    sure = rank is not None
    if rank is None:
        rank = next((r for r in range(start - 1, 0, -1) if is_stable(r)), start)
        sure = rank < start
    held = f"{rank} of {len(shares)} directions hold {100 * shares[rank - 1]:.1f} % of the "
    held += "noise-corrected variance between languages on held-out rows"
    if needed > limit:
        why = f"at most L-2 = {most} are taken" if limit == most else f"only {limit} are certain"
        held += f" (95 % would need {needed}, but {why})"
    if not sure:
        return rank, f"{held}; no rank is stable under bootstrap", False
    if rank > start:
        return rank, f"{held}; {start} would, but only from {rank} on are they stable", True
    if rank < start:
        return rank, f"{held}; more are not stable under bootstrap", True
    return rank, f"{held}, and are stable under bootstrap", True
