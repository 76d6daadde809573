"""Alignment: the language-agnostic part of a prompt's state becomes that of the pivot's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lens.training.terms.base import LossTerm, TermNeeds, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class Align(LossTerm):
    """Bring the language-agnostic part of a prompt in language l to that of the pivot's.

    Σ_l w_l · mean over prompts and positions of ‖P_a(h_l − h_c)‖² / d (arXiv 2410.04407).

    Attributes
    ----------
    agnostic : {"mean", "complement"}
        P_a projects on the published single direction M_a, or on everything orthogonal to the
        language subspace.
    pivot : {"frozen", "trained"}
        h_c is the frozen pivot's state, or the trained one, which then receives a gradient too
        (published).
    site, positions, languages
        As in `Separate`; no "all", since tokens of two languages do not correspond.
    """

    kind: Literal["align"] = "align"
    site: str = "final"
    agnostic: Literal["mean", "complement"] = "mean"
    pivot: Literal["frozen", "trained"] = "frozen"
    positions: Literal["last", "mean"] | Annotated[int, Field(ge=1)] = "last"
    languages: Weights = Field(default_factory=dict)

    @property
    def needs(self) -> TermNeeds:
        """Subspace or agnostic direction; frozen states of all tokens unless the last counts."""
        return TermNeeds(
            references="last" if self.positions in ("last", 1) else "all",
            subspace=True,
            mean_direction=self.agnostic == "mean",
        )

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Σ_l w_l · mean of ‖P_a(h_l − h_c)‖² / d."""
        from lens.training.losses import align

        at, n = inputs.where[self.site], inputs.n
        states, mask = inputs.trained(self.site, self.positions)
        aim = states if self.pivot == "trained" else inputs.frozen(self.site, self.positions)
        weights = inputs.row_weights(self.languages, mask[n:] * inputs.of_pivot(mask))
        along = {"direction": at.agnostic} if self.agnostic == "mean" else {"basis": at.basis}
        pivot = inputs.of_pivot(aim).flatten(0, 1)
        value = align(states[n:].flatten(0, 1), pivot, weights=weights, **along)
        return value, inputs.states[self.site]

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Prompts: a row's positions share the weight of the row."""
        return len(prompts)
