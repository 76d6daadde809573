"""Differences between the weights of models: size, similarity, largest elements, combinations.

A delta is a - b of two tensors of one shape and dtype, taken in float32 (float64 for float64) and
never stored unless it is the result; b = None stands for zeros. NumPy arrays or CPU torch tensors
in, NumPy arrays out; bfloat16 results come as their raw bits in uint16. Tensors on another device
are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import (
    BF16,
    F32,
    Array,
    ArrayIn,
    Result,
    block,
    core_errors,
    float64,
    same,
    threads,
    to_dict,
    whole,
)
from lens.errors import DtypeError, InputError, ShapeError

__all__ = [
    "MAX_SOURCES",
    "Comparison",
    "NonFinite",
    "Pair",
    "TopK",
    "TopKResult",
    "Unit",
    "combine",
    "compare",
    "count_nonfinite",
    "delta",
    "histogram",
    "importance",
    "sum_of_squares",
    "topk_masks",
    "topk_units",
]


BUCKET_BITS = 15  # low bits of a key that its bucket leaves open
BUCKETS = 1 << (31 - BUCKET_BITS)

Pair: TypeAlias = tuple[ArrayIn, ArrayIn]
"""Two tensors (a, b) that stand for a - b; b may be None."""


@dataclass(frozen=True, slots=True)
class Comparison(Result):
    """Two deltas x and y side by side.

    Attributes
    ----------
    squares : tuple of two floats
        x.x and y.y.
    dot : float
        x.y.
    cosine : float or None
        x.y / (|x| |y|); None when either delta is zero.
    """

    squares: tuple[float, float]
    dot: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class NonFinite(Result):
    """Number of elements that are NaN, and that are infinite, of either sign."""

    nan: int
    infinite: int


def flat(a: ArrayIn, b: ArrayIn, names: str, dtype: str | None) -> tuple[Array, Array | None, int]:
    """Return two tensors of one shape and dtype as flat views, and their dtype code."""
    x = block(a, names[0], dtype=dtype)
    y = None if b is None else same(b, x, names[1], names[0], dtype=dtype)
    return x.data.reshape(-1), None if y is None else y.data.reshape(-1), x.code


def output(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return `out`, checked, or a new array."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype:
        kind = getattr(out, "dtype", type(out).__name__)
        raise DtypeError(f"out: got {kind}, expected a numpy.ndarray of {dtype}")
    if out.shape != shape:
        raise ShapeError(f"out: shape {out.shape}, expected {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError("out: expected a C-contiguous array that may be written to")
    return out


def delta(
    a: ArrayIn,
    b: ArrayIn = None,
    *,
    out: NDArray[np.float32] | None = None,
    n_threads: int = 1,
    dtype: str | None = None,
) -> NDArray[np.float32]:
    """Difference of two tensors in float32.

    Parameters
    ----------
    a : array, float32, float64, float16 or bfloat16
        Weights.
    b : array, same shape and dtype, optional
        Weights to subtract; None for zeros.
    out : numpy.ndarray, float32, same shape, optional
        Where to write; allocating costs more than the subtraction.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when a is raw uint16.

    Returns
    -------
    numpy.ndarray, float32
        a - b in the shape of a, in ``out`` if given. NaN and infinity are kept.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.

    Notes
    -----
    One float32 subtraction; for float64, one in float64, then rounded.

    Examples
    --------
    >>> import numpy as np
    >>> delta(np.float16([1, 2]), np.float16([1, 1]))
    array([0., 1.], dtype=float32)
    """
    x, y, code = flat(a, b, "ab", dtype)
    result = output(out, np.shape(a), np.dtype(np.float32))
    with core_errors():
        _core.weights_delta(result.reshape(-1), x, y, code, threads(n_threads))
    return result


def _dots(first: Pair, second: Pair | None, n_threads: int, dtype: str | None) -> list[float]:
    a, b, code = flat(*first, "ab", dtype)
    c, d = None, None
    if second is not None:
        c, d, other = flat(*second, "cd", dtype or ("bfloat16" if code == BF16 else None))
        if np.shape(first[0]) != np.shape(second[0]):
            raise ShapeError(
                f"c: shape {tuple(np.shape(second[0]))}, expected {tuple(np.shape(first[0]))} as a "
                "has"
            )
        if other != code:
            raise DtypeError("c: another dtype than a; expected all four tensors to have one")
    sums = np.empty(3)
    with core_errors(a=a, b=b, c=c, d=d):
        _core.weights_dots(sums, a, b, c, d, code, threads(n_threads))
    return [float(x) for x in sums]


def sum_of_squares(
    a: ArrayIn, b: ArrayIn = None, *, n_threads: int = 1, dtype: str | None = None
) -> float:
    """Squared Frobenius norm of a - b.

    Parameters
    ----------
    a, b, n_threads, dtype
        As in `delta`.

    Returns
    -------
    float

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If an element is NaN or infinite; the message names it.

    Notes
    -----
    Deltas are float32 (float64 for float64), squares and sums float64.

    Examples
    --------
    >>> import numpy as np
    >>> sum_of_squares(np.ones(3), np.zeros(3))
    3.0
    """
    return _dots((a, b), None, n_threads, dtype)[0]


def compare(
    first: Pair, second: Pair, *, n_threads: int = 1, dtype: str | None = None
) -> Comparison:
    """Norms, dot product and cosine of two deltas in one pass.

    Parameters
    ----------
    first : tuple (a, b)
        The delta x = a - b; b may be None.
    second : tuple (c, d)
        The delta y = c - d; d may be None. All four have one shape and dtype.
    n_threads, dtype
        As in `delta`.

    Returns
    -------
    Comparison

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If an element is NaN or infinite; the message names it and the tensor, 0 to 3.

    Notes
    -----
    Deltas are float32 (float64 for float64), products and sums float64 over fixed chunks.

    Examples
    --------
    >>> import numpy as np
    >>> compare((np.ones(4), None), (np.ones(4), 3 * np.ones(4))).cosine
    -1.0
    """
    for pair, name in ((first, "first"), (second, "second")):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"{name}: got {type(pair).__name__}, expected a tuple of two tensors")
    xx, yy, xy = _dots(first, second, n_threads, dtype)
    size = math.sqrt(xx) * math.sqrt(yy)
    cosine = max(-1.0, min(1.0, xy / size)) if size > 0 else None
    return Comparison((xx, yy), xy, cosine)


def histogram(
    a: ArrayIn, b: ArrayIn = None, *, n_threads: int = 1, dtype: str | None = None
) -> NDArray[np.uint64]:
    """Count the deltas other than zero by the size of |delta|.

    Parameters
    ----------
    a, b, n_threads, dtype
        As in `delta`.

    Returns
    -------
    numpy.ndarray (65536,), uint64
        Element q counts the deltas whose float32 bits without the sign, shifted right by 15, are q:
        256 buckets of equal width for each power of two.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If a delta is NaN or infinite; the message names the element.

    Examples
    --------
    >>> import numpy as np
    >>> int(histogram(np.ones(5)).argmax()) == 0x3F800000 >> 15
    True
    """
    x, y, code = flat(a, b, "ab", dtype)
    counts = np.empty(BUCKETS, np.uint64)
    with core_errors(a=x, b=y):
        _core.weights_histogram(counts, x, y, code, threads(n_threads))
    return counts


def count_nonfinite(x: ArrayIn, *, n_threads: int = 1, dtype: str | None = None) -> NonFinite:
    """Count NaN and infinite elements.

    Parameters
    ----------
    x : array, float32, float64, float16 or bfloat16
        Weights.
    n_threads, dtype
        As in `delta`.

    Returns
    -------
    NonFinite

    Raises
    ------
    DtypeError
        If x is no array of such a dtype.

    Examples
    --------
    >>> import numpy as np
    >>> count_nonfinite(np.array([1.0, np.nan, -np.inf])).to_dict()
    {'nan': 1, 'infinite': 1}
    """
    data = block(x, "x", dtype=dtype)
    with core_errors():
        counts = _core.weights_nonfinite(data.data.reshape(-1), data.code, threads(n_threads))
    return NonFinite(*counts)


MAX_SOURCES = 16
"""Sources that one call of `combine` takes."""

_OUT: dict[str, tuple[int, Any]] = {
    "float32": (0, np.float32),
    "float64": (1, np.float64),
    "float16": (2, np.float16),
    "bfloat16": (BF16, np.uint16),
}


def combine(
    sources: Sequence[ArrayIn],
    weights: ArrayIn,
    *,
    out: Array | None = None,
    out_dtype: str | None = None,
    n_threads: int = 1,
    dtype: str | None = None,
) -> Array:
    """Linear combination of tensors, rounded once to the output dtype.

    Parameters
    ----------
    sources : sequence of 1 to 16 arrays of one shape
        float32, float64, float16 or bfloat16, also mixed.
    weights : array (len(sources),)
        Finite numbers. A source of weight 0 is not read.
    out : numpy.ndarray of the output dtype, same shape, optional
        Where to write, apart from every source; bfloat16 as uint16.
    out_dtype : {"float32", "float64", "float16", "bfloat16"}, optional
        Default: that of the first source.
    n_threads, dtype
        As in `delta`.

    Returns
    -------
    numpy.ndarray
        sum_s weights[s] sources[s], in ``out`` if given; bfloat16 as raw bits in uint16.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If there are no sources or more than 16, a weight is not finite, or out_dtype is unknown.

    Notes
    -----
    Summed in float64 in the given order, then rounded to nearest, ties to even. A single source of
    weight 1 and of the output dtype is copied byte by byte.

    Examples
    --------
    >>> import numpy as np
    >>> combine([np.float32([1, 2]), np.float32([1, 1])], [1, -0.5])
    array([0.5, 1.5], dtype=float32)
    """
    single = hasattr(sources, "ndim")
    if single or not 1 <= len(sources) <= MAX_SOURCES:
        count = "one array" if single else f"{len(sources)} sources"
        raise InputError(f"sources: got {count}, expected a sequence of 1 to {MAX_SOURCES} arrays")
    blocks = []
    for i, source in enumerate(sources):
        raw = getattr(source, "dtype", None) == np.uint16  # dtype says what raw bits hold
        blocks.append(block(source, f"sources[{i}]", dtype=dtype if raw else None))
        if blocks[i].data.shape != blocks[0].data.shape:
            raise ShapeError(
                f"sources[{i}]: shape {blocks[i].data.shape}, expected {blocks[0].data.shape} as "
                "sources[0] has"
            )
    w = float64(weights, "weights", shape=(len(blocks),))
    kind = out_dtype or blocks[0].dtype_name
    if kind not in _OUT:
        raise InputError(f"out_dtype: got {kind!r}, expected one of {', '.join(_OUT)}")
    code, storage = _OUT[kind]
    result = output(out, blocks[0].data.shape, np.dtype(storage))
    flat = tuple(x.data.reshape(-1) for x in blocks)
    with core_errors():
        _core.weights_combine(result.reshape(-1), flat, w, code, threads(n_threads))
    return result


_PIECE = 1 << 20  # elements marked at once, which bounds temporary memory
_LOWS = 1 << BUCKET_BITS


@dataclass(frozen=True, slots=True)
class TopKResult(Result):
    """Result of the two passes of `TopK`.

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
        if not isinstance(marks, np.ndarray) or marks.dtype != np.uint8:
            kind = getattr(marks, "dtype", type(marks).__name__)
            raise DtypeError(f"marks: got {kind}, expected the uint8 array of TopK.select")
        if not (marks.flags.c_contiguous and marks.flags.writeable):
            raise DtypeError("marks: expected a C-contiguous array that may be written to")
        try:
            _core.weights_settle(marks.reshape(-1), keep)
        except ValueError:
            raise InputError(
                f"marks: tensor '{name}' has other open marks than select left in it, expected "
                f"{keep.size}; apply each result once"
            ) from None
        return marks.view(np.bool_)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, marks as lists."""
        return to_dict(self) | {"settled": {k: x.tolist() for k, x in self.settled.items()}}


class TopK:
    """The k largest |delta| over all tensors of a model, in two passes over a stream.

    First `add` every tensor, in the order of sorted names; then `select` them again in the same
    order, which returns marks; then `finish`, whose result turns marks into masks. Only one tensor
    is needed at a time.

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
    bucket of the k-th, leaves the marks of that bucket open and stores their 15 other bits, two
    bytes each. As soon as k are found, only larger ones are left open.

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
        self._counts += counts.astype(np.uint64, copy=False)
        self._names.append(name)
        self._sizes.append(math.prod(np.shape(a)))

    def _choose(self) -> None:
        k = amount(sum(self._sizes), self._k, self._share)
        self._want = min(k, int(self._counts.sum()))
        if self._want == 0:
            self._low = self._high = 1 << 31
            return
        q, self._need = _kth(self._counts, self._want)
        self._inside = int(self._counts[q])
        self._low, self._high = max(1, q << BUCKET_BITS), (q + 1) << BUCKET_BITS

    def select(
        self, name: str, a: ArrayIn, b: ArrayIn = None, *, dtype: str | None = None
    ) -> NDArray[np.uint8]:
        """Second pass: marks of one tensor, which the result of `finish` turns into its mask.

        Returns
        -------
        numpy.ndarray, uint8
            In the shape of a: 1 selected, 0 not, 2 open.

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
        x, y, code = flat(a, b, "ab", dtype)
        marks = np.empty(np.shape(a), np.uint8)
        for start in range(0, x.size, _PIECE):
            piece = slice(start, start + _PIECE)
            self._mark(marks.reshape(-1)[piece], x[piece], None if y is None else y[piece], code)
        self._next += 1
        return marks

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
        """Count marks of 1 and keys in the bucket, and store the low bits of open keys."""
        self._decided += decided
        self._inside -= inside
        if not lows.size:
            return
        self._open.append((self._next, lows.copy()))
        self._seen += np.bincount(lows, minlength=_LOWS)
        self._found += lows.size
        if self._found >= self._need:  # from now on, only a larger one can be among the k
            base = (self._high - 1) >> BUCKET_BITS << BUCKET_BITS
            self._low = base + _kth(self._seen, self._need)[0] + 1

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
        cut, left = _kth(self._seen, self._need)
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


def check_amount(where: str, k: int | None, share: float | None) -> None:
    """Refuse anything but exactly one of a count and a share."""
    if (k is None) == (share is None):
        raise InputError(f"{where}: expected exactly one of k and share")
    if k is not None:
        whole(k, "k", 0)
    if share is not None and not 0.0 <= share <= 1.0:
        raise InputError(f"share: got {share!r}, expected a number from 0 to 1")


def amount(n: int, k: int | None, share: float | None) -> int:
    """Return how many of n to select: k, or floor(share n + 1/2)."""
    return int(k) if k is not None else share_of(share or 0.0, n)


def share_of(share: float, n: int) -> int:
    """Round a share of n to a count: floor(share n + 1/2)."""
    return math.floor(share * n + 0.5)


def _kth(counts: NDArray[Any], k: int) -> tuple[int, int]:
    """Index whose count holds the k-th of the largest, and how many of it are among the k."""
    at_least = np.cumsum(counts[::-1])[::-1]
    i = int(np.flatnonzero(at_least >= k)[-1])
    return i, k - int(at_least[i] - counts[i])


Unit: TypeAlias = Literal["element", "row", "column"]
"""What is selected as a whole; a row of a weight (out, in) is an output neuron."""

_UNITS = ("element", "row", "column")


def importance(
    a: ArrayIn,
    b: ArrayIn = None,
    *,
    unit: Unit = "row",
    n_threads: int = 1,
    dtype: str | None = None,
) -> Array:
    """Mean |a - b| of each row or column of a tensor, or |a - b| of each element.

    Parameters
    ----------
    a, b
        As in `delta`, (out, in) as in torch.nn.Linear. A layer that stores its weight the other
        way, such as Conv1D of GPT-2, is transposed by the caller first.
    unit : {"row", "column", "element"}
        Rows are along the last axis, columns along the last but one; leading axes are kept, so each
        expert of an (experts, out, in) tensor has rows and columns of its own. A tensor of fewer
        than two axes goes by element.
    n_threads, dtype
        As in `delta`.

    Returns
    -------
    numpy.ndarray, float64 (float32 by element)
        Shaped as a, with the axis of the mean of length 1, so that it broadcasts against a.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If the unit is unknown, the mean is over nothing, or a delta is NaN or infinite; the message
        names row and column.

    Notes
    -----
    Deltas are float32 (float64 for float64); their absolute values are summed in float64, in a
    fixed order.

    Examples
    --------
    >>> import numpy as np
    >>> importance(np.float32([[1, -3], [0, 1]])).tolist()
    [[2.0], [0.5]]
    >>> importance(np.float32([[1, -3], [0, 1]]), unit="column").tolist()
    [[0.5, 2.0]]
    """
    _check_unit(unit)
    x, y, code = flat(a, b, "ab", dtype)
    shape = tuple(np.shape(a))
    if unit == "element" or len(shape) < 2:
        size: Array = delta(a, b, n_threads=n_threads, dtype=dtype)
        np.abs(size, out=size)
        _check_finite(size, "a - b")
        return size
    n, d = shape[-2:]
    row = unit == "row"
    out = np.empty((*shape[:-1], 1) if row else (*shape[:-2], 1, d))
    mean = _core.weights_row_means if row else _core.weights_column_means
    if out.size == 0:
        return out
    if x.size == 0:
        raise InputError(f"a: shape {shape}, expected rows and columns of at least one element")
    parts = out.reshape(-1, n if row else d)
    for i, part in enumerate(parts):
        at = slice(i * n * d, (i + 1) * n * d)
        first, second = x[at].reshape(n, d), None if y is None else y[at].reshape(n, d)
        with core_errors(a=first, b=second):
            mean(part, first, second, code, threads(n_threads))
    return out


def topk_units(
    sizes: Mapping[str, ArrayIn], *, k: int | None = None, share: float | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Masks of the k most important units over all tensors.

    Parameters
    ----------
    sizes : mapping of str to array
        Importance by name of tensor, not negative, as from `importance`; float32 and float64.
    k : int, optional
        Units to select.
    share : float in [0, 1], optional
        Share of all units instead: k = floor(share n + 1/2).

    Returns
    -------
    dict of str to numpy.ndarray, bool
        A mask in the shape of each array, in sorted order of names.

    Raises
    ------
    DtypeError
        If an array holds no floating-point numbers.
    InputError
        If an importance is negative, NaN or infinite, or not exactly one of k and share is given.

    Notes
    -----
    Equal to a stable descending sort in float64: of equal ones, the lowest flat index in the first
    tensor of the sorted names wins. An importance of zero is never selected. Twelve bytes are held
    for each unit; for single elements of large tensors use `TopK`.

    References
    ----------
    MAEC, arXiv:2410.07825.

    Examples
    --------
    >>> import numpy as np
    >>> topk_units({"w": np.array([[2.0], [0.0], [3.0]])}, k=1)["w"].tolist()
    [[False], [False], [True]]
    """
    check_amount("topk_units", k, share)
    names = sorted(sizes)
    arrays = [block(sizes[name], f"sizes['{name}']").data for name in names]
    for name, x in zip(names, arrays, strict=True):
        _check_finite(x, f"sizes['{name}']")
    flat_sizes = np.concatenate([np.empty(0), *(x.reshape(-1).astype(np.float64) for x in arrays)])
    if (flat_sizes < 0).any():
        raise InputError("sizes: a negative importance, expected numbers of at least 0")
    want = min(amount(flat_sizes.size, k, share), int(np.count_nonzero(flat_sizes)))
    mask = np.zeros(flat_sizes.size, np.bool_)
    if want > 0:
        cut = np.partition(flat_sizes, flat_sizes.size - want)[flat_sizes.size - want]
        np.greater(flat_sizes, cut, out=mask)
        mask[np.flatnonzero(flat_sizes == cut)[: want - int(mask.sum())]] = True
    parts = np.split(mask, np.cumsum([x.size for x in arrays])[:-1]) if arrays else []
    return {name: part.reshape(x.shape) for name, x, part in zip(names, arrays, parts, strict=True)}


def topk_masks(
    a: Mapping[str, ArrayIn],
    b: Mapping[str, ArrayIn] | None = None,
    *,
    k: int | None = None,
    share: float | None = None,
    unit: Unit = "element",
    per_tensor: bool = False,
    n_threads: int = 1,
    dtype: str | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Masks of the k largest |delta| over all tensors held in memory.

    Parameters
    ----------
    a : mapping of str to array
        Weights by name.
    b : mapping of str to array, optional
        Weights to subtract, with the same names; None for zeros.
    k, share
        As in `TopK`, in units.
    unit : {"element", "row", "column"}
        What is selected as a whole, by its mean |delta|, as in `importance`; tensors of fewer than
        two axes go by element, and each of their elements counts as one unit.
    per_tensor : bool
        Select k units, or this share, of each tensor instead of all together.
    n_threads, dtype
        As in `delta`.

    Returns
    -------
    dict of str to numpy.ndarray, bool
        A mask for each tensor, in sorted order of names. It broadcasts against the tensor: by row
        its last axis has length 1, by column the last but one; numpy.broadcast_to expands it.

    Raises
    ------
    ShapeError, DtypeError
        If two arrays do not fit together.
    InputError
        If the names differ, a delta is NaN or infinite, the unit is unknown, or not exactly one of
        k and share is given.

    Notes
    -----
    Ties go to the lowest flat index of the first tensor in sorted order; units of importance zero
    are never selected.

    References
    ----------
    MAEC, arXiv:2410.07825.

    Examples
    --------
    >>> import numpy as np
    >>> topk_masks({"w": np.float32([3, -4, 0])}, k=1)["w"]
    array([False,  True, False])
    >>> w = np.float32([[1, 1], [3, 0]])
    >>> (w * topk_masks({"w": w}, k=1, unit="row")["w"]).tolist()
    [[0.0, 0.0], [3.0, 0.0]]
    """
    _check_unit(unit)
    if b is not None and set(a) != set(b):
        name = min(set(a) ^ set(b))
        raise InputError(f"b: tensor '{name}' is in one of a and b only, expected the same names")
    names = sorted(a)
    groups = [[name] for name in names] if per_tensor else [names]
    masks: dict[str, NDArray[np.bool_]] = {}
    check_amount("topk_masks", k, share)
    how: dict[str, Any] = {"n_threads": n_threads, "dtype": dtype}
    for group in groups:
        pairs = {name: (a[name], None if b is None else b[name]) for name in group}
        if unit == "element":
            masks |= _element_masks(pairs, TopK(k, share=share, n_threads=n_threads), dtype)
        else:
            sizes = {name: importance(*pair, unit=unit, **how) for name, pair in pairs.items()}
            masks |= topk_units(sizes, k=k, share=share)
    return masks


def _element_masks(
    pairs: Mapping[str, tuple[ArrayIn, ArrayIn]], top: TopK, dtype: str | None
) -> dict[str, NDArray[np.bool_]]:
    for name, pair in pairs.items():
        top.add(name, *pair, dtype=dtype)
    marks = {name: top.select(name, *pair, dtype=dtype) for name, pair in pairs.items()}
    result = top.finish()
    return {name: result.apply(name, mark) for name, mark in marks.items()}


def _check_unit(unit: str) -> None:
    if unit not in _UNITS:
        raise InputError(f"unit: got {unit!r}, expected one of {', '.join(_UNITS)}")


def _check_finite(x: Array, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise InputError(f"{name}: NaN or infinite value, element {bad[0]}")


Float32 = NDArray[np.float32]
Counts = NDArray[np.uint64]
_EVERY = 1 << 31  # above every key


@dataclass(frozen=True, slots=True)
class Threshold:
    """The k-th largest of a set of deltas."""

    key: int  # the 31 bits of its |delta|; 2³¹ when nothing is selected, 0 when all but zeros are
    ties: int  # how many of those equal to it are selected
    of: int  # how many are equal to it


def bucket(counts: Counts, k: int) -> tuple[int, int]:
    """Bucket of a `histogram` that holds the k-th largest, and how many of it are among the k.

    (-1, 0) when all other than zero are among the k, (65536, 0) when none is.
    """
    if k <= 0:
        return BUCKETS, 0
    return (-1, 0) if k >= int(counts.sum()) else _kth(counts, k)


def threshold(q: int, wanted: int, lows: Counts) -> Threshold:
    """Threshold from its bucket and `lows_in` that bucket."""
    if not 0 <= q < BUCKETS:
        return Threshold(0 if q < 0 else _EVERY, 0, 0)
    low, ties = _kth(lows, wanted)
    return Threshold((q << BUCKET_BITS) + low, ties, int(lows[low]))


def lows_in(delta: Float32, q: int) -> Counts:
    """Count the lower halves of the keys that are in bucket ``q``."""
    if not 0 <= q < BUCKETS:
        return np.zeros(_LOWS, np.uint64)
    _, lows = _marked(delta, max(1, q << BUCKET_BITS), (q + 1) << BUCKET_BITS)
    return np.bincount(lows, minlength=_LOWS).astype(np.uint64)


def count_ties(delta: Float32, key: int) -> int:
    """Count the deltas that have exactly this key."""
    if not 0 < key < _EVERY:
        return 0
    return int(np.count_nonzero((delta.view(np.uint32) & np.uint32(0x7FFFFFFF)) == key))


def _marked(delta: Float32, low: int, high: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Mark as `TopK.select` does; also return the lower halves of the open keys."""
    marks, lows = np.empty(delta.size, np.uint8), np.empty(delta.size, np.uint16)
    _, _, found = _core.weights_select(marks, lows, delta, None, low, high, F32, 1)
    return marks, lows[:found]


@dataclass(frozen=True, slots=True)
class TopKMask:
    """Mask of the largest elements of one tensor, computed chunk by chunk."""

    key: int  # as in `Threshold`
    first: int = 0
    last: int = _EVERY  # of those equal to it, number first to last, half-open
    before: tuple[int, ...] = ()  # how many are equal to it before each chunk; empty for all

    def mask(self, delta: Float32, number: int) -> NDArray[np.bool_]:
        """Mask of chunk ``number``."""
        before = self.before[number] if self.before else 0
        low = max(self.key, 1)
        marks, ties = _marked(delta, low, low + (0 < self.key < _EVERY))
        index = np.arange(before, before + ties.size)
        keep = ((index >= self.first) & (index < self.last)).astype(np.uint8)
        _core.weights_settle(marks, keep)
        return marks.view(np.bool_)


def topk_mask(k: int, chunks: Callable[[], Iterable[Float32]], *, last: bool = False) -> TopKMask:
    """Mask of the k largest |delta| of a tensor; zeros are never selected.

    ``chunks`` returns its deltas, float32, chunk by chunk, and is called two or three times. Of
    those equal to the k-th, the first in order are selected, or the ``last``.
    """
    counts, lows = np.zeros(BUCKETS, np.uint64), np.zeros(_LOWS, np.uint64)
    for delta in chunks():
        counts += histogram(delta)
    q, wanted = bucket(counts, k)
    if 0 <= q < BUCKETS:
        for delta in chunks():
            lows += lows_in(delta, q)
    found = threshold(q, wanted, lows)
    if found.ties == found.of:
        return TopKMask(found.key)
    ties = [count_ties(delta, found.key) for delta in chunks()]
    first = found.of - found.ties if last else 0
    return TopKMask(found.key, first, first + found.ties, before_each(ties))


def before_each(counts: Sequence[int]) -> tuple[int, ...]:
    """Sum of the counts before each position."""
    return tuple(int(n) for n in np.concatenate([[0], np.cumsum(counts)[:-1]]))
