"""Differences between the weights of models: size, likeness, the largest elements, combinations.

A delta is a - b of two tensors of one shape and dtype, taken in float32 (float64 for float64) and
never stored unless it is the result; b = None stands for zeros. NumPy arrays or CPU torch tensors
in, NumPy arrays out; bfloat16 results come as their raw bits in uint16. Tensors on another device
stay there, and results are tensors of their dtype (see `lens.tensors`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import (
    BF16,
    Array,
    ArrayIn,
    anywhere,
    block,
    core_errors,
    float64,
    host,
    is_elsewhere,
    same,
    threads,
    to_dict,
    twin,
)
from lens.errors import DtypeError, InputError, ShapeError

__all__ = [
    "MAX_SOURCES",
    "Comparison",
    "NonFinite",
    "TopK",
    "TopKResult",
    "combine",
    "compare",
    "count_nonfinite",
    "delta",
    "histogram",
    "sum_of_squares",
    "topk_masks",
]

MAX_SOURCES = 16
"""Sources that one call of `combine` takes."""

_BUCKET_BITS = 15  # low bits of a key that its bucket leaves open
_BUCKETS = 1 << (31 - _BUCKET_BITS)
_PIECE = 1 << 22  # elements searched for ties at once
_OUT = {
    "float32": (0, np.float32),
    "float64": (1, np.float64),
    "float16": (2, np.float16),
    "bfloat16": (BF16, np.uint16),
}

Pair: TypeAlias = tuple[ArrayIn, ArrayIn]
"""Two tensors (a, b) that stand for a - b; b may be None."""


@dataclass(frozen=True, slots=True)
class Comparison:
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

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self)


@dataclass(frozen=True, slots=True)
class NonFinite:
    """How many elements are no finite numbers.

    Attributes
    ----------
    nan : int
        Elements that are NaN.
    infinite : int
        Elements that are infinite, of either sign.
    """

    nan: int
    infinite: int

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self)


@dataclass(frozen=True, slots=True)
class TopKResult:
    """What the two passes of `TopK` found.

    Attributes
    ----------
    threshold : float
        The smallest selected |delta|; infinity when nothing is selected.
    selected : int
        Elements selected: k, or fewer when there are not k deltas other than zero.
    ties : dict of str to numpy.ndarray, int64
        For each tensor that has any, the flat indices to set in the mask of `TopK.select`.
    """

    threshold: float
    selected: int
    ties: dict[str, NDArray[np.int64]]

    def apply(self, name: str, mask: NDArray[np.bool_]) -> None:
        """Set the remaining elements of a tensor in its mask, which changes."""
        if name in self.ties:
            mask.reshape(-1)[self.ties[name]] = True


def _flat(a: ArrayIn, b: ArrayIn, names: str, dtype: str | None) -> tuple[Array, Array | None, int]:
    x = block(a, names[0], dtype=dtype)
    y = None if b is None else same(b, x, names[1], names[0], dtype=dtype)
    return x.data.reshape(-1), None if y is None else y.data.reshape(-1), x.code


@anywhere
def delta(
    a: ArrayIn, b: ArrayIn = None, *, n_threads: int = 1, dtype: str | None = None
) -> NDArray[np.float32]:
    """Difference of two tensors in float32.

    Parameters
    ----------
    a : array, float32, float64, float16 or bfloat16
        Weights.
    b : array, same shape and dtype, optional
        Weights to subtract; None for zeros.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when a is raw uint16.

    Returns
    -------
    numpy.ndarray, float32
        a - b in the shape of a. NaN and infinity pass through.

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
    x, y, code = _flat(a, b, "ab", dtype)
    out = np.empty(x.size, np.float32)
    with core_errors():
        _core.weights_delta(out, x, y, code, threads(n_threads))
    return out.reshape(np.shape(a))


def _dots(first: Pair, second: Pair | None, n_threads: int, dtype: str | None) -> list[float]:
    a, b, code = _flat(*first, "ab", dtype)
    c, d = None, None
    if second is not None:
        c, d, other = _flat(*second, "cd", dtype or ("bfloat16" if code == BF16 else None))
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


@anywhere
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


@anywhere
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
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when the arrays are raw uint16.

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
    check_pairs(first, second)
    return comparison(*_dots(first, second, n_threads, dtype))


def check_pairs(first: Pair, second: Pair) -> None:
    """Refuse what is no pair of tensors."""
    for pair, name in ((first, "first"), (second, "second")):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"{name}: got {type(pair).__name__}, expected a tuple of two tensors")


def comparison(xx: float, yy: float, xy: float) -> Comparison:
    """Return two squared norms and a dot product with their cosine."""
    size = math.sqrt(xx) * math.sqrt(yy)
    cosine = max(-1.0, min(1.0, xy / size)) if size > 0 else None
    return Comparison((xx, yy), xy, cosine)


@anywhere
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
    x, y, code = _flat(a, b, "ab", dtype)
    counts = np.empty(_BUCKETS, np.uint64)
    with core_errors(a=x, b=y):
        _core.weights_histogram(counts, x, y, code, threads(n_threads))
    return counts


@anywhere
def count_nonfinite(x: ArrayIn, *, n_threads: int = 1, dtype: str | None = None) -> NonFinite:
    """Count NaN and infinite elements.

    Parameters
    ----------
    x : array, float32, float64, float16 or bfloat16
        Weights.
    n_threads : int
        Threads to use.
    dtype : {"bfloat16"}, optional
        Needed when x is raw uint16.

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


@anywhere
def combine(
    sources: Sequence[ArrayIn],
    weights: ArrayIn,
    *,
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
    out_dtype : {"float32", "float64", "float16", "bfloat16"}, optional
        Default: that of the first source.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when a source is raw uint16.

    Returns
    -------
    numpy.ndarray
        sum_s weights[s] sources[s]; bfloat16 as raw bits in uint16.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If there are no sources or more than 16, a weight is not finite, or out_dtype is unknown.

    Notes
    -----
    Summed in float64 in the given order, then rounded to nearest, ties to even. A lone source of
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
    out: Array = np.empty(blocks[0].data.size, storage)
    flat = tuple(x.data.reshape(-1) for x in blocks)
    with core_errors():
        _core.weights_combine(out, flat, w, code, threads(n_threads))
    return out.reshape(blocks[0].data.shape)


class TopK:
    """The k largest |delta| over all tensors of a model, in two passes over a stream.

    First `add` every tensor, in the order of sorted names; then `select` them again in the same
    order, which gives masks; then `finish`, which says where the ties go. No more than one tensor
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
    The first pass counts the upper 16 of the 31 bits of |delta|; the second selects all above the
    bucket where the k-th lies and remembers the elements in it, at most about 2 k and one tensor's.

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
    >>> masks = {name: top.select(name, x[name]) for name in sorted(x)}
    >>> result = top.finish()
    >>> for name in masks:
    ...     result.apply(name, masks[name])
    >>> [mask.tolist() for mask in masks.values()]
    [[True, True], [False, False]]
    """

    def __init__(
        self, k: int | None = None, *, share: float | None = None, n_threads: int = 1
    ) -> None:
        if (k is None) == (share is None):
            raise InputError("TopK: expected exactly one of k and share")
        whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
        if k is not None and (not whole or k < 0):
            raise InputError(f"k: got {k!r}, expected an integer of at least 0")
        if share is not None and not 0.0 <= share <= 1.0:
            raise InputError(f"share: got {share!r}, expected a number from 0 to 1")
        self._k, self._share, self._threads = k, share, threads(n_threads)
        self._counts = np.zeros(_BUCKETS, np.uint64)
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._low: int | None = None  # keys from here to high are in the bucket of the k-th
        self._high = self._need = self._want = self._decided = self._seen = self._next = 0
        self._ties: list[tuple[Array, Array, Array]] = []  # tensor number, flat index, key
        self._kept = 0
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
        k = self._k
        if k is None:
            k = math.floor((self._share or 0.0) * sum(self._sizes) + 0.5)
        self._want = min(int(k), int(self._counts.sum()))
        if self._want == 0:
            self._low = self._high = 1 << 31
            return
        reached = np.cumsum(self._counts[::-1])
        i = int(np.searchsorted(reached, np.uint64(self._want)))
        q = _BUCKETS - 1 - i
        self._need = self._want - int(reached[i] - self._counts[q])
        self._low, self._high = max(1, q << _BUCKET_BITS), (q + 1) << _BUCKET_BITS

    def select(
        self, name: str, a: ArrayIn, b: ArrayIn = None, *, dtype: str | None = None
    ) -> NDArray[np.bool_]:
        """Second pass: mask of one tensor, with ties still to be set by the result of `finish`.

        Returns
        -------
        numpy.ndarray, bool
            In the shape of a; a tensor where a is one on another device.

        Raises
        ------
        InputError
            If this is not the next tensor of the first pass.
        """
        if self._low is None:
            self._choose()
        low = self._low or 0
        expected = self._names[self._next] if self._next < len(self._names) else None
        size = math.prod(np.shape(a))
        if self._done or name != expected or size != self._sizes[self._next]:
            raise InputError(
                f"select: tensor '{name}' of {size} elements, expected the tensors of add in the "
                f"same order; the next is {expected!r}"
            )
        split = twin("weights", "select") if is_elsewhere(a) else self._split
        mask, decided = split(a, b, low, self._high, self._spill, dtype=dtype)
        self._decided += decided
        self._next += 1
        return cast(NDArray[np.bool_], mask)

    def _split(
        self,
        a: ArrayIn,
        b: ArrayIn,
        low: int,
        high: int,
        spill: Callable[[Array, Array], None],
        *,
        dtype: str | None,
    ) -> tuple[NDArray[np.bool_], int]:
        """Mask of keys from high on, and their number; keys from low on are spilled."""
        x, y, code = _flat(a, b, "ab", dtype)
        mask = np.empty(x.size, np.uint8)
        with core_errors():
            decided = _core.weights_select(mask, x, y, low, high, code, self._threads)
        for start in range(0, x.size, _PIECE):
            found = np.flatnonzero(mask[start : start + _PIECE] == 2) + start
            if found.size:
                mask[found] = 0
                out = np.empty(found.size, np.float32)
                with core_errors():
                    _core.weights_delta(out, x[found], None if y is None else y[found], code, 1)
                spill(found, out.view(np.uint32) & np.uint32(0x7FFFFFFF))
        return mask.view(np.bool_).reshape(np.shape(a)), decided

    def _spill(self, index: Array, keys: Array) -> None:
        """Remember elements of the bucket in which the k-th lies."""
        self._ties.append((np.full(index.size, self._next, np.int32), index, keys))
        self._seen += index.size
        self._kept += index.size
        if self._kept > 2 * self._need + _PIECE:
            self._prune()

    def _prune(self) -> None:
        """Keep the elements that are still among the best of the bucket, in their order."""
        tensor, index, keys = (np.concatenate(x) for x in zip(*self._ties, strict=True))
        best = np.argsort(~keys, kind="stable")[: self._need]
        best.sort()
        self._ties = [(tensor[best], index[best], keys[best])]
        self._kept = best.size

    def finish(self) -> TopKResult:
        """Settle the ties.

        Raises
        ------
        InputError
            If tensors are missing in the second pass, or were not those of the first.
        """
        if self._low is None:
            self._choose()
        if self._next < len(self._names):
            raise InputError(f"finish: tensor '{self._names[self._next]}' was not selected")
        bucket = 0 if self._want == 0 else int(self._counts[(self._high >> _BUCKET_BITS) - 1])
        if self._decided != self._want - self._need or self._seen != bucket:
            raise InputError("finish: the tensors changed between add and select")
        self._done = True
        if self._want == 0:
            return TopKResult(math.inf, 0, {})
        self._prune()
        tensor, index, keys = self._ties[0]
        threshold = float(keys.min().view(np.float32))
        ties = {self._names[i]: index[tensor == i] for i in np.unique(tensor)}
        return TopKResult(threshold, self._want, ties)


def topk_masks(
    a: Mapping[str, ArrayIn],
    b: Mapping[str, ArrayIn] | None = None,
    *,
    k: int | None = None,
    share: float | None = None,
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
    k, share, n_threads
        As in `TopK`.
    dtype : {"bfloat16"}, optional
        Needed when the arrays are raw uint16.

    Returns
    -------
    dict of str to numpy.ndarray, bool
        A mask for each tensor, in sorted order of names.

    Raises
    ------
    ShapeError, DtypeError
        If two arrays do not fit together.
    InputError
        If the names differ, a delta is NaN or infinite, or k and share do not say how many.

    Notes
    -----
    Ties go to the lowest flat index of the first tensor in sorted order; zero deltas are never
    selected.

    References
    ----------
    MAEC, arXiv:2410.07825.

    Examples
    --------
    >>> import numpy as np
    >>> topk_masks({"w": np.float32([3, -4, 0])}, k=1)["w"]
    array([False,  True, False])
    """
    if b is not None and set(a) != set(b):
        name = min(set(a) ^ set(b))
        raise InputError(f"b: tensor '{name}' is in one of a and b only, expected the same names")
    top = TopK(k, share=share, n_threads=n_threads)
    names = sorted(a)
    for name in names:
        top.add(name, a[name], None if b is None else b[name], dtype=dtype)
    masks = {
        name: top.select(name, a[name], None if b is None else b[name], dtype=dtype)
        for name in names
    }
    result = top.finish()
    for name, mask in masks.items():
        result.apply(name, mask)
    return masks
