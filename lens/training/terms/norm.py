"""Lengths of states stay what they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lens.training.terms.base import LossTerm, Positions, TermNeeds, Weights, count_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class Norm(LossTerm):
    """Keep the length of states: mean of (‖h‖/‖h⁰‖ − 1)² over prompts in all languages.

    Attributes
    ----------
    site, positions, languages
        As in `Separate`.
    """

    kind: Literal["norm"] = "norm"
    site: str = "final"
    positions: Positions = "last"
    languages: Weights = Field(default_factory=dict)

    @property
    def needs(self) -> TermNeeds:
        """Frozen states of all tokens, unless the last one alone counts."""
        return TermNeeds(references="last" if self.positions in ("last", 1) else "all")

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Mean over rows and positions, weighted by language, of (‖h‖/‖h⁰‖ − 1)²."""
        import torch

        states, mask = inputs.trained(self.site, self.positions)
        lengths = inputs.frozen(self.site, self.positions).float().norm(dim=-1)
        ratio = states.float().norm(dim=-1) / lengths.clamp_min(1e-30)
        change = torch.where(mask > 0, ratio - 1, torch.zeros_like(ratio))  # padding has no length
        weights = inputs.token_weights(self.languages, mask)
        value = (weights * change.square()).sum() / weights.sum().clamp_min(1e-30)
        return value, inputs.states[self.site]

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Tokens at the positions in all languages, weighted by language."""
        return sum(
            self.languages.get(lang, 1.0) * count_tokens(rows, prompts, self.positions)
            for lang, rows in data.tokens.items()
        )
