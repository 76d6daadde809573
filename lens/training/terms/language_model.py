"""Ordinary tuning beside the other terms: cross-entropy on answers or on plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lens.models.layers import FINAL
from lens.training.terms.base import LossTerm, TermNeeds, Weights, count_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class LanguageModel(LossTerm):
    """Learn to write given rows: mean over tokens, weighted by language, of −log p(token), nats.

    Attributes
    ----------
    rows : {"answers", "text"}
        Answers given to the prompts, such as real ones, or ones the model translated for itself;
        or plain text.
    languages : dict of str to float
        As in `Separate`.
    pivot : bool
        Whether the pivot's answers count.
    """

    kind: Literal["lm"] = "lm"
    rows: Literal["answers", "text"] = "answers"
    languages: Weights = Field(default_factory=dict)
    pivot: bool = False

    @property
    def needs(self) -> TermNeeds:
        """Logits, at answers or text."""
        return TermNeeds(rows=self.rows, logits=True)

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Σ_t w_t (−log p(token t)) / Σ_t w_t over the drawn rows."""
        import torch
        from torch.nn.functional import cross_entropy

        data = inputs.data
        rows: list[int] = []
        factors: list[float] = []
        for lang, mine in (data.answers if self.rows == "answers" else data.texts).items():
            factor = self._factor(lang, data)
            drawn = [mine[i % len(mine)] for i in inputs.drawn] if factor > 0 else []
            rows += [row for row in drawn if row is not None]
            factors += [factor] * (len(rows) - len(factors))
        if not rows:  # none of these prompts has an answer
            states = inputs.states[FINAL]
            return states.sum() * 0.0, states
        batch = data.cache.batch(rows)
        states = data.cache.forward(batch)[FINAL]
        picked = [(b, t) for b, row in enumerate(rows) for t in data.predicting[row]]
        at, step = torch.tensor(picked, device=states.device).T
        found = data.logits(states[at, step])
        each = cross_entropy(found, batch.input_ids[at, step + 1], reduction="none")
        weights = torch.tensor(factors, device=states.device)[at]
        return (weights * each).sum() / weights.sum(), states

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Predicted tokens, weighted by language; nothing predicts the first token of a text."""
        answers = self.rows == "answers"
        first = 0 if answers else len(prompts)
        return sum(
            self._factor(lang, data) * (count_tokens(rows, prompts, "all") - first)
            for lang, rows in (data.answer_tokens if answers else data.text_tokens).items()
        )

    def _factor(self, lang: str, data: TrainingData) -> float:
        return 0.0 if lang == data.pivot and not self.pivot else self.languages.get(lang, 1.0)
