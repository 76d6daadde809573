"""`lens.losses` for tensors on other devices: the three losses, each with its gradient.

``value`` is a tensor that autograd can differentiate with respect to the states that ask for it;
``grad`` is the same gradient, written out and cut off from autograd.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lens.errors import InputError, ShapeError
from lens.losses import AlignResult, LossResult
from lens.tensors.checks import accumulator, mask01, matmul, refuse, same, small, tensor, wide


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
