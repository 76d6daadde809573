"""Pooling and the three losses in torch operations, for tensors on other devices than the CPU.

`lens.pooling.pool`, `StreamingMoments.update` and `lens.losses` dispatch here by themselves
(`lens.arrays.anywhere`) when their first argument is a tensor on another device; no other function
of the package computes there. Names and signatures are those of the functions they stand in for,
and arrays in results are tensors on the device of the first argument. A loss value is a tensor that
autograd can differentiate with respect to the states; ``grad`` is the same gradient written out and
detached. ``n_threads`` is for the C core and ignored here; ``dtype`` must be that of the tensor.
Small arguments (bases, targets, weights, masks) may be on any device and are moved.

Sums are taken in float64. A device without float64 (Apple's MPS) sums in pairs of float32 numbers,
high and low, whose unevaluated sum is the value, with an error of about 2^-45 of the largest term:
Knuth's two-sum and Dekker's product, whose rounding errors are float32 numbers themselves. This
needs each operation rounded to nearest on its own, as eager torch does; a compiler that reorders
sums would undo it. Products above about 1e34 lose their low part. Results agree with the C core to
the tolerances in ``docs/kernels.md``, not bit for bit.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lens.arrays import Float64, host
from lens.errors import DtypeError, InputError, ShapeError
from lens.losses import AlignResult, LossResult

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@cache
def has_float64(device_type: str) -> bool:
    """Whether a kind of device computes in float64; tried once."""
    try:
        one = torch.ones(1, dtype=torch.float64, device=device_type)
        return (one + one).dtype == torch.float64
    except (TypeError, RuntimeError):
        return False


def wide(x: Tensor) -> torch.dtype:
    """Dtype of sums on the device of x: float64 where there is one."""
    return torch.float64 if has_float64(x.device.type) else torch.float32


def accumulator(x: Tensor) -> torch.dtype:
    """Dtype of products: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tensor(x: Any, name: str, *, ndim: int | None = None, dtype: str | None = None) -> Tensor:
    """Return x, which must be a tensor of a supported dtype, cut off from autograd."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name}: got {type(x).__name__}, expected a torch tensor")
    if x.dtype not in NAMES:
        raise DtypeError(f"{name}: dtype {x.dtype}, expected float32, float64, float16 or bfloat16")
    if dtype not in (None, NAMES[x.dtype], "bf16" if x.dtype == torch.bfloat16 else None):
        raise DtypeError(f"{name}: dtype='{dtype}' was given but the tensor is {NAMES[x.dtype]}")
    if ndim is not None and x.ndim != ndim:
        raise ShapeError(f"{name}: shape {tuple(x.shape)}, expected {ndim} dimensions")
    return x.detach()


def same(x: Any, like: Tensor, name: str, like_name: str) -> Tensor:
    """Return x, which must have the shape, dtype and device of another tensor."""
    if not isinstance(x, Tensor):
        raise DtypeError(
            f"{name}: got {type(x).__name__}, expected a tensor on device '{like.device}', where "
            f"{like_name} is"
        )
    out = tensor(x, name)
    if out.shape != like.shape:
        raise ShapeError(
            f"{name}: shape {tuple(out.shape)}, expected {tuple(like.shape)} as {like_name} has"
        )
    if out.dtype != like.dtype:
        raise DtypeError(
            f"{name}: {NAMES[out.dtype]}, expected {NAMES[like.dtype]} as {like_name} has"
        )
    if out.device != like.device:
        raise InputError(
            f"{name}: the tensor is on device '{out.device}', expected '{like.device}', where "
            f"{like_name} is"
        )
    return out


def small(
    x: Any, name: str, *, like: Tensor, shape: Sequence[int | None], dtype: torch.dtype
) -> Tensor:
    """Return finite numbers, from anywhere, on the device of another tensor."""
    try:
        out = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError):
        raise DtypeError(f"{name}: got {type(x).__name__}, expected an array of numbers") from None
    if out.is_complex():
        raise DtypeError(f"{name}: complex numbers, expected real ones")
    wrong = out.ndim != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, out.shape, strict=True)
    )
    if wrong:
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise ShapeError(f"{name}: shape {tuple(out.shape)}, expected ({text})")
    out = out.to(dtype).to(like.device)  # in this order: the device may lack the dtype it had
    refuse(~out.isfinite(), f"{name}: NaN or infinite value; expected finite numbers")
    return out


def mask01(mask: Any, name: str, *, like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a boolean or 0/1 integer mask, from anywhere, as a boolean tensor."""
    if not isinstance(mask, Tensor | np.ndarray):
        raise DtypeError(f"{name}: got {type(mask).__name__}, expected an array of 0 and 1")
    out = torch.as_tensor(mask).detach()
    if out.is_floating_point() or out.is_complex():
        raise DtypeError(f"{name}: got {out.dtype}, expected a boolean or integer array of 0 and 1")
    if out.shape != torch.Size(shape):
        raise ShapeError(f"{name}: shape {tuple(out.shape)}, expected {tuple(shape)}")
    refuse((out != 0) & (out != 1), f"{name}: a value other than 0 and 1")
    return out.to(device=like.device, dtype=torch.bool)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in the dtype of its factors, also where autocast would take a shorter one."""
    if a.is_meta:  # autocast knows no such device
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def first(bad: Tensor) -> tuple[int, ...] | None:
    """Index of the first true element, if there is one; a meta tensor holds no values."""
    if bad.is_meta or not bool(bad.any()):
        return None
    flat = int(bad.reshape(-1).to(torch.uint8).argmax())
    return tuple(int(i) for i in np.unravel_index(flat, tuple(bad.shape)))


def refuse(bad: Tensor, message: str, *axes: str) -> None:
    """Raise InputError if an element is true, naming the first by the given axes."""
    where = first(bad)
    if where is not None:
        names = axes or ("index",) * (len(where) == 1)
        place = [f"{axis} {i}" for axis, i in zip(names, where, strict=bool(axes))]
        raise InputError(", ".join([message, *place]))


# Pairs of float32

Pair = tuple[Tensor, Tensor]


def two_sum(a: Tensor, b: Tensor) -> Pair:
    """Return a + b rounded, and its rounding error."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def _split(a: Tensor) -> Pair:
    """Return two numbers of 12 bits each whose sum is a."""
    big = a * 4097.0
    high = big - (big - a)
    return high, a - high


def two_product(a: Tensor, b: Tensor) -> Pair:
    """Return a * b rounded, and its rounding error."""
    high = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    low = ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2
    return high, torch.where(low.isfinite(), low, 0.0)


def add(x: Pair, y: Pair) -> Pair:
    """Sum of two pairs."""
    high, low = two_sum(x[0], y[0])
    return two_sum(high, low + (x[1] + y[1]))


def fold(x: Pair) -> Pair:
    """Sum over the first dimension, two halves at a time, in an order of its length alone."""
    high, low = x
    if not len(high):
        return high.sum(0), low.sum(0)
    while len(high) > 1:
        half = (len(high) + 1) // 2
        rest = len(high) - half
        first, second = (high[:rest], low[:rest]), (high[half:], low[half:])
        done = add(first, second)
        high, low = (torch.cat([d, h[rest:half]]) for d, h in zip(done, (high, low), strict=True))
    return high[0], low[0]


# Pooling and moments


def pool(
    states: Tensor,
    mask: Any,
    *,
    mode: Literal["last", "mean", "weighted"] = "last",
    n_threads: int | None = None,
    dtype: str | None = None,
) -> Tensor:
    """Pool the states of the real tokens of each row, as `lens.pooling.pool` does."""
    if mode not in ("last", "mean", "weighted"):
        raise InputError(f"mode: got {mode!r}, expected one of last, mean, weighted")
    x = tensor(states, "states", ndim=3, dtype=dtype)
    keep = mask01(mask, "mask", like=x, shape=x.shape[:2])
    refuse(~keep.any(1), "mask: no real token", "row")
    if not len(x):
        return x.new_empty((0, x.shape[2]), dtype=wide(x))
    order = keep.cumsum(1)
    if mode == "last":
        last = (keep & (order == order[:, -1:])).to(torch.uint8).argmax(1)
        picked = x[torch.arange(len(x), device=x.device), last]
        refuse(~picked.isfinite().all(-1), "states: NaN or infinite value in the last token", "row")
        return picked.to(wide(x))
    refuse(keep & ~x.isfinite().all(-1), "states: NaN or infinite value", "row", "token")
    # where(), not a product with zero: a masked position may hold NaN or infinity.
    kept = torch.where(keep.unsqueeze(-1), x, 0.0)
    out = _average(kept, keep * order if mode == "weighted" else keep)
    refuse(~out.isfinite().all(-1), "states: the sum overflows", "row")
    return out


def _average(x: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k x_k / sum_k w_k over tokens, for whole weights (n, t)."""
    total = weights.sum(1)[:, None]
    if wide(x) == torch.float64:
        return torch.einsum("nt,ntd->nd", weights.double(), x.double()) / total
    terms = two_product(x.float(), weights.unsqueeze(-1).float())
    high, low = fold((terms[0].transpose(0, 1), terms[1].transpose(0, 1)))
    mean = high / total
    rest = two_product(mean, total.float().expand_as(mean))
    return mean + ((high - rest[0]) - rest[1] + low) / total


def block_moments(X: Tensor, row: int = 0) -> tuple[Float64, Float64]:
    """Mean and sum of squared deviations of the columns of one block of rows.

    Two passes: the deviations from a rounded mean, then their sums, which correct it.
    """
    where = first(~X.isfinite())
    if where is not None:
        raise InputError(
            f"X: NaN or infinite value in row {row + where[0]}, column {where[1]}; expected finite "
            "numbers"
        )
    centre, sums, squares = _centred_sums(X)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = centre + sums / len(X)
        m2 = np.maximum(squares - sums * (sums / len(X)), 0.0)
    if not np.isfinite(m2).all():
        raise InputError("X: the variance overflows float64; scale the rows")
    return mean, m2


def _centred_sums(X: Tensor) -> tuple[Float64, Float64, Float64]:
    """Return c near the mean, the sum of x - c, and the sum of (x - c)^2."""
    if wide(X) == torch.float64:
        x = X.double()
        c = (x / len(x)).sum(0)
        x = x - c
        return host(c), host(x.sum(0)), host(x.square().sum(0))
    c = (X.float() / len(X)).sum(0)
    high, low = two_sum(X.float(), -c)
    square = two_product(high, high)
    sums = fold((high, low))
    squares = fold((square[0], square[1] + 2.0 * high * low))
    return host(c).astype(np.float64), to_float64(sums), to_float64(squares)


def to_float64(pair: Pair) -> Float64:
    """Join a pair on the host."""
    return host(pair[0]).astype(np.float64) + host(pair[1]).astype(np.float64)


# Losses


def _gap(h: Tensor, other: Tensor, name: str, ndim: int, dtype: str | None) -> Tensor:
    """Return h - other in the accumulator's dtype, known to autograd."""
    a = tensor(h, "h", ndim=ndim, dtype=dtype)
    if 0 in a.shape:
        raise ShapeError(f"h: shape {tuple(a.shape)}, expected no dimension of length 0")
    same(other, a, name, "h")
    return h.to(accumulator(h)) - other.to(accumulator(h))


def _weights(weights: Any, gap: Tensor) -> Tensor:
    n = len(gap)
    if weights is None:
        return torch.full((n,), 1.0 / n, dtype=wide(gap), device=gap.device)
    return small(weights, "weights", like=gap, shape=(n,), dtype=wide(gap))


def _value(terms: Tensor, scale: Tensor | float) -> Tensor:
    """Sum of the rows' terms, which must be finite."""
    weighted = terms.to(wide(terms)) * scale
    refuse(~weighted.detach().isfinite(), "h: a term is not finite", "row")
    return weighted.sum()


def _result(value: Tensor, grad: Tensor, h: Tensor) -> LossResult:
    return LossResult(value, grad.detach().to(h.dtype))  # type: ignore[arg-type]


def _rows(gap: Tensor, weights: Tensor) -> Tensor:
    """Put zeros for rows of weight 0, which are not read."""
    return torch.where((weights != 0)[:, None], gap, 0.0)


def separate(
    h: Tensor,
    h0: Tensor,
    basis: Any,
    target: Any,
    *,
    weights: Any = None,
    n_threads: int = 1,
    dtype: str | None = None,
) -> LossResult:
    """Move states by a given step inside the language subspace: `lens.losses.separate`."""
    gap = _gap(h, h0, "h0", 2, dtype)
    n, d = gap.shape
    m = small(basis, "basis", like=gap, shape=(d, None), dtype=gap.dtype)
    one = getattr(target, "ndim", None) == 1
    shape = (m.shape[1],) if one else (n, m.shape[1])
    t = small(target, "target", like=gap, shape=shape, dtype=gap.dtype)
    w = _weights(weights, gap)
    miss = _rows(matmul(_rows(gap, w), m) - t, w)
    grad = matmul(miss * (2.0 * w / d).to(gap.dtype)[:, None], m.T)
    return _result(_value(miss.square().sum(1), w / d), grad, h)


def align(
    h: Tensor,
    pivot: Tensor,
    *,
    direction: Any = None,
    basis: Any = None,
    weights: Any = None,
    two_sided: bool = False,
    n_threads: int = 1,
    dtype: str | None = None,
) -> AlignResult:
    """Bring states to the pivot's in the agnostic part of the space: `lens.losses.align`."""
    if (direction is None) == (basis is None):
        given = "neither" if direction is None else "both"
        raise InputError(
            f"align: {given} of direction and basis were given, expected exactly one: direction "
            'for agnostic="mean", basis for agnostic="complement"'
        )
    gap = _gap(h, pivot, "pivot", 2, dtype)
    w = _weights(weights, gap)
    gap = _rows(gap, w)
    if basis is None:
        u = _direction(direction, gap)
        along = matmul(gap, u)
        terms, part = along.square(), along[:, None] * u
    else:
        m = _orthonormal(basis, gap)
        part = gap - matmul(matmul(gap, m), m.T)
        terms = part.square().sum(1)
    d = gap.shape[1]
    grad = part * (2.0 * w / d).to(gap.dtype)[:, None]
    found = _result(_value(terms, w / d), grad, h)
    return AlignResult(found.value, found.grad, -found.grad if two_sided else None)


def _direction(direction: Any, gap: Tensor) -> Tensor:
    u = small(direction, "direction", like=gap, shape=(gap.shape[1],), dtype=wide(gap))
    size = u.abs().max()
    refuse(size == 0, "direction: is zero; expected the agnostic direction M_a, not all zeros")
    u = u / size  # so that squares can neither overflow nor vanish
    unit: Tensor = u / u.norm()
    return unit.to(gap.dtype)


def _orthonormal(basis: Any, gap: Tensor) -> Tensor:
    m: Tensor = small(basis, "basis", like=gap, shape=(gap.shape[1], None), dtype=gap.dtype)
    error = (matmul(m.T, m) - torch.eye(m.shape[1], dtype=m.dtype, device=m.device)).abs()
    refuse(
        (error > 1e-4).any(),
        "basis: its columns are not orthonormal to 1e-4; pass the basis of lens.subspace.fit, or "
        "orthonormalise it with torch.linalg.qr",
    )
    return m


def retain(
    h: Tensor,
    h0: Tensor,
    mask: Any,
    *,
    form: Literal["token", "token_mean"] = "token",
    n_threads: int = 1,
    dtype: str | None = None,
) -> LossResult:
    """Hold the pivot's states where they were: `lens.losses.retain`."""
    if form not in ("token", "token_mean"):
        raise InputError(f"form: got {form!r}, expected 'token' or 'token_mean'")
    gap = _gap(h, h0, "h0", 3, dtype)
    n, _, d = gap.shape
    keep = mask01(mask, "mask", like=gap, shape=gap.shape[:2])
    gap = torch.where(keep.unsqueeze(-1), gap, 0.0)
    count = keep.sum(1).to(wide(gap))
    if form == "token":
        refuse(~keep.any(), "mask: every token is masked")
        size = count.sum() * d
        grad = gap * (2.0 / size)
        return _result(_value(gap.square().sum(-1).to(wide(gap)).sum(1), 1.0 / size), grad, h)
    refuse(count == 0, "mask: every token is masked", "row")
    mean = gap.to(wide(gap)).sum(1) / count[:, None]
    grad = (mean * (2.0 / (count * (n * d)))[:, None])[:, None, :] * keep.unsqueeze(-1)
    return _result(_value(mean.square().sum(1), 1.0 / (n * d)), grad, h)
