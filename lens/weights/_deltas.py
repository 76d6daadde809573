"""Size, likeness and histogram of the difference of two tensors, without storing it."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

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
    same,
    threads,
    to_dict,
)
from lens.errors import DtypeError, InputError, ShapeError

BUCKET_BITS = 15  # low bits of a key that its bucket leaves open
BUCKETS = 1 << (31 - BUCKET_BITS)

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


@anywhere
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
        Where to write; fresh memory costs more than the subtraction.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when a is raw uint16.

    Returns
    -------
    numpy.ndarray, float32
        a - b in the shape of a, which is out where that is given. NaN and infinity pass through.

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
    x, y, code = flat(a, b, "ab", dtype)
    counts = np.empty(BUCKETS, np.uint64)
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
