"""The language step: the language part of a prompt's state becomes that of its own language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from lens.training.terms.base import LossTerm, Positions, TermNeeds, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class Separate(LossTerm):
    """Give a prompt in language l the language part of language l (the paper's language step).

    Σ_l w_l · mean over prompts and positions of ‖M_sᵀ(h_l − h⁰) − λ_l M_sᵀδ_l‖² / d, with
    δ_l = m_l − m_c. ``target="absolute"``: h⁰ is the frozen pivot's state of the same prompt.
    ``target="shift"``: h⁰ is the frozen state of the same row (published, arXiv 2410.04407).

    Attributes
    ----------
    site : str
        ``"final"`` or a block output such as ``"block.6"``.
    positions : "last", "all", "mean" or int
        Tokens of the prompt that count: the last one, every one, their mean state, or the last k.
        With the absolute target the k-th token from the end meets the pivot's k-th from the end,
        so ``"all"`` needs ``target="shift"``.
    strength : float
        λ at this site as a multiple of the run's λ.
    languages : dict of str to float
        Factors of the weight per language; 1 for those not named, 0 leaves one out.
    """

    kind: Literal["separate"] = "separate"
    site: str = "final"
    target: Literal["absolute", "shift"] = "absolute"
    positions: Positions = "last"
    strength: float = Field(1.0, ge=0)
    languages: Weights = Field(default_factory=dict)

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.positions == "all" and self.target == "absolute":
            raise ValueError(
                'positions="all" compares each token with itself, so it needs target="shift"; '
                'use "last", "mean" or a number of last tokens with target="absolute"'
            )
        return self

    @property
    def needs(self) -> TermNeeds:
        """The subspace, and frozen states of all tokens unless the last one alone counts."""
        return TermNeeds(
            references="last" if self.positions in ("last", 1) else "all", subspace=True
        )

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Σ_l w_l · mean of ‖M_sᵀ(h_l − h⁰) − λ_l M_sᵀδ_l‖² / d."""
        import torch

        from lens.training.losses import separate

        at, n = inputs.where[self.site], inputs.n
        states, mask = inputs.trained(self.site, self.positions)
        frozen = inputs.frozen(self.site, self.positions)
        counted = mask[n:]
        if self.target == "absolute":
            reference, counted = inputs.of_pivot(frozen), counted * inputs.of_pivot(mask)
        else:
            reference = frozen[n:]
        languages = inputs.data.languages
        steps = [self.strength * inputs.strength[lang] * at.step[lang] for lang in languages]
        target = torch.stack(steps).repeat_interleave(n * mask.shape[1], dim=0)
        weights = inputs.row_weights(self.languages, counted)
        value = separate(
            states[n:].flatten(0, 1), reference.flatten(0, 1), at.basis, target, weights
        )
        return value, inputs.states[self.site]

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Prompts: a row's positions share the weight of the row."""
        return len(prompts)
