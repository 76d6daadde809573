"""The k largest |delta| over all tensors of a model, exactly, in two passes over a stream."""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import (
    Array,
    ArrayIn,
    core_errors,
    host,
    is_elsewhere,
    threads,
    to_dict,
    twin,
)
from lens.errors import DtypeError, InputError
from lens.weights._deltas import BUCKET_BITS, BUCKETS, flat, histogram

_PIECE = 1 << 20  # elements marked at once, which bounds what is held in passing
_LOWS = 1 << BUCKET_BITS


@dataclass(frozen=True, slots=True)
class TopKResult:
    """What the two passes of `TopK` found.

    Attributes
    ----------
    threshold : float
        The smallest selected |delta|; infinity when nothing is selected.
    selected : int
        Elements selected: k, or fewer when there are not k deltas other than zero.
    settled : dict of str to numpy.ndarray, uint8
        For each tensor with open marks, 1 for each that is selected and 0 for the others, in order.
    """

    threshold: float
    selected: int
    settled: dict[str, NDArray[np.uint8]]

    def apply(self, name: str, marks: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Turn the marks of a tensor into its mask, in place.

        Parameters
        ----------
        name : str
            Tensor.
        marks : numpy.ndarray, uint8
            What `TopK.select` returned for it; changes.

        Returns
        -------
        numpy.ndarray, bool
            The same memory as a mask.

        Raises
        ------
        DtypeError
            If marks is not a contiguous uint8 array.
        InputError
            If it does not hold as many open marks as it was given.
        """
        keep = self.settled.get(name, np.empty(0, np.uint8))
        if is_elsewhere(marks):
            return cast(NDArray[np.bool_], twin("weights", "settle")(marks, keep, name))
        if not isinstance(marks, np.ndarray) or marks.dtype != np.uint8:
            kind = getattr(marks, "dtype", type(marks).__name__)
            raise DtypeError(f"marks: got {kind}, expected the uint8 array of TopK.select")
        if not (marks.flags.c_contiguous and marks.flags.writeable):
            raise DtypeError("marks: expected a C-contiguous array that may be written to")
        try:
            _core.weights_settle(marks.reshape(-1), keep)
        except ValueError:
            raise wrong_marks(name, keep.size) from None
        return marks.view(np.bool_)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self) | {"settled": {k: x.tolist() for k, x in self.settled.items()}}


class TopK:
    """The k largest |delta| over all tensors of a model, in two passes over a stream.

    First `add` every tensor, in the order of sorted names; then `select` them again in the same
    order, which gives marks; then `finish`, whose result turns marks into masks. No more than one
    tensor is needed at a time.

    Parameters
    ----------
    k : int, optional
        Elements to select.
    share : float in [0, 1], optional
        Share of all elements instead: k = floor(share n + 1/2). Exactly one of both is given.
    n_threads : int
        Threads to use; any number gives the same masks.

    Raises
    ------
    InputError
        If k or share is out of range, or both or neither are given.

    Notes
    -----
    Equal to a stable descending sort of |delta| in float32 over the tensors in sorted order: of
    equal ones, the lowest flat index in the first tensor wins. Zero deltas are never selected.
    The first pass counts the upper 16 of the 31 bits of |delta|; the second marks all above the
    bucket where the k-th lies, leaves the marks of that bucket open and remembers their 15 other
    bits, two bytes each. As soon as k are found, only larger ones are left open.

    References
    ----------
    MAEC, arXiv:2410.07825.

    Examples
    --------
    >>> import numpy as np
    >>> top = TopK(k=2)
    >>> x = {"a": np.float32([1, -5]), "b": np.float32([0, 1])}
    >>> for name in sorted(x):
    ...     top.add(name, x[name])
    >>> marks = {name: top.select(name, x[name]) for name in sorted(x)}
    >>> result = top.finish()
    >>> [result.apply(name, marks[name]).tolist() for name in marks]
    [[True, True], [False, False]]
    """

    def __init__(
        self, k: int | None = None, *, share: float | None = None, n_threads: int = 1
    ) -> None:
        check_amount("TopK", k, share)
        self._k, self._share, self._threads = k, share, threads(n_threads)
        self._counts = np.zeros(BUCKETS, np.uint64)
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._low: int | None = None  # keys from here to high are open
        self._high = self._need = self._want = self._decided = self._inside = self._found = 0
        self._next = 0  # tensor to be selected
        self._seen = np.zeros(_LOWS, np.int64)  # open marks by the low bits of their keys
        self._open: list[tuple[int, NDArray[np.uint16]]] = []  # tensor number, low bits in order
        self._room = np.empty(0, np.uint16)
        self._done = False

    def add(self, name: str, a: ArrayIn, b: ArrayIn = None, *, dtype: str | None = None) -> None:
        """First pass: count the deltas of one tensor.

        Raises
        ------
        InputError
            If the name does not come after the last one, the second pass has begun, or a delta is
            NaN or infinite.
        """
        if self._low is not None:
            raise InputError(f"add: tensor '{name}' came after select; add all tensors first")
        if self._names and name <= self._names[-1]:
            raise InputError(
                f"name: '{name}' came after '{self._names[-1]}', expected each once in sorted order"
            )
        counts = histogram(a, b, n_threads=self._threads, dtype=dtype)
        self._counts += host(counts).astype(np.uint64, copy=False)
        self._names.append(name)
        self._sizes.append(math.prod(np.shape(a)))

    def _choose(self) -> None:
        k = amount(sum(self._sizes), self._k, self._share)
        self._want = min(k, int(self._counts.sum()))
        if self._want == 0:
            self._low = self._high = 1 << 31
            return
        reached = np.cumsum(self._counts[::-1])
        i = int(np.searchsorted(reached, np.uint64(self._want)))
        q = BUCKETS - 1 - i
        self._need = self._want - int(reached[i] - self._counts[q])
        self._inside = int(self._counts[q])
        self._low, self._high = max(1, q << BUCKET_BITS), (q + 1) << BUCKET_BITS

    def select(
        self, name: str, a: ArrayIn, b: ArrayIn = None, *, dtype: str | None = None
    ) -> NDArray[np.uint8]:
        """Second pass: marks of one tensor, which the result of `finish` turns into its mask.

        Returns
        -------
        numpy.ndarray, uint8
            In the shape of a: 1 selected, 0 not, 2 open. A tensor where a is one on another device.

        Raises
        ------
        InputError
            If this is not the next tensor of the first pass.
        """
        if self._low is None:
            self._choose()
        expected = self._names[self._next] if self._next < len(self._names) else None
        size = math.prod(np.shape(a))
        if self._done or name != expected or size != self._sizes[self._next]:
            raise InputError(
                f"select: tensor '{name}' of {size} elements, expected the tensors of add in the "
                f"same order; the next is {expected!r}"
            )
        if is_elsewhere(a):
            split = twin("weights", "select")
            marks, *found = split(a, b, self._low, self._high, dtype=dtype)
            self._remember(*found)
        else:
            x, y, code = flat(a, b, "ab", dtype)
            marks = np.empty(np.shape(a), np.uint8)
            for start in range(0, x.size, _PIECE):
                piece = slice(start, start + _PIECE)
                self._mark(
                    marks.reshape(-1)[piece], x[piece], None if y is None else y[piece], code
                )
        self._next += 1
        return cast(NDArray[np.uint8], marks)

    def _mark(self, marks: NDArray[np.uint8], x: Array, y: Array | None, code: int) -> None:
        if self._room.size < x.size:
            self._room = np.empty(x.size, np.uint16)
        lows = self._room[: x.size]
        with core_errors():
            decided, inside, found = _core.weights_select(
                marks, lows, x, y, self._low or 0, self._high, code, self._threads
            )
        self._remember(decided, inside, lows[:found])

    def _remember(self, decided: int, inside: int, lows: NDArray[np.uint16]) -> None:
        """Take up what was marked 1, what is in the bucket, and the low bits of what is open."""
        self._decided += decided
        self._inside -= inside
        if not lows.size:
            return
        self._open.append((self._next, lows.copy()))
        self._seen += np.bincount(lows, minlength=_LOWS)
        self._found += lows.size
        if self._found >= self._need:  # from now on, only a larger one can be among the best
            base = (self._high - 1) >> BUCKET_BITS << BUCKET_BITS
            self._low = base + self._cut()[0] + 1

    def _cut(self) -> tuple[int, int]:
        """Low bits of the last key that is needed so far, and how many of those that equal it."""
        at_least = np.cumsum(self._seen[::-1])[::-1]
        cut = int(np.flatnonzero(at_least >= self._need)[-1])
        return cut, self._need - int(at_least[cut] - self._seen[cut])

    def finish(self) -> TopKResult:
        """Settle the open marks.

        Raises
        ------
        InputError
            If tensors are missing in the second pass, or were not those of the first.
        """
        if self._low is None:
            self._choose()
        if self._next < len(self._names):
            raise InputError(f"finish: tensor '{self._names[self._next]}' was not selected")
        if self._decided != self._want - self._need or self._inside != 0:
            raise InputError("finish: the tensors changed between add and select")
        self._done = True
        if self._want == 0:
            return TopKResult(math.inf, 0, {})
        cut, left = self._cut()
        settled: dict[str, list[NDArray[np.uint8]]] = {}
        self._open.reverse()
        while self._open:
            number, lows = self._open.pop()
            keep = (lows > cut).view(np.uint8)
            equal = np.flatnonzero(lows == cut)[:left]
            keep[equal] = 1
            left -= equal.size
            settled.setdefault(self._names[number], []).append(keep)
        key = ((self._high - 1) >> BUCKET_BITS << BUCKET_BITS) + cut
        threshold = float(np.uint32(key).view(np.float32))
        joined = {name: np.concatenate(parts) for name, parts in settled.items()}
        return TopKResult(threshold, self._want, joined)


def wrong_marks(name: str, expected: int) -> InputError:
    """Return the error for marks that are not those of `TopK.select`."""
    return InputError(
        f"marks: tensor '{name}' has other open marks than select left in it, expected {expected}; "
        "apply each result once"
    )


def check_amount(where: str, k: int | None, share: float | None) -> None:
    """Refuse anything but exactly one of a count and a share."""
    if (k is None) == (share is None):
        raise InputError(f"{where}: expected exactly one of k and share")
    whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if k is not None and (not whole or k < 0):
        raise InputError(f"k: got {k!r}, expected an integer of at least 0")
    if share is not None and not 0.0 <= share <= 1.0:
        raise InputError(f"share: got {share!r}, expected a number from 0 to 1")


def amount(n: int, k: int | None, share: float | None) -> int:
    """Return how many of n to select: k, or floor(share n + 1/2)."""
    return int(k) if k is not None else math.floor((share or 0.0) * n + 0.5)
