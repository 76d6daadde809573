"""The pivot's predictions stay: Kullback-Leibler divergence of next-token distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lens.models.layers import FINAL
from lens.training.terms.base import LossTerm, TermNeeds, TokenPositions, count_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class PivotKL(LossTerm):
    """Keep what the pivot's rows predict: mean over tokens of KL(p⁰‖p) of the next token, nats.

    Measures what `Retain` only bounds, at the price of logits over the vocabulary.

    Attributes
    ----------
    rows : {"prompts", "answers"}
        Tokens of the pivot's prompts; or those of its answers too, which must then be among the
        answers given to training.
    positions : "last", "all" or int
        Every token, the last one, or the last k.
    """

    kind: Literal["kl"] = "kl"
    rows: Literal["prompts", "answers"] = "prompts"
    positions: TokenPositions = "all"

    @property
    def needs(self) -> TermNeeds:
        """Logits, at prompts or answers."""
        return TermNeeds(rows=self.rows, logits=True, pivot_only=True)

    def missing_rows(self, data: TrainingData) -> str | None:
        """Report that the pivot's answers are needed and missing."""
        if self.rows == "prompts" or data.pivot in data.answers:
            return None
        return (
            'a kl term with rows="answers" needs the pivot\'s answers to its prompts; pass them '
            'to training, or use rows="prompts"'
        )

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Mean over tokens of Σ_v p⁰(v) (log p⁰(v) − log p(v))."""
        import torch
        from torch.nn.functional import kl_div, log_softmax

        from lens.training.losses import token_mask

        data, n = inputs.data, inputs.n
        all_states, lengths = inputs.states[FINAL], inputs.batch.lengths[:n]
        rows = inputs.indices[:n]
        if self.rows == "answers":
            mine = data.answers[data.pivot]
            rows = [row for i in inputs.drawn if (row := mine[i]) is not None]
            if not rows:
                return all_states.sum() * 0.0, all_states
            batch = data.cache.batch(rows)
            all_states, lengths = data.cache.forward(batch)[FINAL], batch.lengths
        frozen = data.cache.reference(rows, FINAL)
        mask = token_mask(lengths, frozen.shape[1], self.positions) > 0
        states = all_states[: len(rows), : frozen.shape[1]]
        with torch.no_grad():
            before = log_softmax(data.logits(frozen[mask]), dim=-1)
        now = log_softmax(data.logits(states[mask]), dim=-1)
        return kl_div(now, before, log_target=True, reduction="batchmean"), all_states

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Tokens of the pivot's rows."""
        answers = self.rows == "answers"
        rows = data.pivot_answer_lengths if answers else data.tokens[data.pivot]
        return count_tokens(rows, prompts, self.positions)
