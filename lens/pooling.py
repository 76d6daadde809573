"""Pooling of token states and streaming moments, over float16, bfloat16, float32 and float64.

Everything is accumulated in float64 in an order that depends on the data only, so that batches,
padding, shards and threads change no bit. Tensors on another device than the CPU are pooled and
summed there, to tolerance (see `lens.torch_ops`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lens import _core
from lens.arrays import (
    BF16,
    FAR,
    Array,
    ArrayIn,
    Float64,
    Result,
    anywhere,
    block,
    core_errors,
    float64,
    mask01,
    storage,
    threads,
    torch_op,
    whole,
)
from lens.errors import InputError, ShapeError

__all__ = [
    "BLOCK_ROWS",
    "Moments",
    "StreamingMoments",
    "pool",
]

BLOCK_ROWS = 1024
"""Consecutive row ids that form one leaf of the tree of moments."""

MODES = ("last", "mean", "weighted")


@anywhere
def pool(
    states: ArrayIn,
    mask: ArrayIn,
    *,
    mode: Literal["last", "mean", "weighted"] = "last",
    n_threads: int | None = None,
    dtype: str | None = None,
) -> Float64:
    """Pool the states of the real tokens of each row into one.

    Parameters
    ----------
    states : array (n, t, d), float32, float64, float16 or bfloat16
        Token states; NumPy or a torch tensor.
    mask : array (n, t), bool or integer
        1 for a real token, 0 for padding, whose states are never read.
    mode : {"last", "mean", "weighted"}
        Last real token; mean of the real tokens; mean with weights 1, 2, 3, … in their order, as
        in MEXA.
    n_threads : int, optional
        Threads to use, by default the CPUs of this process; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when states is raw uint16.

    Returns
    -------
    numpy.ndarray (n, d), float64
        For a tensor on another device, a tensor there.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If a row has no real token, or a real token holds NaN or infinity: the message names row
        and token.

    Notes
    -----
    sum_k w_k x_k / sum_k w_k, accumulated in float64 in token order.

    References
    ----------
    Lens, arXiv:2410.04407; MEXA, arXiv:2410.05873.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[1.0], [3.0], [np.nan]]])
    >>> pool(x, np.array([[1, 1, 0]]), mode="mean")
    array([[2.]])
    """
    if mode not in MODES:
        raise InputError(f"mode: got {mode!r}, expected one of {', '.join(MODES)}")
    x = block(states, "states", ndim=3, dtype=dtype)
    n, t, d = x.data.shape
    m = mask01(mask, "mask", (n, t))
    out = np.empty((n, d))
    with core_errors(states=x.data, mask=m):
        _core.pool(out, x.data, m, x.code, MODES.index(mode), threads(n_threads))
    return out


@dataclass(frozen=True, slots=True)
class Moments(Result):
    """Count, mean and variance of each coordinate.

    Attributes
    ----------
    count : int
        Rows.
    mean : numpy.ndarray (d,)
        Mean.
    variance : numpy.ndarray (d,)
        Unbiased variance (divisor count - 1); NaN when there is one row only.
    """

    count: int
    mean: Float64
    variance: Float64


@dataclass(frozen=True, slots=True)
class _Part:
    """Moments of the rows start .. start+count-1."""

    start: int
    count: int
    mean: Float64
    m2: Float64

    @property
    def end(self) -> int:
        return self.start + self.count


def _join(a: _Part, b: _Part) -> _Part:
    mean, m2 = np.empty_like(a.mean), np.empty_like(a.m2)
    with core_errors():
        _core.moments_merge(mean, m2, a.mean, a.m2, b.mean, b.m2, a.count, b.count)
    return _Part(a.start, a.count + b.count, mean, m2)


def _joins(a: _Part, b: _Part) -> bool:
    """Whether two neighbours are one node of the tree, or pieces of one leaf."""
    if a.end != b.start:
        return False
    if a.count >= BLOCK_ROWS or b.count >= BLOCK_ROWS:
        return a.count == b.count and a.start % (2 * a.count) == 0
    return a.start // BLOCK_ROWS == b.start // BLOCK_ROWS


class StreamingMoments:
    """Mean and variance of rows that come in batches, in any order, or from several machines.

    Rows are numbered; blocks of 1,024 consecutive row ids are the leaves of a fixed binary tree,
    and only maximal complete subtrees are kept: O(log n) vectors. Any split on block boundaries,
    merged in any order, gives the same bits; so does feeding a block in consecutive pieces. Other
    splits agree to 1e-12.

    Parameters
    ----------
    d : int
        Width of a row.

    Examples
    --------
    >>> import numpy as np
    >>> moments = StreamingMoments(1)
    >>> moments.update(np.array([[1.0], [3.0]]), 0)
    >>> float(moments.result().mean[0])
    2.0
    """

    __slots__ = ("_parts", "d")

    def __init__(self, d: int) -> None:
        self.d = whole(d, "d", 1)
        self._parts: list[_Part] = []

    @property
    def count(self) -> int:
        """Rows seen so far."""
        return sum(part.count for part in self._parts)

    def update(
        self,
        X: ArrayIn,
        row_ids_start: int,
        *,
        dtype: str | None = None,
        n_threads: int | None = 1,
    ) -> None:
        """Add consecutive rows.

        Parameters
        ----------
        X : array (n, d), float32, float64, float16 or bfloat16
            Rows.
        row_ids_start : int
            Id of the first of them; ids say where in the tree a row belongs.
        dtype : {"bfloat16"}, optional
            Needed when X is raw uint16.
        n_threads : int, optional
            Threads to use; any number gives the same bits.

        Raises
        ------
        ShapeError, DtypeError
            If X does not fit.
        InputError
            If X holds NaN or infinity, or row ids come twice; nothing is added then.

        Notes
        -----
        Welford's recurrence in float64, row after row, within a block; Chan's formula above.
        """
        data, code = storage(X, "X", ndim=2, dtype=dtype)
        n, d = data.shape
        if d != self.d:
            raise ShapeError(f"X: shape {tuple(data.shape)}, expected (n, {self.d})")
        start = whole(row_ids_start, "row_ids_start", 0)
        parts, new = list(self._parts), []
        for row, end in _pieces(start, n):
            tail = next((p for p in parts if p.end == row and row % BLOCK_ROWS != 0), None)
            if tail is not None:  # continue an open block, as if it had come in one piece
                parts.remove(tail)
            rows = data[row - start : end - start]
            new.append(self._extend(tail, rows, row, code, n_threads, row - start))
        self._parts = _settle([*parts, *new])

    def _extend(
        self, tail: _Part | None, rows: Array, row: int, code: int, n: int | None, offset: int
    ) -> _Part:
        if code == FAR:
            part = _Part(row, len(rows), *torch_op("block_moments")(rows, offset))
            return _join(tail, part) if tail else part
        mean, m2 = np.empty(self.d), np.empty(self.d)
        count = tail.count if tail else 0
        a, b = (tail.mean, tail.m2) if tail else (None, None)
        try:
            _core.moments_update(mean, m2, a, b, rows, count, code, threads(n))
        except ValueError:
            values = (rows.astype(np.uint32) << 16).view(np.float32) if code == BF16 else rows
            where = np.argwhere(~np.isfinite(values))
            if not len(where):
                raise InputError("X: the variance overflows float64; scale the rows") from None
            raise InputError(
                f"X: NaN or infinite value in row {offset + int(where[0, 0])}, column "
                f"{int(where[0, 1])}; expected finite numbers"
            ) from None
        return _Part(tail.start if tail else row, count + len(rows), mean, m2)

    def merge(self, other: "StreamingMoments") -> None:
        """Add the rows another instance has seen; their ids must differ from the ones here."""
        if other.d != self.d:
            raise ShapeError(f"other: width {other.d}, expected {self.d}")
        self._parts = _settle([*self._parts, *other._parts])

    def result(self) -> Moments:
        """Count, mean and variance of all rows seen.

        Raises
        ------
        InputError
            If there are none.
        """
        if not self._parts:
            raise InputError("no rows were seen; call update before result")
        total = self._parts[-1]
        for part in reversed(self._parts[:-1]):  # small subtrees lie to the right: they join first
            total = _join(part, total)
        variance = np.full(self.d, np.nan) if total.count < 2 else total.m2 / (total.count - 1)
        return Moments(total.count, total.mean.copy(), variance)

    def to_arrays(self) -> dict[str, Array]:
        """Return the complete state as arrays, for saving.

        Returns
        -------
        dict
            ``start`` (k,) and ``count`` (k,) int64; ``mean`` and ``m2`` (k, d) float64: one row a
            subtree.
        """
        empty = np.empty((0, self.d))
        return {
            "start": np.array([p.start for p in self._parts], dtype=np.int64),
            "count": np.array([p.count for p in self._parts], dtype=np.int64),
            "mean": np.stack([p.mean for p in self._parts]) if self._parts else empty,
            "m2": np.stack([p.m2 for p in self._parts]) if self._parts else empty.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "StreamingMoments":
        """Rebuild an instance from what `to_arrays` returned.

        Raises
        ------
        InputError
            If an array is missing or they do not describe subtrees of the row ids.
        """
        missing = {"start", "count", "mean", "m2"} - set(arrays)
        if missing:
            raise InputError(f"arrays: {', '.join(sorted(missing))} missing; expected to_arrays()")
        mean = float64(arrays["mean"], "mean", shape=(None, None))
        m2 = float64(arrays["m2"], "m2", shape=mean.shape)
        start, count = (np.asarray(arrays[key]) for key in ("start", "count"))
        if start.shape != mean.shape[:1] or count.shape != start.shape:
            raise ShapeError(
                f"arrays: start {start.shape} and count {count.shape}, expected {mean.shape[:1]}"
            )
        out = cls(mean.shape[1])
        out._parts = _settle(
            _Part(int(s), int(c), a.copy(), b.copy())
            for s, c, a, b in zip(start, count, mean, m2, strict=True)
        )
        return out


def table_to_arrays(table: Mapping[str, Mapping[str, StreamingMoments]]) -> dict[str, Array]:
    """Arrays of a table of moments with two keys, under ``first/second/array``."""
    return {
        f"{first}/{second}/{name}": array
        for first, row in table.items()
        for second, moments in row.items()
        for name, array in moments.to_arrays().items()
    }


def table_from_arrays(arrays: Mapping[str, Array]) -> dict[str, dict[str, StreamingMoments]]:
    """Rebuild what `table_to_arrays` took."""
    grouped: dict[str, dict[str, dict[str, Array]]] = {}
    for key, array in arrays.items():
        first, second, name = key.split("/")
        grouped.setdefault(first, {}).setdefault(second, {})[name] = array
    return {
        first: {second: StreamingMoments.from_arrays(found) for second, found in row.items()}
        for first, row in grouped.items()
    }


def _pieces(start: int, n: int) -> Iterable[tuple[int, int]]:
    """Split rows start .. start+n-1 at the block boundaries."""
    row, end = start, start + n
    while row < end:
        stop = min(end, (row // BLOCK_ROWS + 1) * BLOCK_ROWS)
        yield row, stop
        row = stop


def _settle(parts: Iterable[_Part]) -> list[_Part]:
    """Sort by row and join neighbours until only maximal subtrees are left.

    Pieces of one leaf join from left to right; complete subtrees of equal size join in pairs.
    Which pairs exist depends on the row ids alone, hence so do the bits.
    """
    out: list[_Part] = []
    for part in sorted(parts, key=lambda p: p.start):
        if part.start < 0 or part.count < 1:
            raise InputError(f"row ids {part.start}..{part.end - 1} are not a range of rows")
        if out and part.start < out[-1].end:
            last = min(out[-1].end, part.end) - 1
            raise InputError(
                f"row ids {part.start}..{last} were already counted; give every row an id of its "
                "own"
            )
        out.append(part)
        while len(out) > 1 and _joins(out[-2], out[-1]):
            right = out.pop()
            out[-1] = _join(out[-1], right)
    return out
