"""The training objective: every term of the config over all languages, and its validation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens.errors import InputError
from lens.training.config import LensConfig, Term, site_of
from lens.training.losses import LossInputs, SiteGeometry, missing_rows, value_of, weight_of_part
from lens.training.optimizer import Entry, evaluated

if TYPE_CHECKING:
    from lens.training.trainer import LensTrainer


class BatchObjective:
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
        where: dict[str, SiteGeometry],
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

    def _seen(self, drawn: list[int]) -> LossInputs:
        t = self.trainer
        indices = [t.rows[lang][i] for lang in (t.pivot, *t.languages) for i in drawn]
        batch = t.cache.batch(indices)
        states = t.cache.forward(batch)
        return LossInputs(t, self.where, self.strength, drawn, indices, batch, states)

    @torch.no_grad()
    def _movement(self, seen: LossInputs) -> dict[str, float]:
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


class ValidationMonitor:
    """Validation loss of a run: the run's own objective on prompts it does not train on.

    Parameters
    ----------
    trainer : LensTrainer
        With cached validation prompts.
    config : LensConfig
        Its ``validate_every`` and ``patience`` are used.
    where, strength : dict
        Subspaces by site, and λ per language.

    Raises
    ------
    InputError
        If the losses have no term that can be measured on prompts alone.
    """

    def __init__(
        self,
        trainer: LensTrainer,
        config: LensConfig,
        where: dict[str, SiteGeometry],
        strength: dict[str, float],
    ) -> None:
        terms = [t for t in config.active if getattr(t, "rows", None) != "answers"]
        if not terms:
            raise InputError("no loss can be measured on validation prompts, which have no answers")
        measured = config.model_copy(update={"terms": tuple(terms), "shares_every": 0})
        held_out = copy.copy(trainer)
        held_out.rows, held_out.tokens = trainer.validation, trainer.validation_tokens
        held_out.count = len(held_out.tokens[trainer.pivot])
        self.trainer, self.config = held_out, config
        self.step = BatchObjective(held_out, measured, where, strength)
        self.step.number = config.steps - 1  # one objective throughout: schedules at their end
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_step, self.misses = float("inf"), 0, 0

    @property
    def exhausted(self) -> bool:
        """Whether the loss has not fallen for as many validations as patience allows."""
        return self.config.patience is not None and self.misses >= self.config.patience

    def due(self, done: int) -> bool:
        """Whether to validate after ``done`` steps."""
        return done % self.config.validate_every == 0 or done == self.config.steps

    @torch.no_grad()
    def measure(self, done: int) -> Entry:
        """Validate after ``done`` steps, and copy the weights if they are the best so far.

        Raises
        ------
        DivergedError
            If the loss is not finite.
        """
        trainer = self.trainer
        found = evaluated(
            self.step,
            list(range(trainer.count)),
            self.config.micro_batch or self.config.batch_size,
            done,
            trainer.processes,
        )
        if found["loss"] < self.best_loss:
            self.best_loss, self.best_step, self.misses = found["loss"], done, 0
            self.best = {name: p.detach().clone() for name, p in trainer.parameters.items()}
        else:
            self.misses += 1
        return {f"validation_{k}": v for k, v in found.items() if k.startswith("loss")}

    def state(self) -> dict[str, Any]:
        """Plain values that go into a checkpoint."""
        loss = self.best_loss if self.best else None  # JSON has no infinity
        return {"loss": loss, "step": self.best_step, "misses": self.misses}

    def load(self, state: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.best_loss = float("inf") if state["loss"] is None else state["loss"]
        self.best_step, self.misses, self.best = state["step"], state["misses"], best
