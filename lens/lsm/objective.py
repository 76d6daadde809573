"""The three Lens losses as differentiable torch functions, on any device.

`lens.losses` gives value and gradient in one pass, in C for tensors on the CPU and in torch
elsewhere; forward keeps the gradient and backward scales it. Formulas: Lens (arXiv 2410.04407) as
in ``docs/training.md``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lens import losses

Form = Literal["token", "token_mean"]


class _Given(torch.autograd.Function):
    """A scalar whose gradient with respect to one or two inputs is known."""

    @staticmethod
    def forward(
        ctx: Any, value: Any, h: Tensor, grad: Any, other: Tensor | None, grad_other: Any
    ) -> Tensor:
        ctx.grad = torch.as_tensor(grad)
        ctx.grad_other = None if grad_other is None else torch.as_tensor(grad_other)
        return torch.as_tensor(value).to(h)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, None, Tensor | None, None]:
        (g,) = upstream
        other = None if ctx.grad_other is None else g * ctx.grad_other
        return None, g * ctx.grad, None, other, None


def _scalar(
    found: losses.LossResult | losses.AlignResult, h: Tensor, other: Tensor | None = None
) -> Tensor:
    grad_other = getattr(found, "grad_pivot", None)
    out: Tensor = _Given.apply(found.value, h, found.grad, other, grad_other)  # type: ignore[no-untyped-call]
    return out


def _plain(x: Tensor) -> Tensor:
    return x.detach().contiguous()


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
    h = h.float()
    return _scalar(
        losses.separate(_plain(h), _plain(h0.float()), basis, target, weights=weights), h
    )


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
    found = losses.align(
        _plain(h),
        _plain(pivot),
        direction=direction,
        basis=basis,
        weights=weights,
        two_sided=pivot.requires_grad,
    )
    return _scalar(found, h, pivot)


def retain(h: Tensor, h0: Tensor, mask: Tensor, *, form: Form) -> Tensor:
    """Masked squared distance of states (B, t, d) to the frozen ones; gradient into ``h``.

    ``form="token"`` compares every real token, ``"token_mean"`` the rows' token means (published).
    """
    h = h.float()
    return _scalar(losses.retain(_plain(h), _plain(h0.float()), mask != 0, form=form), h)
