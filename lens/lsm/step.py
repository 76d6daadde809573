"""One training step's loss: every term of the config, over all languages at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens.errors import InputError
from lens.lsm.config import LensConfig, Term, site_of
from lens.lsm.geometry import Geometry
from lens.lsm.shares import weight_of_part
from lens.lsm.terms import Seen, missing_rows, value_of

if TYPE_CHECKING:
    from lens.lsm.training import LensTrainer


class Step:
    """Loss of one batch of parallel prompts, all languages in one forward pass.

    Attributes
    ----------
    number : int
        0-based optimizer step, for schedules; whoever runs the steps sets it.
    """

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
        self.number = 0
        missing = missing_rows(config.active, trainer)
        if missing:
            raise InputError(missing)

    def __call__(
        self, drawn: list[int], whole: list[int] | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of the drawn prompts and its log entry.

        When they are a part of the ``whole`` step, the losses of all parts, weighted by their
        number of prompts, add up to that of the step.
        """
        seen = self._seen(drawn)
        progress = self.number / max(1, self.config.steps - 1)
        every = self.config.shares_every
        with_shares = every > 0 and self.number % every == 0
        entry: dict[str, float] = {}
        pulls: dict[str, float] = {}
        total = torch.zeros((), device=seen.batch.lengths.device)
        for term in self.config.active:
            value, states = value_of(term, seen)
            if whole is not None and len(drawn) < len(whole):
                value = value * weight_of_part(term, self.trainer, drawn, whole)
            weighted = term.weight_at(progress) * value
            name = _name(term)
            entry[f"loss_{name}"] = entry.get(f"loss_{name}", 0.0) + float(value.detach())
            if with_shares:
                pulls[name] = pulls.get(name, 0.0) + _pull(weighted, states)
            total = total + weighted
        entry["loss"] = float(total.detach())
        if with_shares and len(pulls) > 1:
            together = sum(pulls.values()) or 1.0
            entry.update({f"share_{name}": pull / together for name, pull in pulls.items()})
        entry.update(self._movement(seen))
        return total, entry

    def _seen(self, drawn: list[int]) -> Seen:
        t = self.trainer
        indices = [t.rows[lang][i] for lang in (t.pivot, *t.languages) for i in drawn]
        batch = t.cache.batch(indices)
        states = t.cache.forward(batch)
        return Seen(t, self.where, self.strength, drawn, indices, batch, states)

    @torch.no_grad()
    def _movement(self, seen: Seen) -> dict[str, float]:
        """How far the last states moved along and across the language step, and the pivot's."""
        if not self.config.subspace_sites:
            return {}
        site, n = self.config.subspace_sites[-1], seen.n
        at = self.where[site]
        last = seen.batch.last(seen.states[site])
        moved = (last - self.trainer.cache.last_reference(seen.indices, site)).float()
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


def _name(term: Term) -> str:
    site = site_of(term)
    return term.kind if site == "final" else f"{term.kind}@{site}"


def _pull(weighted: Tensor, states: Tensor) -> float:
    """Norm of a term's gradient at the states it looked at."""
    (grad,) = torch.autograd.grad(weighted, states, retain_graph=True, allow_unused=True)
    return 0.0 if grad is None else float(grad.float().norm())
