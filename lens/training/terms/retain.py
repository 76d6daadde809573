"""Retention: states of the pivot's prompts, or of plain text, stay where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lens.training.terms.base import LossTerm, TermNeeds, TokenPositions, count_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs


class Retain(LossTerm):
    """Keep the pivot's states where they were.

    ``form="token"``: mean over tokens of ‖h − h⁰‖² / d. ``form="token_mean"``: mean over rows of
    ‖mean over tokens of (h − h⁰)‖² / d (published, arXiv 2410.04407).

    Attributes
    ----------
    rows : {"pivot", "text"}
        The pivot's prompts, or plain text in the trained languages, which needs ``texts`` in
        `lens.train`.
    positions : "last", "all" or int
        Every token, the last one, or the last k.
    site : str
        As in `Separate`.
    """

    kind: Literal["retain"] = "retain"
    site: str = "final"
    form: Literal["token", "token_mean"] = "token"
    rows: Literal["pivot", "text"] = "pivot"
    positions: TokenPositions = "all"

    @property
    def needs(self) -> TermNeeds:
        """Prompts or text."""
        return TermNeeds(rows="text" if self.rows == "text" else "prompts")

    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Mean of ‖h − h⁰‖² / d over tokens, or of the rows' token means."""
        from lens.training.losses import retain, token_mask

        cache = inputs.data.cache
        if self.rows == "pivot":
            rows, all_states = inputs.indices[: inputs.n], inputs.states[self.site]
            lengths, states = inputs.batch.lengths[: inputs.n], all_states[: inputs.n]
        else:
            texts = inputs.data.texts.values()
            rows = [mine[i % len(mine)] for mine in texts for i in inputs.drawn]
            batch = cache.batch(rows)
            all_states = states = cache.forward(batch)[self.site]
            lengths = batch.lengths
        frozen = cache.reference(rows, self.site)
        states = states[:, : frozen.shape[1]]
        mask = token_mask(lengths, frozen.shape[1], self.positions)
        return retain(states, frozen, mask, form=self.form), all_states

    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Tokens; prompts for the mean over rows."""
        if self.form == "token_mean":
            return len(prompts)
        source = [data.tokens[data.pivot]] if self.rows == "pivot" else data.text_tokens.values()
        return sum(count_tokens(rows, prompts, self.positions) for rows in source)
