"""Numerics that loss terms share: geometry of a site, states at positions, kernels in autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lens import losses
from lens.models.prefix_cache import PrefixBatch
from lens.space.space import Space
from lens.training.data import TrainingData

Positions = Literal["last", "all", "mean"] | int


@dataclass(frozen=True, slots=True)
class SiteGeometry:
    """Language subspace, agnostic direction, language steps and centre at one site.

    Attributes
    ----------
    basis : Tensor
        M_s, shape (d, r), float32.
    agnostic : Tensor
        M_a, shape (d,), float32.
    step : dict of str to Tensor
        M_sᵀ(m_l − m_c) of every language, shape (r,), float32.
    centre : Tensor
        Mean of all languages' means m_l, shape (d,), float32.
    """

    basis: Tensor
    agnostic: Tensor
    step: dict[str, Tensor]
    centre: Tensor

    @classmethod
    def of(
        cls,
        space: Space,
        site: str,
        *,
        rank: Literal["auto", "full"] | int,
        agnostic: Literal["mean", "complement"],
    ) -> SiteGeometry:
        """Fit the subspace of ``space`` at ``site``, see `Space.fit`."""
        fitted = space.fit(site, rank=rank, agnostic=agnostic)
        basis = torch.from_numpy(fitted.basis).float().contiguous()
        step = {
            lang: basis.T @ torch.from_numpy(space.delta(site, lang)).float()
            for lang in space.languages
        }
        centre = torch.from_numpy(space.means(site).mean(0)).float()
        return cls(basis, torch.from_numpy(fitted.agnostic).float(), step, centre)

    def to(self, device: torch.device) -> SiteGeometry:
        """Copy of the geometry on another device."""
        step = {lang: vector.to(device) for lang, vector in self.step.items()}
        return SiteGeometry(
            self.basis.to(device), self.agnostic.to(device), step, self.centre.to(device)
        )

    def rescaled(self, like: SiteGeometry) -> SiteGeometry:
        """Copy with steps in the same directions, of the lengths of another geometry's."""
        step = {
            lang: vector * (like.step[lang].norm() / vector.norm().clamp_min(1e-30))
            for lang, vector in self.step.items()
        }
        return replace(self, step=step)

    def randomised(self, seed: int) -> SiteGeometry:
        """Draw a random subspace of equal rank, with steps of equal length in random directions."""
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(self.basis.shape, generator=generator)).Q.contiguous()
        step = {}
        for lang, true in self.step.items():
            drawn = torch.randn(true.shape, generator=generator)
            step[lang] = drawn / drawn.norm() * true.norm()
        agnostic = self.agnostic - basis @ (basis.T @ self.agnostic)
        return SiteGeometry(basis, agnostic, step, self.centre)

    @property
    def content(self) -> tuple[Tensor, ...]:
        """All that a control may change, in a fixed order, to be hashed."""
        return (self.basis, self.agnostic, *(self.step[lang] for lang in sorted(self.step)))


def gather(states: Tensor, lengths: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """States at the chosen positions of right-padded rows.

    Parameters
    ----------
    states : Tensor
        Shape (n, t, d).
    lengths : Tensor
        Real tokens of each row, shape (n,).
    positions : "last", "all", "mean" or int
        The last real token; every token, in order; the mean over tokens; or the last k, the last
        one first, so that column j is the j-th token from the end in every row.

    Returns
    -------
    values : Tensor
        Shape (n, p, d).
    mask : Tensor
        1 where a row has such a token, else 0; shape (n, p), float32.
    """
    n, t, _ = states.shape
    row = torch.arange(n, device=states.device)
    steps = torch.arange(t, device=states.device)
    if positions == "last":
        return states[row, lengths - 1][:, None], torch.ones(n, 1, device=states.device)
    if positions == "all":
        return states, (steps < lengths[:, None]).float()
    if positions == "mean":
        real = (steps < lengths[:, None]).to(states.dtype)[..., None]
        mean = (states * real).sum(1) / lengths[:, None].to(states.dtype)
        return mean[:, None], torch.ones(n, 1, device=states.device)
    at = lengths[:, None] - 1 - torch.arange(positions, device=states.device)
    return states[row[:, None], at.clamp_min(0)], (at >= 0).float()


def token_mask(lengths: Tensor, width: int, positions: Positions) -> Tensor:
    """1 at the chosen real tokens of right-padded rows of ``width``; shape (n, width), float32."""
    steps = torch.arange(width, device=lengths.device)
    real = steps < lengths[:, None]
    if positions == "all":
        return real.float()
    k = 1 if positions == "last" else int(positions)
    return (real & (steps >= lengths[:, None] - k)).float()


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


def retain(h: Tensor, h0: Tensor, mask: Tensor, *, form: Literal["token", "token_mean"]) -> Tensor:
    """Masked squared distance of states (B, t, d) to the frozen ones; gradient into ``h``.

    ``form="token"`` compares every real token, ``"token_mean"`` the rows' token means (published).
    """
    h = h.float()
    return _scalar(losses.retain(_plain(h), _plain(h0.float()), mask != 0, form=form), h)


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One batch of parallel prompts: the pivot's rows first, then those of each language.

    Attributes
    ----------
    data : TrainingData
        Cached rows, languages, model.
    where : dict of str to SiteGeometry
        Subspace and language steps by site.
    strength : dict of str to float
        λ per language.
    drawn, indices : list of int
        Prompts of the batch, and the rows of the cache that hold them in every language.
    batch : PrefixBatch
        Those rows.
    states : dict of str to Tensor
        The trained model's states by site, shape (rows, t, d).
    """

    data: TrainingData
    where: dict[str, SiteGeometry]
    strength: dict[str, float]
    drawn: list[int]
    indices: list[int]
    batch: PrefixBatch
    states: dict[str, Tensor]

    @property
    def n(self) -> int:
        """Prompts in each language."""
        return len(self.drawn)

    def trained(self, site: str, positions: Positions) -> tuple[Tensor, Tensor]:
        """States of all rows as they are now, (rows, p, d), and their mask (rows, p)."""
        return gather(self.states[site], self.batch.lengths, positions)

    def frozen(self, site: str, positions: Positions) -> Tensor:
        """States of the same rows in the frozen model, (rows, p, d)."""
        cache = self.data.cache
        if positions in ("last", 1):
            return cache.last_reference(self.indices, site)[:, None]
        return gather(cache.reference(self.indices, site), self.batch.lengths, positions)[0]

    def row_weights(self, factors: dict[str, float], mask: Tensor) -> Tensor:
        """Weights of (language, prompt, position) that give each language its factor in a sum.

        Without the pivot; the positions of a row share its weight. Shape (rows · p,), float32.
        """
        factor = [factors.get(lang, 1.0) for lang in self.data.languages]
        each = torch.tensor([f / self.n for f in factor], device=mask.device)
        shared = mask / mask.sum(1, keepdim=True).clamp_min(1)
        return (each.repeat_interleave(self.n)[:, None] * shared).reshape(-1)

    def token_weights(self, factors: dict[str, float], mask: Tensor) -> Tensor:
        """Weights of (row, position) in all languages: the language's factor, 0 for padding.

        With the pivot, shape (rows, p), float32; to be divided by their sum.
        """
        factor = [factors.get(lang, 1.0) for lang in (self.data.pivot, *self.data.languages)]
        weights = torch.tensor(factor, device=mask.device)
        return weights.repeat_interleave(self.n)[:, None] * mask

    def of_pivot(self, states: Tensor) -> Tensor:
        """Rows of the pivot, once for every other language."""
        return states[: self.n].repeat(len(self.data.languages), *[1] * (states.ndim - 1))
