"""Watch the objective on held-out prompts; keep the best weights, and stop in time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens.errors import InputError
from lens.lsm.config import LensConfig
from lens.lsm.geometry import Geometry
from lens.lsm.optimizing import Entry, evaluated
from lens.lsm.step import Step

if TYPE_CHECKING:
    from lens.lsm.training import LensTrainer


class Watch:
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
        where: dict[str, Geometry],
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
        self.step = Step(held_out, measured, where, strength)
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
