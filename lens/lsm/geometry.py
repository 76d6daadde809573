"""What a space says at one site, as tensors ready for the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lens.lsm.config import Align, LensConfig
from lens.space import Space


@dataclass(frozen=True, slots=True)
class Geometry:
    """Language subspace, agnostic direction and language steps at one site.

    Attributes
    ----------
    basis : Tensor
        M_s, shape (d, r), float32.
    agnostic : Tensor
        M_a, shape (d,), float32.
    step : dict of str to Tensor
        M_sᵀ(m_l − m_c) of every language, shape (r,), float32.
    """

    basis: Tensor
    agnostic: Tensor
    step: dict[str, Tensor]

    @classmethod
    def of(cls, space: Space, site: str, config: LensConfig) -> Geometry:
        """Fit the subspace of ``space`` at ``site`` as ``config`` asks."""
        along_mean = any(isinstance(t, Align) and t.agnostic == "mean" for t in config.active)
        fitted = space.fit(site, rank=config.rank, agnostic="mean" if along_mean else "complement")
        basis = torch.from_numpy(fitted.basis).float().contiguous()
        step = {
            lang: basis.T @ torch.from_numpy(space.delta(site, lang)).float()
            for lang in space.languages
        }
        return cls(basis, torch.from_numpy(fitted.agnostic).float(), step)

    def to(self, device: torch.device) -> Geometry:
        """Copy of the geometry on another device."""
        step = {lang: vector.to(device) for lang, vector in self.step.items()}
        return Geometry(self.basis.to(device), self.agnostic.to(device), step)

    def rescaled(self, like: Geometry) -> Geometry:
        """Copy with steps in the same directions, of the lengths of another geometry's."""
        step = {
            lang: vector * (like.step[lang].norm() / vector.norm().clamp_min(1e-30))
            for lang, vector in self.step.items()
        }
        return Geometry(self.basis, self.agnostic, step)

    def randomised(self, seed: int) -> Geometry:
        """Draw a random subspace of equal rank, with steps of equal length in random directions."""
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(self.basis.shape, generator=generator)).Q.contiguous()
        step = {}
        for lang, true in self.step.items():
            drawn = torch.randn(true.shape, generator=generator)
            step[lang] = drawn / drawn.norm() * true.norm()
        centre = self.agnostic - basis @ (basis.T @ self.agnostic)
        return Geometry(basis, centre, step)


def geometries(space: Space, sites: Sequence[str], config: LensConfig) -> dict[str, Geometry]:
    """Geometry of every site."""
    return {site: Geometry.of(space, site, config) for site in sites}
