"""The k largest |delta| of a tensor or a model, exactly, in memory that does not grow with them.

A delta's key is the 31 bits of its float32 size. One pass counts keys by their upper 16 bits, which
gives the bucket that holds the k-th; a second counts the lower 15 bits within it, which gives the
k-th key itself. Larger keys are in; of those that equal it, the first in order (tensors by name,
then flat index) are in until there are k. So a mask is known from a key and two numbers, and is
made anew, slice by slice, wherever it is needed. The order is that of `lens.weights.TopK`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import F32
from lens.weights import histogram

Float32 = NDArray[np.float32]
Counts = NDArray[np.uint64]

BUCKET_BITS = 15
BUCKETS = 1 << (31 - BUCKET_BITS)
_TOP = 1 << 31


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where the k-th lies.

    Attributes
    ----------
    key : int
        Its key: what is larger is selected. 2³¹ when nothing is, 0 when all but zeros are.
    ties : int
        How many of those that equal it are selected.
    of : int
        How many equal it.
    """

    key: int
    ties: int
    of: int


def bucket(counts: Counts, k: int) -> tuple[int, int]:
    """Bucket that holds the k-th largest, and how many of it are among the k.

    Parameters
    ----------
    counts : numpy.ndarray (65536,), uint64
        Of `lens.weights.histogram`: deltas other than zero by the upper bits of their keys.

    Returns
    -------
    tuple (bucket, wanted)
        (-1, 0) when all other than zero are among the k, (65536, 0) when none is.
    """
    if k <= 0:
        return BUCKETS, 0
    if k >= int(counts.sum()):
        return -1, 0
    reached = np.cumsum(counts[::-1])
    i = int(np.searchsorted(reached, np.uint64(k)))
    q = BUCKETS - 1 - i
    return q, k - int(reached[i] - counts[q])


def threshold(q: int, wanted: int, lows: Counts) -> Threshold:
    """Key of the k-th, from its bucket and how often each lower half occurs in it."""
    if q < 0:
        return Threshold(0, 0, 0)
    if q >= BUCKETS:
        return Threshold(_TOP, 0, 0)
    at_least = np.cumsum(lows[::-1])[::-1]
    low = int(np.flatnonzero(at_least >= wanted)[-1])
    ties = wanted - int(at_least[low] - lows[low])
    return Threshold((q << BUCKET_BITS) + low, ties, int(lows[low]))


def lows_in(delta: Float32, q: int) -> Counts:
    """Count the lower halves of the keys of a slice that are in bucket ``q``."""
    if not 0 <= q < BUCKETS:
        return np.zeros(1 << BUCKET_BITS, np.uint64)
    marks, lows = np.empty(delta.size, np.uint8), np.empty(delta.size, np.uint16)
    low, high = max(1, q << BUCKET_BITS), (q + 1) << BUCKET_BITS
    _, _, found = _core.weights_select(marks, lows, delta, None, low, high, F32, 1)
    return np.bincount(lows[:found], minlength=1 << BUCKET_BITS).astype(np.uint64)


def count_ties(delta: Float32, key: int) -> int:
    """How many of a slice have exactly this key."""
    if not 0 < key < _TOP:
        return 0
    return int(np.count_nonzero((delta.view(np.uint32) & np.uint32(0x7FFFFFFF)) == key))


def largest(k: int, slices: Callable[[], Iterable[Float32]]) -> Threshold:
    """Threshold of the k largest over slices that are read twice, one after the other."""
    counts = np.zeros(BUCKETS, np.uint64)
    for delta in slices():
        counts += histogram(delta)
    q, wanted = bucket(counts, k)
    lows = np.zeros(1 << BUCKET_BITS, np.uint64)
    if 0 <= q < BUCKETS:
        for delta in slices():
            lows += lows_in(delta, q)
    return threshold(q, wanted, lows)


def mask_of(delta: Float32, key: int, first: int, last: int) -> NDArray[np.bool_]:
    """Mask of a slice: keys above ``key``, and of those that equal it number first to last.

    Parameters
    ----------
    first, last : int
        Half-open, counted within the slice.
    """
    low = max(key, 1)
    high = low + 1 if 0 < key < _TOP else low
    marks = np.empty(delta.size, np.uint8)
    lows = np.empty(delta.size, np.uint16)
    _, _, ties = _core.weights_select(marks, lows, delta, None, low, high, F32, 1)
    number = np.arange(ties)
    keep = ((number >= first) & (number < last)).astype(np.uint8)
    _core.weights_settle(marks, keep)
    return marks.view(np.bool_)


@dataclass(frozen=True, slots=True)
class TensorCut:
    """Which elements of one tensor are selected.

    Attributes
    ----------
    key : int
        As in `Threshold`.
    first, last : int
        Of those that equal it, number first to last (half-open, counted within the tensor).
    before : tuple of int
        How many equal it before each slice; empty when all or none are selected.
    """

    key: int
    first: int
    last: int
    before: tuple[int, ...] = ()

    def mask(self, delta: Float32, number: int) -> NDArray[np.bool_]:
        """Mask of slice ``number``."""
        before = self.before[number] if self.before else 0
        return mask_of(delta, self.key, self.first - before, self.last - before)


def tensor_cut(
    found: Threshold, slices: Callable[[], Iterable[Float32]], *, from_end: bool = False
) -> TensorCut:
    """Turn the threshold of one tensor into its cut; slices are read again only for ties.

    Parameters
    ----------
    from_end : bool
        Of those that equal the k-th, take the last in order instead of the first.
    """
    if found.ties == found.of:
        return TensorCut(found.key, 0, _TOP)
    counts = [count_ties(delta, found.key) for delta in slices()]
    first = found.of - found.ties if from_end else 0
    return TensorCut(found.key, first, first + found.ties, before_each(counts))


def before_each(counts: Sequence[int]) -> tuple[int, ...]:
    """Sum of the counts before each place."""
    return tuple(int(n) for n in np.concatenate([[0], np.cumsum(counts)[:-1]]))
