"""`lens.weights` for tensors on other devices: deltas, their sums and largest, combinations.

Tensors are taken in pieces of 4 Mi elements, so that no second tensor of their size is held in
float64.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens.arrays import Array, host
from lens.errors import DtypeError, InputError, ShapeError
from lens.tensors import pairs
from lens.tensors.checks import DTYPES, NAMES, accumulator, first, same, small, tensor, wide
from lens.weights import (
    MAX_SOURCES,
    Comparison,
    NonFinite,
    Pair,
    check_pairs,
    comparison,
    wrong_marks,
)

_PIECE = 1 << 22
_INFINITE = 0x7F800000  # keys from here on are of NaN and infinity
_BUCKETS, _BUCKET_BITS = 1 << 16, 15


def _flat(
    a: Any, b: Any, names: str = "ab", dtype: str | None = None
) -> tuple[Tensor, Tensor | None]:
    x = tensor(a, names[0], dtype=dtype)
    y = None if b is None else same(b, x, names[1], names[0]).reshape(-1)
    return x.reshape(-1), y


def _subtract(x: Tensor, y: Tensor | None) -> Tensor:
    kind = accumulator(x)
    return x.to(kind) if y is None else x.to(kind) - y.to(kind)


def _pieces(x: Tensor, y: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Yield pieces of x - y, and where each begins."""
    for i in range(0, len(x), _PIECE):
        yield i, _subtract(x[i : i + _PIECE], None if y is None else y[i : i + _PIECE])


def delta(
    a: Tensor,
    b: Any = None,
    *,
    out: Tensor | None = None,
    n_threads: int = 1,
    dtype: str | None = None,
) -> Tensor:
    """Difference of two tensors in float32: `lens.weights.delta`."""
    x, y = _flat(a, b, dtype=dtype)
    return _into(out, _subtract(x, y).to(torch.float32, copy=y is None).reshape(a.shape))


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    """Copy a result to where it was asked for."""
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype or out.device != result.device:
        raise ShapeError(
            f"out: {tuple(out.shape)} of {out.dtype} on '{out.device}', expected "
            f"{tuple(result.shape)} of {result.dtype} on '{result.device}'"
        )
    return out.copy_(result)


def sum_of_squares(
    a: Tensor, b: Any = None, *, n_threads: int = 1, dtype: str | None = None
) -> float:
    """Squared Frobenius norm of a - b: `lens.weights.sum_of_squares`."""
    x, y = _flat(a, b, dtype=dtype)
    total = math.fsum(_dot(u, u) for _, u in _pieces(x, y))
    _check_sums([total], [x, y])
    return total


def compare(
    first: Pair, second: Pair, *, n_threads: int = 1, dtype: str | None = None
) -> Comparison:
    """Norms, dot product and cosine of two deltas: `lens.weights.compare`."""
    check_pairs(first, second)
    (a, b), (c, d) = _flat(*first, "ab", dtype), _flat(*second, "cd", dtype)
    same(second[0], tensor(first[0], "a"), "c", "a")
    sums = [0.0, 0.0, 0.0]
    for (_, u), (_, v) in zip(_pieces(a, b), _pieces(c, d), strict=True):
        for k, (p, q) in enumerate(((u, u), (v, v), (u, v))):
            sums[k] += _dot(p, q)
    _check_sums(sums, [a, b, c, d])
    return comparison(*sums)


def _dot(u: Tensor, v: Tensor) -> float:
    """Dot product of one piece, in float64 or in pairs."""
    if wide(u) == torch.float64:
        return float((u.double() * v.double()).sum())
    high, low = pairs.fold(pairs.two_product(u, v))
    return float(high) + float(low)


def _check_sums(sums: Sequence[float], tensors: Sequence[Tensor | None]) -> None:
    if all(map(math.isfinite, sums)):
        return
    places = [(first(~x.isfinite()), k) for k, x in enumerate(tensors) if x is not None]
    found = sorted((place[0], k) for place, k in places if place is not None)
    where = f", element {found[0][0]}, tensor {found[0][1]}" if found else ""
    raise InputError(f"a delta is NaN or infinite{where}; expected finite numbers")


def _keys(delta: Tensor) -> Tensor:
    """Bits of |delta| in float32, as whole numbers: they have the order of the sizes."""
    return delta.to(torch.float32).view(torch.int32) & 0x7FFFFFFF


def histogram(a: Tensor, b: Any = None, *, n_threads: int = 1, dtype: str | None = None) -> Tensor:
    """Count the deltas other than zero by the size of |delta|: `lens.weights.histogram`.

    Returns
    -------
    Tensor (65536,), int64
        Torch computes with no uint64.
    """
    x, y = _flat(a, b, dtype=dtype)
    counts = torch.zeros(_BUCKETS, dtype=torch.int64, device=x.device)
    for i, u in _pieces(x, y):
        keys = _keys(u)
        where = first(keys >= _INFINITE)
        if where is not None:
            raise InputError(
                f"a delta is NaN or infinite, element {i + where[0]}; expected finite numbers"
            )
        counts += torch.bincount(keys >> _BUCKET_BITS, minlength=_BUCKETS)
        counts[0] -= (keys == 0).sum()
    return counts


def select(
    a: Tensor, b: Any, low: int, high: int, *, dtype: str | None = None
) -> tuple[Tensor, int, int, Array]:
    """Mark a tensor for `lens.weights.TopK`: 1 from key high on, 2 from low to below high.

    Parameters
    ----------
    a, b : Tensor
        As in `lens.weights.delta`.
    low, high : int
        Keys from low to below high are not decided yet; high is where a bucket ends.
    dtype : str, optional
        Name of the tensor's dtype.

    Returns
    -------
    tuple
        The marks, uint8, in the shape of a; how many are 1; how many keys are in the bucket; the
        low bits of the keys marked 2, in order, on the host.
    """
    x, y = _flat(a, b, dtype=dtype)
    floor = max(1, (high - 1) >> _BUCKET_BITS << _BUCKET_BITS)
    marks = torch.empty(len(x), dtype=torch.uint8, device=x.device)
    inside, lows = 0, [np.empty(0, np.uint16)]
    for i, u in _pieces(x, y):
        keys = _keys(u).long()
        undecided = (keys >= low) & (keys < high)
        marks[i : i + _PIECE] = (keys >= high).to(torch.uint8) + 2 * undecided.to(torch.uint8)
        inside += int(((keys >= floor) & (keys < high)).sum())
        lows.append(host(keys[undecided] & ((1 << _BUCKET_BITS) - 1)).astype(np.uint16))
    return marks.reshape(a.shape), int((marks == 1).sum()), inside, np.concatenate(lows)


def settle(marks: Tensor, keep: Array, name: str) -> Tensor:
    """Turn marks into a mask: `lens.weights.TopKResult.apply`."""
    undecided = marks == 2
    if int(undecided.sum()) != keep.size:
        raise wrong_marks(name, keep.size)
    marks[undecided] = torch.from_numpy(keep).to(marks.device)
    return marks.bool()


def count_nonfinite(x: Tensor, *, n_threads: int = 1, dtype: str | None = None) -> NonFinite:
    """Count NaN and infinite elements: `lens.weights.count_nonfinite`."""
    data = tensor(x, "x", dtype=dtype)
    return NonFinite(int(data.isnan().sum()), int(data.isinf().sum()))


def combine(
    sources: Sequence[Tensor],
    weights: Any,
    *,
    out: Tensor | None = None,
    out_dtype: str | None = None,
    n_threads: int = 1,
    dtype: str | None = None,
) -> Tensor:
    """Linear combination of tensors, rounded once: `lens.weights.combine`."""
    single = hasattr(sources, "ndim")
    if single or not 1 <= len(sources) <= MAX_SOURCES:
        count = "one array" if single else f"{len(sources)} sources"
        raise InputError(f"sources: got {count}, expected a sequence of 1 to {MAX_SOURCES} arrays")
    data = [tensor(x, f"sources[{i}]") for i, x in enumerate(sources)]
    for i, x in enumerate(data):
        if x.shape != data[0].shape or x.device != data[0].device:
            raise ShapeError(
                f"sources[{i}]: shape {tuple(x.shape)} on '{x.device}', expected "
                f"{tuple(data[0].shape)} on '{data[0].device}' as sources[0] has"
            )
    on_host = data[0].new_empty(0, device="cpu")
    w = small(weights, "weights", like=on_host, shape=(len(data),), dtype=torch.float64).tolist()
    kind = out_dtype or NAMES[data[0].dtype]
    if kind not in DTYPES:
        raise InputError(f"out_dtype: got {kind!r}, expected one of {', '.join(DTYPES)}")
    out_kind = DTYPES[kind]
    if out_kind == torch.float64 != wide(data[0]):
        raise DtypeError(f"out_dtype: device '{data[0].device}' has no float64")
    used = [(x.reshape(-1), v) for x, v in zip(data, w, strict=True) if v != 0.0]
    if len(data) == 1 and w == [1.0] and data[0].dtype == out_kind:
        return _into(out, data[0].clone())  # to the last bit
    total = torch.zeros(data[0].numel(), dtype=out_kind, device=data[0].device)
    for i in range(0, len(total) if used else 0, _PIECE):
        total[i : i + _PIECE] = _weighted_sum([(x[i : i + _PIECE], v) for x, v in used], out_kind)
    return _into(out, total.reshape(data[0].shape))


def _weighted_sum(terms: list[tuple[Tensor, float]], kind: torch.dtype) -> Tensor:
    """Sum of the weighted pieces in their order, rounded once."""
    if wide(terms[0][0]) == torch.float32:
        total = _pair_product(*terms[0])
        for x, w in terms[1:]:
            total = pairs.add(total, _pair_product(x, w))
        return _round_once(*pairs.two_sum(*total), kind)
    exact = terms[0][0].double() * terms[0][1]
    for x, w in terms[1:]:
        exact = exact + x.double() * w
    if kind == torch.float64:
        return exact
    near = exact.to(torch.float32)
    return _round_once(near, exact - near.double(), kind)


def _pair_product(x: Tensor, w: float) -> pairs.Pair:
    head = float(np.float32(w))
    high, low = pairs.two_product(x.float(), torch.full_like(x, head, dtype=torch.float32))
    return high, low + x.float() * (w - head)


def _round_once(near: Tensor, rest: Tensor, kind: torch.dtype) -> Tensor:
    """Round near + rest, near being its nearest float32, as if it had been rounded once.

    For 16 bits the sum is first cut to float32 towards zero, and made odd unless that was exact:
    rounding this to nearest gives what rounding the sum itself would, as a float has more than two
    bits to spare.
    """
    if kind == torch.float32:
        return near
    rest = torch.where(near.isnan() | rest.isnan(), 0.0, rest)
    bits = near.view(torch.int32)
    away = ((rest < 0) != near.signbit()) & (rest != 0)
    odd = (bits - away.to(torch.int32)) | (rest != 0).to(torch.int32)
    return odd.view(torch.float32).to(kind)
