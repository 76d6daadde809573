"""A penalty on states that lean towards languages that were not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lens.training.terms.base import LossTerm, Positions, TermNeeds, Weights, count_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class Penalise(LossTerm):
    """Keep states of a prompt in language l off the directions of the other languages.

    Mean over rows and positions, weighted by language, of
    1/(L − 1) · Σ_{s ≠ l} ReLU((h_l − m̄)ᵀ û_s), with m̄ the mean of the means m_s of all L
    languages of the space, and û_s the unit vector of the subspace's part of m_s − m̄. States on the
    far side of m̄ from a language are not pulled. In units of a state's length.

    The penalty of arXiv 2507.14894, with directions of the language space in place of features of
    a sparse autoencoder.

    Attributes
    ----------
    site, positions
        As in `Separate`.
    languages : dict of str to float
        As in `Separate`; the pivot's prompts count too.
    """

    kind: Literal["penalise"] = "penalise"
    site: str = "final"
    positions: Positions = "last"
    languages: Weights = Field(default_factory=dict)

    @property
    def needs(self) -> TermNeeds:
        """The subspace."""
        return TermNeeds(subspace=True)

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Weighted mean of 1/(L − 1) · Σ_{s ≠ l} ReLU((h_l − m̄)ᵀ û_s)."""
        import torch

        at = inputs.where[self.site]
        names = list(at.step)
        step = torch.stack([at.step[lang] for lang in names])
        away = (step - step.mean(0)) @ at.basis.T
        directions = away / away.norm(dim=1, keepdim=True).clamp_min(1e-30)
        asked = [names.index(lang) for lang in (inputs.data.pivot, *inputs.data.languages)]
        rows = torch.tensor(asked, device=step.device).repeat_interleave(inputs.n)
        states, mask = inputs.trained(self.site, self.positions)
        each = lean(states, at.centre, directions, rows)
        weights = inputs.token_weights(self.languages, mask)
        value = (weights * each).sum() / weights.sum().clamp_min(1e-30)
        return value, inputs.states[self.site]

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Tokens at the positions in all languages, weighted by language."""
        return sum(
            self.languages.get(lang, 1.0) * count_tokens(rows, prompts, self.positions)
            for lang, rows in data.tokens.items()
        )


def lean(states: Tensor, centre: Tensor, directions: Tensor, asked: Tensor) -> Tensor:
    """Mean over other languages of the part of states that points in their direction.

    Parameters
    ----------
    states : Tensor
        Shape (n, p, d).
    centre : Tensor
        Shape (d,).
    directions : Tensor
        Unit vector of every language, shape (L, d).
    asked : Tensor
        Index of each row's own language, shape (n,), int64.

    Returns
    -------
    Tensor
        Shape (n, p), float32, or float64 for states in float64.
    """
    import torch

    h = states.to(torch.promote_types(states.dtype, torch.float32))
    found = ((h - centre) @ directions.T).relu()
    others = torch.ones(len(asked), len(directions), device=h.device, dtype=h.dtype)
    others[torch.arange(len(asked), device=h.device), asked] = 0
    return (found * others[:, None]).sum(-1) / (len(directions) - 1)
