"""The contract of a loss term: its settings, its value, its normaliser and what it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from lens.models.layers import FINAL, resolve_site
from lens.utils.config import FrozenModel

if TYPE_CHECKING:  # at run time too late: reading settings must not load torch
    from torch import Tensor

    from lens.training.data import TrainingData
    from lens.training.losses import LossInputs

Positions = Literal["last", "all", "mean"] | Annotated[int, Field(ge=1)]
TokenPositions = Literal["last", "all"] | Annotated[int, Field(ge=1)]
Weights = dict[str, Annotated[float, Field(ge=0)]]

TERMS: dict[str, type[LossTerm]] = {}
"""Every term by its ``kind``: the only list of them, filled by defining a class."""


@dataclass(frozen=True, slots=True)
class TermNeeds:
    """What a term reads besides the trained model's states at its site.

    Attributes
    ----------
    rows : {"prompts", "answers", "text"}
        The rows it is computed on.
    references : {"last", "all"}
        Frozen states of prompts in every language: of the last token (always cached), or of all.
        Those of the pivot, of its answers and of text are cached whole in any case.
    subspace : bool
        The language subspace, steps and centre at its site.
    mean_direction : bool
        The agnostic direction at its site (M_a of the paper), not the subspace's complement.
    logits : bool
        Next-token logits.
    pivot_only : bool
        The rows are those of the pivot alone; with logits, all of their tokens are predicted.
    whole_step : bool
        All prompts of a step at once: its value over a step is not a mean over parts of the step.
    """

    rows: Literal["prompts", "answers", "text"] = "prompts"
    references: Literal["last", "all"] = "last"
    subspace: bool = False
    mean_direction: bool = False
    logits: bool = False
    pivot_only: bool = False
    whole_step: bool = False


class LossTerm(FrozenModel, ABC):
    """One term of the loss.

    A term is a module of this package with one subclass: a ``kind`` of type ``Literal`` with its
    name as default, its settings as fields, and the methods `value` and `normaliser`; `needs`,
    where it reads more than states. A field ``site`` names the site it reads. Nothing else has to
    know of it. Modules import torch inside functions, since reading settings must not load it.

    Attributes
    ----------
    weight : float
        Factor of the term in the loss; with 0 it is not computed at all.
    schedule : (float, float) or None
        Factors of the weight at the first and the last step, linear in between.
    """

    weight: float = Field(1.0, ge=0)
    schedule: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        """Enter the class in `TERMS`."""
        kind = cls.model_fields["kind"].default
        known = TERMS.get(kind)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise TypeError(f"loss terms {known.__name__} and {cls.__name__} share kind {kind!r}")
        TERMS[kind] = cls

    @abstractmethod
    def value(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Compute the term over one batch of prompts.

        Parameters
        ----------
        inputs : LossInputs
            States, geometry and data of the batch.

        Returns
        -------
        value : Tensor
            Scalar float32 with its gradient, before `weight`: a mean over what `normaliser` counts.
        states : Tensor
            The trained states it was computed from; the log's ``share_*`` are gradients there.
        """

    @abstractmethod
    def normaliser(self, data: TrainingData, prompts: Sequence[int]) -> float:
        """Return what the mean in `value` divides by over these prompts, up to a constant factor.

        A step is computed in parts where ``micro_batch_size`` is set or several processes share
        it; each part counts by its normaliser, so that the parts add up to the whole step.

        Parameters
        ----------
        data : TrainingData
            Token counts of every row.
        prompts : sequence of int
            Indices of parallel prompts.

        Returns
        -------
        float
            Rows or tokens, weighted as in `value`; 0 where `value` reads nothing.
        """

    @property
    def needs(self) -> TermNeeds:
        """What the term reads besides states at its site."""
        return TermNeeds()

    @property
    def read_site(self) -> str:
        """Site the term reads; terms over the vocabulary read the last one."""
        site: str = getattr(self, "site", FINAL)
        return site

    @property
    def name(self) -> str:
        """Name in the log: the kind, and the site unless it is the last."""
        return self.kind if self.read_site == FINAL else f"{self.kind}@{self.read_site}"

    def weight_at(self, progress: float) -> float:
        """Weight when a share ``progress``, 0 to 1, of the steps is done."""
        first, last = self.schedule or (1.0, 1.0)
        return self.weight * (first + (last - first) * progress)

    def placed(self, known: Sequence[str]) -> Self:
        """Copy with the canonical name of its site, such as "block.6" for "block.-2" of 8 blocks.

        Raises
        ------
        InputError
            If the site is not one of ``known``.
        """
        if "site" not in type(self).model_fields:
            return self
        return self.model_copy(update={"site": resolve_site(self.read_site, known)})

    def missing_rows(self, data: TrainingData) -> str | None:
        """Report which rows the term needs and ``data`` lacks; None if nothing is missing."""
        rows = self.needs.rows
        if rows == "text" and not data.texts:
            return f'a {self.kind} term with rows="text" needs texts; pass them to training'
        if rows == "answers" and not data.answers:
            return (
                f'a {self.kind} term with rows="answers" needs answers; pass them to training, or '
                'use rows="text" with texts'
            )
        return None

    def weight_of_part(
        self, data: TrainingData, part: Sequence[int], whole: Sequence[int]
    ) -> float:
        """Return the factor of the value over ``part``, so that parts of ``whole`` add up.

        The parts are weighted by their share of the prompts besides.
        """
        if len(part) == len(whole):
            return 1.0
        every = self.normaliser(data, whole)
        if every == 0:
            return 1.0
        return self.normaliser(data, part) / every * len(whole) / len(part)


def count_tokens(rows: Sequence[int], prompts: Sequence[int], positions: Positions) -> int:
    """Tokens at ``positions`` of the prompts' rows.

    Parameters
    ----------
    rows : sequence of int
        Length of every row in tokens; rows are reused in turn where there are fewer than prompts.
    prompts : sequence of int
        Indices of prompts.
    positions : "last", "all", "mean" or int
        A row has one last token and one mean, and min(k, length) of its last k.
    """
    lengths = [rows[i % len(rows)] for i in prompts]
    if positions == "all":
        return sum(lengths)
    if positions in ("last", "mean"):
        return sum(length > 0 for length in lengths)
    return sum(min(length, int(positions)) for length in lengths)
