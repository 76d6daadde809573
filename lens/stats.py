"""Intervals and paired tests: Wilson, percentile bootstrap over items, exact McNemar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lens.arrays import Result
from lens.errors import InputError, ShapeError

Floats = NDArray[np.float64]

_BLOCK = 4_000_000  # resampled values held at once (32 MB of float64)


@dataclass(frozen=True, slots=True)
class PairedDifference(Result):
    """Mean of ``after - before`` with its bootstrap interval over ``n`` items."""

    difference: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class McNemar(Result):
    """Items only wrong before (``gained``), only wrong after (``lost``), and the exact p-value."""

    gained: int
    lost: int
    p_value: float


def wilson(k: ArrayLike, n: ArrayLike, *, confidence: float = 0.95) -> tuple[Any, Any]:
    """Score interval of a share (Wilson 1927).

    Parameters
    ----------
    k, n : int or array of int
        Successes and trials, broadcast against each other.
    confidence : float
        Two-sided level, between 0 and 1.

    Returns
    -------
    low, high : float, or float64 arrays for array input
        ``(0, 1)`` where n is 0: nothing is known.

    Raises
    ------
    InputError
        If some k is negative or larger than its n, or confidence is not between 0 and 1.

    Notes
    -----
    With p = k/n: centre (p + z²/2n)/(1 + z²/n), half-width
    z·sqrt(p(1-p)/n + z²/4n²)/(1 + z²/n).
    """
    hits, trials = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float))
    if np.any(hits < 0) or np.any(hits > trials) or not np.all(np.isfinite(trials)):
        raise InputError(
            f"wilson expects 0 <= k <= n, found k={np.asarray(k)!r} and n={np.asarray(n)!r}; "
            "pass counts, not shares"
        )
    z2 = _quantile(confidence) ** 2
    safe = np.maximum(trials, 1.0)
    p, scale = hits / safe, 1.0 + z2 / safe
    centre = (p + z2 / (2 * safe)) / scale
    half = np.sqrt(z2 * (p * (1 - p) / safe + z2 / (4 * safe**2))) / scale
    low = np.where(trials > 0, np.where(hits == 0, 0.0, centre - half), 0.0)
    high = np.where(trials > 0, np.where(hits == trials, 1.0, centre + half), 1.0)
    if low.ndim == 0:
        return float(low), float(high)
    return low, high


def mean_interval(
    values: ArrayLike, seed: int = 0, *, n_resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over items.

    Parameters
    ----------
    values : (n,) or (n, k) array of float
        One row per item. The k columns of an item are resampled together and averaged: with
        languages as columns this is the interval of the average over languages, with the
        correlation between translations of one item kept.
    seed : int
        Seed of the resampling; the same seed gives the same interval.
    n_resamples : int
        Number of bootstrap resamples.
    confidence : float
        Two-sided level, between 0 and 1.

    Returns
    -------
    low, high : float
        NaN, NaN for no items.

    Raises
    ------
    InputError
        If a value is not finite.
    """
    items = _items(values, "values")
    return _percentiles(_resampled_means(items, seed, n_resamples), confidence)


def stratified_interval(
    groups: Sequence[ArrayLike],
    *,
    seed: int = 0,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the average of the groups' means.

    Parameters
    ----------
    groups : sequence of (n_g,) arrays of float or bool
        Independent groups (languages asked different items); each is resampled within itself.
    seed, n_resamples, confidence
        As in :func:`mean_interval`.

    Raises
    ------
    InputError
        If there is no group or a value is not finite.
    """
    if not len(groups):
        raise InputError("there are no groups to average; expected at least one")
    means = [
        _resampled_means(_items(values, f"group {i}"), seed + i, n_resamples)
        for i, values in enumerate(groups)
    ]
    return _percentiles(np.mean(means, axis=0), confidence)


def hierarchical_interval(
    groups: Sequence[ArrayLike],
    seed: int = 0,
    *,
    n_resamples: int = 2_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over models, training seeds and items.

    Parameters
    ----------
    groups : sequence of (s, n) arrays of float
        One array per model (or world): s training seeds in rows, the same n items in columns.
    seed : int
        Seed of the resampling.
    n_resamples : int
        Number of bootstrap resamples.
    confidence : float
        Two-sided level, between 0 and 1.

    Returns
    -------
    low, high : float

    Raises
    ------
    InputError
        If there are no groups, one is empty, or a value is not finite.
    ShapeError
        If an array is not two-dimensional.

    Notes
    -----
    Models are drawn with replacement, then seeds within a model, then items within a model (one
    draw for all its seeds, since they answered the same items). A level with a single member is
    not resampled, so with one model and one seed this is the bootstrap over items alone.
    """
    arrays = [np.asarray(group, float) for group in groups]
    if not arrays or any(array.size == 0 for array in arrays):
        raise InputError("groups: got none or an empty one, expected at least one seed and item")
    if any(array.ndim != 2 for array in arrays):
        raise ShapeError("groups: expected arrays of shape (seeds, items)")
    if not all(np.all(np.isfinite(array)) for array in arrays):
        raise InputError("groups hold NaN or infinity; drop or repair those items first")
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    for k in range(n_resamples):
        drawn = rng.integers(0, len(arrays), len(arrays)) if len(arrays) > 1 else [0]
        means[k] = np.mean([_redrawn(arrays[i], rng) for i in drawn])
    return _percentiles(means, confidence)


def _redrawn(array: Floats, rng: np.random.Generator) -> float:
    """Mean of one model's answers with seeds and items drawn again."""
    seeds, items = array.shape
    if seeds > 1:
        array = array[rng.integers(0, seeds, seeds)]
    return float(array[:, rng.integers(0, items, items)].mean())


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    *,
    seed: int = 0,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
) -> PairedDifference:
    """Difference of means of two systems on the same items, items resampled jointly.

    Parameters
    ----------
    before, after : (n,) or (n, k) arrays of float or bool
        Row i is the same item in both; columns (languages) of an item stay together.
    seed, n_resamples, confidence
        As in :func:`mean_interval`.

    Returns
    -------
    PairedDifference
        ``mean(after) - mean(before)`` and its interval.

    Raises
    ------
    ShapeError
        If the two shapes differ.
    InputError
        If a value is not finite.
    """
    first, second = np.asarray(before, float), np.asarray(after, float)
    if first.shape != second.shape:
        raise ShapeError(
            f"before has shape {first.shape} and after {second.shape}; a paired comparison needs "
            "the same items in both: score both systems on the same questions"
        )
    items = _items(second - first, "after - before")
    low, high = _percentiles(_resampled_means(items, seed, n_resamples), confidence)
    centre = float(items.mean()) if len(items) else math.nan
    return PairedDifference(difference=centre, low=low, high=high, n=len(items))


def mcnemar(before: ArrayLike, after: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test of right/wrong outcomes on the same items.

    Parameters
    ----------
    before, after : (n,) arrays of bool
        Whether each item was right.

    Returns
    -------
    McNemar
        Discordant counts, and p = min(1, 2·P(X ≤ min(gained, lost))), X ~ Binomial(m, 1/2), m
        the number of discordant items; p = 1 where there are none.

    Raises
    ------
    ShapeError
        If the shapes differ or are not one-dimensional.
    """
    first, second = np.asarray(before, bool), np.asarray(after, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ShapeError(
            f"before has shape {first.shape} and after {second.shape}; expected two (n,) arrays "
            "of right/wrong for the same items"
        )
    gained, lost = int(np.sum(~first & second)), int(np.sum(first & ~second))
    m = gained + lost
    term = total = 1  # exact integers: binomials of a few thousand overflow float64
    for i in range(min(gained, lost)):
        term = term * (m - i) // (i + 1)
        total += term
    return McNemar(gained=gained, lost=lost, p_value=min(1.0, 2 * total / 2**m))


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; expected a level such as 0.95")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _items(values: ArrayLike, name: str) -> Floats:
    """Average the columns of each item; the mean over items is then all that is resampled."""
    array = np.asarray(values, float)
    if array.ndim not in (1, 2):
        raise ShapeError(f"{name} has shape {array.shape}; expected (n,) or (n, languages)")
    if not np.all(np.isfinite(array)):
        raise InputError(f"{name} holds NaN or infinity; drop or repair those items first")
    return array if array.ndim == 1 else array.mean(axis=1)


def _resampled_means(items: Floats, seed: int, n_resamples: int) -> Floats:
    if n_resamples < 1:
        raise InputError(f"n_resamples is {n_resamples}; expected at least 1 (10,000 is usual)")
    n = len(items)
    if n == 0:
        return np.full(1, np.nan)
    rng = np.random.default_rng(seed)
    levels, group = np.unique(items, return_inverse=True)
    if len(levels) <= 8:  # right/wrong outcomes: drawing counts is exact and far cheaper
        shares = np.bincount(group.ravel()) / n
        return np.asarray(rng.multinomial(n, shares, size=n_resamples) @ levels / n, float)
    means = np.empty(n_resamples)
    step = max(1, _BLOCK // n)
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        means[start:stop] = items[rng.integers(0, n, size=(stop - start, n))].mean(axis=1)
    return means


def _percentiles(means: Floats, confidence: float) -> tuple[float, float]:
    _quantile(confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
