"""One training step's loss: every term of the config, over all languages at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens.errors import InputError
from lens.lsm import objective
from lens.lsm.config import Align, LensConfig, Retain, Separate
from lens.lsm.geometry import Geometry
from lens.models.prefix import Batch

if TYPE_CHECKING:
    from lens.lsm.training import LensTrainer


class Step:
    """Loss of one batch of parallel prompts, all languages in one forward pass."""

    def __init__(
        self,
        trainer: LensTrainer,
        config: LensConfig,
        where: dict[str, Geometry],
        strength: dict[str, float],
    ) -> None:
        device = next(iter(trainer.parameters.values())).device
        self.trainer, self.config, self.strength = trainer, config, strength
        self.where = {site: geometry.to(device) for site, geometry in where.items()}
        self.with_text = any(isinstance(t, Retain) and t.rows == "text" for t in config.active)
        if self.with_text and not trainer.texts:
            raise InputError('a retain term with rows="text" needs texts; pass them to training')

    def __call__(self, drawn: list[int]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of the drawn prompts and its log entry."""
        t = self.trainer
        order = (t.pivot, *t.languages)
        indices = [t.rows[lang][i] for lang in order for i in drawn]
        batch = t.cache.batch(indices)
        states = t.cache.forward(batch)
        entry: dict[str, float] = {}
        total = torch.zeros((), device=batch.lengths.device)
        for term in self.config.active:
            value = self._term(term, states, batch, indices, drawn)
            name = f"loss_{term.kind}" + ("" if term.site == "final" else f"@{term.site}")
            entry[name] = entry.get(name, 0.0) + float(value.detach())
            total = total + term.weight * value
        entry["loss"] = float(total.detach())
        entry.update(self._movement(states, batch, indices, len(drawn)))
        return total, entry

    def _term(
        self,
        term: Separate | Align | Retain,
        states: dict[str, Tensor],
        batch: Batch,
        indices: list[int],
        drawn: list[int],
    ) -> Tensor:
        n = len(drawn)
        if isinstance(term, Retain):
            return self._retain(term, states, batch, indices, drawn)
        at = self.where[term.site]
        last = batch.last(states[term.site])
        frozen = self.trainer.cache.last_reference(indices, term.site)
        others = len(self.trainer.languages)
        weights = torch.full((others * n,), 1.0 / n, device=last.device)
        if isinstance(term, Align):
            pivot = (last if term.pivot == "trained" else frozen)[:n].repeat(others, 1)
            one = {"direction": at.agnostic} if term.agnostic == "mean" else {"basis": at.basis}
            return objective.align(last[n:], pivot, weights=weights, **one)
        reference = frozen[n:] if term.target == "shift" else frozen[:n].repeat(others, 1)
        steps = [self.strength[lang] * at.step[lang] for lang in self.trainer.languages]
        target = torch.stack(steps).repeat_interleave(n, dim=0)
        return objective.separate(last[n:], reference, at.basis, target, weights)

    def _retain(
        self,
        term: Retain,
        states: dict[str, Tensor],
        batch: Batch,
        indices: list[int],
        drawn: list[int],
    ) -> Tensor:
        cache, n = self.trainer.cache, len(drawn)
        if term.rows == "pivot":
            frozen = cache.reference(indices[:n], term.site)
            h = states[term.site][:n, : frozen.shape[1]]
            return objective.retain(h, frozen, batch.mask[:n, : h.shape[1]], form=term.form)
        texts = self.trainer.texts
        chosen = [rows[i % len(rows)] for rows in texts.values() for i in drawn]
        text = cache.batch(chosen)
        h = cache.forward(text)[term.site]
        return objective.retain(h, cache.reference(chosen, term.site), text.mask, form=term.form)

    @torch.no_grad()
    def _movement(
        self, states: dict[str, Tensor], batch: Batch, indices: list[int], n: int
    ) -> dict[str, float]:
        """How far the last states moved along and across the language step, and the pivot's."""
        site = self.config.sites[-1]
        at = self.where[site]
        moved = (
            batch.last(states[site]) - self.trainer.cache.last_reference(indices, site)
        ).float()
        along, across, cosine = [], [], []
        for k, lang in enumerate(self.trainer.languages, start=1):
            rows = moved[k * n : (k + 1) * n]
            step = at.basis @ at.step[lang]
            unit = step / step.norm().clamp_min(1e-30)
            part = rows @ unit
            along.append(part.abs().mean())
            across.append((rows - part[:, None] * unit).norm(dim=1).mean())
            cosine.append((part / rows.norm(dim=1).clamp_min(1e-30)).mean())
        means = [float(torch.stack(x).mean()) for x in (along, across, cosine)]
        names = ("moved_along", "moved_across", "moved_cosine")
        return {
            **dict(zip(names, means, strict=True)),
            "pivot_moved": float(moved[:n].norm(dim=1).mean()),
        }
