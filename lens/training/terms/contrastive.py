"""Contrastive alignment: translations of a prompt are told apart from other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lens.training.terms.base import LossTerm, TermNeeds, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class Contrastive(LossTerm):
    """Bring a prompt's state nearer to its translation's than to those of other prompts.

    Σ_l w_l · ½ [ℓ(h_l → h_c) + ℓ(h_c → h_l)] over the prompts of a step, with InfoNCE in both
    directions, ℓ(a → b) = −mean_i log(exp(cos(a_i, b_i)/τ) / Σ_j exp(cos(a_i, b_j)/τ)), in nats.
    h_c is the trained pivot's state, which receives a gradient too (arXiv 2502.14830). A prompt
    drawn twice in a step is not its own negative.

    The prompts of a step are each other's negatives, so the term is refused where a step is
    computed in parts (``micro_batch_size``, several processes); of validation prompts, those of
    one pass are.

    Attributes
    ----------
    site : str
        A block output, such as ``"block.6"``; one in the middle of the model was best in the
        paper. Blocks up to there must be among those that are trained.
    positions : "mean" or "last"
        Mean state over the prompt's tokens, or the last one.
    temperature : float
        τ.
    languages : dict of str to float
        As in `Separate`.
    """

    kind: Literal["contrastive"] = "contrastive"
    site: str
    positions: Literal["mean", "last"] = "mean"
    temperature: float = Field(0.1, gt=0)
    languages: Weights = Field(default_factory=dict)

    @property
    def needs(self) -> TermNeeds:
        """All prompts of a step."""
        return TermNeeds(whole_step=True)

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Σ_l w_l · ½ [ℓ(h_l → h_c) + ℓ(h_c → h_l)]."""
        import torch

        states = inputs.trained(self.site, self.positions)[0][:, 0]
        pivot, *others = states.split(inputs.n)
        drawn = torch.tensor(inputs.drawn, device=states.device)
        total = torch.zeros((), device=states.device)
        for lang, mine in zip(inputs.data.languages, others, strict=True):
            factor = self.languages.get(lang, 1.0)
            if factor > 0:
                total = total + factor * info_nce(mine, pivot, drawn, self.temperature)
        return total, inputs.states[self.site]

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Prompts."""
        return len(prompts)


def info_nce(a: Tensor, b: Tensor, prompts: Tensor, temperature: float) -> Tensor:
    """Mean InfoNCE of row i of ``a`` with row i of ``b``, in both directions, nats.

    Parameters
    ----------
    a, b : Tensor
        Shape (n, d).
    prompts : Tensor
        Index of each row's prompt, shape (n,); rows of one prompt are not each other's negatives.
    temperature : float
        Divides the cosines.
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    wide = torch.promote_types(a.dtype, torch.float32)
    cosine = normalize(a.to(wide), dim=1) @ normalize(b.to(wide), dim=1).T
    own = torch.eye(len(a), dtype=torch.bool, device=a.device)
    again = (prompts[:, None] == prompts) & ~own
    score = (cosine / temperature).masked_fill(again, float("-inf"))
    target = torch.arange(len(a), device=a.device)
    return (cross_entropy(score, target) + cross_entropy(score.T, target)) / 2
