"""The training objective: every term of the config over all languages, and its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lens.errors import InputError
from lens.space.space import Space
from lens.training.config import LensConfig
from lens.training.data import TrainingData
from lens.training.losses import LossInputs, SiteGeometry
from lens.training.optimizer import Entry, evaluated


def geometries(space: Space, sites: Sequence[str], config: LensConfig) -> dict[str, SiteGeometry]:
    """Fit the geometry of every site as the config's terms need it."""
    along_mean = any(term.needs.mean_direction for term in config.active)
    agnostic: Literal["mean", "complement"] = "mean" if along_mean else "complement"
    return {
        site: SiteGeometry.of(space, site, rank=config.rank, agnostic=agnostic) for site in sites
    }


class BatchObjective:
    """Loss of one batch of parallel prompts, all languages in one forward pass.

    ``number`` is the 0-based step, for schedules; whoever runs the steps sets it. Terms whose rows
    are missing, or that need a whole step which several processes divide, are refused.
    """

    def __init__(
        self,
        data: TrainingData,
        config: LensConfig,
        where: dict[str, SiteGeometry],
        strength: dict[str, float],
    ) -> None:
        self.data, self.config, self.strength = data, config, strength
        self.where = {site: geometry.to(data.cache.device) for site, geometry in where.items()}
        self.number = 0
        if config.divided:
            raise InputError(config.divided)
        for term in config.active:
            missing = term.missing_rows(data)
            if missing:
                raise InputError(missing)
            n = data.processes.count
            if term.needs.whole_step and n > 1:
                raise InputError(
                    f"a {term.kind} term compares the prompts of a step with each other, and {n} "
                    "processes would divide them; train in one process, or leave the term out"
                )

    def __call__(
        self, drawn: list[int], whole: list[int] | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of the drawn prompts and its log entry.

        When they are a part of the ``whole`` step, the losses of all parts, weighted by their
        number of prompts, add up to that of the step.
        """
        inputs = self.inputs(drawn)
        progress = self.number / max(1, self.config.steps - 1)
        every = self.config.shares_every
        with_shares = every > 0 and self.number % every == 0
        entry: dict[str, float] = {}
        pulls: dict[str, float] = {}
        total = torch.zeros((), device=inputs.batch.lengths.device)
        for term in self.config.active:
            value, states = term.value(inputs)
            if whole is not None and len(drawn) < len(whole):
                value = value * term.weight_of_part(self.data, drawn, whole)
            weighted = term.weight_at(progress) * value
            name = term.name
            entry[f"loss_{name}"] = entry.get(f"loss_{name}", 0.0) + float(value.detach())
            if with_shares:
                pulls[name] = pulls.get(name, 0.0) + _gradient_norm(weighted, states)
            total = total + weighted
        entry["loss"] = float(total.detach())
        if with_shares and len(pulls) > 1:
            together = sum(pulls.values()) or 1.0
            entry.update({f"share_{name}": pull / together for name, pull in pulls.items()})
        entry.update(self._movement(inputs))
        return total, entry

    def inputs(self, drawn: list[int]) -> LossInputs:
        """Run the trained blocks on the drawn prompts in all languages."""
        data = self.data
        indices = [data.rows[lang][i] for lang in (data.pivot, *data.languages) for i in drawn]
        batch = data.cache.batch(indices)
        states = data.cache.forward(batch)
        return LossInputs(data, self.where, self.strength, drawn, indices, batch, states)

    @torch.no_grad()
    def _movement(self, inputs: LossInputs) -> dict[str, float]:
        """Mean movement of the last states along and across the language step, and the pivot's."""
        if not self.config.subspace_sites:
            return {}
        site, n = self.config.subspace_sites[-1], inputs.n
        at = self.where[site]
        last = inputs.batch.last(inputs.states[site])
        moved = (last - self.data.cache.last_reference(inputs.indices, site)).float()
        along, across, cosine = [], [], []
        for k, lang in enumerate(self.data.languages, start=1):
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


def _gradient_norm(weighted: Tensor, states: Tensor) -> float:
    """Norm of a term's gradient at the states it read."""
    (grad,) = torch.autograd.grad(weighted, states, retain_graph=True, allow_unused=True)
    return 0.0 if grad is None else float(grad.float().norm())


class ValidationMonitor:
    """Validation loss of a run: its own objective on held-out prompts; holds the best weights."""

    def __init__(
        self,
        held_out: TrainingData,
        parameters: Mapping[str, Tensor],
        config: LensConfig,
        where: dict[str, SiteGeometry],
        strength: dict[str, float],
    ) -> None:
        terms = tuple(term for term in config.active if term.needs.rows != "answers")
        if not terms:
            raise InputError("no loss can be measured on validation prompts, which have no answers")
        measured = config.model_copy(update={"terms": terms, "shares_every": 0})
        self.data, self.parameters, self.config = held_out, parameters, config
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
        """Validate after ``done`` steps, and copy the weights if they are the best so far."""
        found = evaluated(
            self.step,
            list(range(self.data.count)),
            self.config.rows_per_pass,
            done,
            self.data.processes,
        )
        if found["loss"] < self.best_loss:
            self.best_loss, self.best_step, self.misses = found["loss"], done, 0
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            self.misses += 1
        return {f"validation_{k}": v for k, v in found.items() if k.startswith("loss")}

    def state(self) -> dict[str, Any]:
        """Plain values that go into a checkpoint."""
        loss = self.best_loss if self.best else None  # JSON has no infinity
        return {"loss": loss, "step": self.best_step, "misses": self.misses}

    def load(self, state: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Resume from what `state` returned."""
        self.best_loss = float("inf") if state["loss"] is None else state["loss"]
        self.best_step, self.misses, self.best = state["step"], state["misses"], best
