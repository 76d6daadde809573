"""The three Lens losses as differentiable torch functions over the C kernels.

A kernel returns value and gradient in one pass, so forward keeps the gradient and backward
scales it. Tensors on other devices take the same formulas in torch operations, which the tests
hold against the C core. Formulas: Lens (arXiv 2410.04407) as in ``docs/training.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lens import losses

Kernel = Callable[..., tuple[float, Any, Any]]
Form = Literal["token", "token_mean"]


class _Fused(torch.autograd.Function):
    """A scalar whose gradient with respect to one or two inputs comes with its value."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, h: Tensor, other: Tensor | None) -> Tensor:
        value, grad, grad_other = kernel(
            h.detach().contiguous().numpy(),
            None if other is None else other.detach().contiguous().numpy(),
        )
        ctx.grad = torch.from_numpy(grad)
        ctx.grad_other = None if grad_other is None else torch.from_numpy(grad_other)
        return h.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, Tensor | None]:
        (g,) = upstream
        other = None if ctx.grad_other is None else g * ctx.grad_other
        return None, g * ctx.grad, other


def _fused(kernel: Kernel, h: Tensor, other: Tensor | None) -> Tensor:
    out: Tensor = _Fused.apply(kernel, h, other)  # type: ignore[no-untyped-call]
    return out


def _array(x: Tensor) -> Any:
    return x.detach().float().contiguous().numpy()


def separate(h: Tensor, h0: Tensor, basis: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Σ_b w_b ‖(h−h⁰)M_s − t‖² / d over rows; gradient into ``h``.

    Parameters
    ----------
    h, h0 : Tensor
        Trained and reference states, shape (B, d).
    basis : Tensor
        M_s, shape (d, r), orthonormal columns.
    target : Tensor
        Language step of each row in the subspace, shape (B, r).
    weights : Tensor
        Row weights, shape (B,).
    """
    h, h0 = h.float(), h0.float()
    if h.device.type != "cpu":
        return separate_torch(h, h0, basis, target, weights)

    def kernel(states: Any, _other: Any) -> tuple[float, Any, Any]:
        result = losses.separate(
            states, _array(h0), _array(basis), _array(target), weights=_array(weights)
        )
        return result.value, result.grad, None

    return _fused(kernel, h, None)


def align(
    h: Tensor,
    pivot: Tensor,
    *,
    direction: Tensor | None = None,
    basis: Tensor | None = None,
    weights: Tensor,
) -> Tensor:
    """Σ_b w_b ‖P_a(h − h_c)‖² / d over rows; gradient into ``h``, and ``pivot`` if it wants one.

    P_a projects on ``direction`` (M_a, the published form) or on the complement of ``basis``.
    """
    h, pivot = h.float(), pivot.float()
    if h.device.type != "cpu":
        return align_torch(h, pivot, direction=direction, basis=basis, weights=weights)

    two_sided = pivot.requires_grad

    def kernel(states: Any, other: Any) -> tuple[float, Any, Any]:
        result = losses.align(
            states,
            other,
            direction=None if direction is None else _array(direction),
            basis=None if basis is None else _array(basis),
            weights=_array(weights),
            two_sided=two_sided,
        )
        return result.value, result.grad, result.grad_pivot

    return _fused(kernel, h, pivot)


def retain(h: Tensor, h0: Tensor, mask: Tensor, *, form: Form) -> Tensor:
    """Masked squared distance of states (B, t, d) to the frozen ones; gradient into ``h``.

    ``form="token"`` compares every real token, ``"token_mean"`` the rows' token means (published).
    """
    h, h0 = h.float(), h0.float()
    if h.device.type != "cpu":
        return retain_torch(h, h0, mask, form=form)

    def kernel(states: Any, _other: Any) -> tuple[float, Any, Any]:
        result = losses.retain(states, _array(h0), _array(mask) != 0, form=form)
        return result.value, result.grad, None

    return _fused(kernel, h, None)


def separate_torch(h: Tensor, h0: Tensor, basis: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """`separate` in torch operations, for any device."""
    miss = (h - h0) @ basis - target
    return (weights * miss.square().sum(-1)).sum() / h.shape[1]


def align_torch(
    h: Tensor,
    pivot: Tensor,
    *,
    direction: Tensor | None = None,
    basis: Tensor | None = None,
    weights: Tensor,
) -> Tensor:
    """`align` in torch operations, for any device."""
    gap = h - pivot
    if direction is not None:
        gap = (gap @ direction / direction.norm())[:, None]
    elif basis is not None:
        gap = gap - (gap @ basis) @ basis.T
    return (weights * gap.square().sum(-1)).sum() / h.shape[1]


def retain_torch(h: Tensor, h0: Tensor, mask: Tensor, *, form: Form) -> Tensor:
    """`retain` in torch operations, for any device."""
    diff = (h - h0) * mask[..., None]
    if form == "token":
        return diff.square().sum() / (mask.sum() * h.shape[-1])
    return (diff.sum(1) / mask.sum(1, keepdim=True)).square().mean()
