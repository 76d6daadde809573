"""Settings of Lens training as data: a list of loss terms and settings of the optimizer.

The published method and our default are two values of the same type, not two branches of code;
an ablation is a third value.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, ValidationError, model_validator

from lens.errors import InputError
from lens.models.layers import resolve_sites
from lens.training import terms
from lens.training.terms.align import Align
from lens.training.terms.base import TERMS, Frozen, LossTerm
from lens.training.terms.language_model import LanguageModel
from lens.training.terms.pivot_kl import PivotKL
from lens.training.terms.retain import Retain
from lens.training.terms.separate import Separate
from lens.utils.config import problems

for _module in pkgutil.iter_modules(terms.__path__):  # fills TERMS
    importlib.import_module(f"{terms.__name__}.{_module.name}")

if TYPE_CHECKING:
    Term = LossTerm
else:
    Term = Annotated[Union[tuple(TERMS.values())], Field(discriminator="kind")]  # noqa: UP007


class OptimizerSettings(Frozen):
    """AdamW with warm-up, cosine decay to zero and clipping.

    Attributes
    ----------
    steps, batch_size : int
        Optimizer steps; prompts (each in all languages) or rows per step.
    micro_batch_size : int or None
        Prompts per forward pass, when a whole batch does not fit in memory; gradients add up.
    learning_rate, weight_decay : float
        Peak learning rate, and weight decay of AdamW.
    max_grad_norm : float
        Gradients are scaled down to this norm.
    warmup_ratio : float
        Share of the steps spent warming up.
    """

    steps: int = Field(100, ge=1)
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)

    @property
    def rows_per_pass(self) -> int:
        """Prompts or rows of one forward pass."""
        return self.micro_batch_size or self.batch_size


class LensConfig(OptimizerSettings):
    """Everything that decides a Lens training run, apart from model, space, prompts and seed.

    Attributes
    ----------
    terms : tuple of LossTerm
        The loss is their weighted sum; each is a class of `lens.training.terms`.
    rank : "auto", "full" or int
        Rank of the language subspace at every site. With "full" every language keeps its own
        step exactly; a lower rank can lose the languages that differ least from the others.
    shares_every : int
        Steps between two entries of ``share_*`` in the log: each term's share of the gradient norm
        at the states it reads. 0 for none.
    validate_every : int
        Steps from one validation to the next, when there are validation prompts; the weights with
        the lowest validation loss are kept.
    patience : int or None
        Stop after this many validations in a row without a lower loss; None never stops early.
    """

    terms: tuple[Term, ...]
    rank: Literal["auto", "full"] | int = "auto"
    shares_every: int = Field(10, ge=0)
    validate_every: int = Field(10, ge=1)
    patience: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        problem = self.divided
        if problem:
            raise ValueError(problem)
        return self

    @property
    def divided(self) -> str | None:
        """What to say where a step is divided, or one prompt, and a term needs several at once."""
        kinds = [term.kind for term in self.active if term.needs.whole_step]
        if not kinds or 1 < self.batch_size <= self.rows_per_pass:
            return None
        return (
            f"a {kinds[0]} term compares the prompts of a step with each other: it needs a "
            "batch_size of 2 or more and no micro_batch_size below it; got batch_size "
            f"{self.batch_size} and micro_batch_size {self.micro_batch_size}"
        )

    @property
    def active(self) -> tuple[LossTerm, ...]:
        """Terms with a weight above zero."""
        return tuple(term for term in self.terms if term.weight > 0)

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that active terms read, in order of first mention."""
        return tuple(dict.fromkeys(term.read_site for term in self.active))

    @property
    def subspace_sites(self) -> tuple[str, ...]:
        """Sites whose language subspace active terms need."""
        return tuple(dict.fromkeys(t.read_site for t in self.active if t.needs.subspace))

    @property
    def references(self) -> Literal["last", "all"]:
        """Frozen states that must be cached of every prompt: of its last token, or of all."""
        needed = {term.needs.references for term in self.active}
        return "all" if "all" in needed else "last"

    @property
    def read_rows(self) -> set[str]:
        """Rows that active terms read: out of "prompts", "answers" and "text"."""
        return {term.needs.rows for term in self.active}

    def placed(self, n_blocks: int) -> LensConfig:
        """Copy with canonical site names, such as ``"block.6"`` for ``"block.-2"`` of 8 blocks.

        Raises
        ------
        InputError
            If a site does not exist in a model of ``n_blocks``.
        """
        known = resolve_sites("all", n_blocks)
        return self.model_copy(update={"terms": tuple(t.placed(known) for t in self.terms)})


PRESETS: dict[str, LensConfig] = {
    "lens-paper": LensConfig(
        terms=(
            Separate(target="shift"),
            Align(agnostic="mean", pivot="trained"),
            Retain(form="token_mean"),
        ),
        rank="full",
        weight_decay=0.1,
    ),
    "self-translation": LensConfig(
        terms=(LanguageModel(rows="answers"), PivotKL(rows="answers")),
        rank="full",
    ),
    "lens": LensConfig(
        terms=(Separate(target="absolute"), Retain(form="token")),
        rank="full",
    ),
    # The default: retain alone let the pivot drift in one world of three (docs/three-worlds.md).
    "lens+kl": LensConfig(
        terms=(Separate(target="absolute"), Retain(form="token"), PivotKL(weight=3.0)),
        rank="full",
    ),
}
# The same terms on other rows: prompts with their translation into the pivot as answers.
PRESETS["question-translation"] = PRESETS["self-translation"]


def resolve(losses: str | LensConfig | dict[str, Any]) -> LensConfig:
    """Turn a preset's name, a mapping or a config into a config.

    A mapping may start from a preset, ``{"preset": "lens", "rank": 3}``.

    Raises
    ------
    InputError
        For an unknown preset, an unknown key or a value out of range.
    """
    if isinstance(losses, LensConfig):
        return losses
    if isinstance(losses, str):
        if losses not in PRESETS:
            near = difflib.get_close_matches(losses, PRESETS, n=1)
            raise InputError(
                f"unknown losses '{losses}'; use one of {', '.join(sorted(PRESETS))}"
                + (f" (the nearest is '{near[0]}')" if near else "")
                + ", or pass a LensConfig"
            )
        return PRESETS[losses]
    if isinstance(losses, dict) and "preset" in losses:
        losses = resolve(str(losses["preset"])).model_dump() | losses
        del losses["preset"]
    try:
        return LensConfig.model_validate(losses)
    except ValidationError as error:
        found = problems(error, LensConfig, losses)
        between = "\n  " if len(found) > 1 else " "
        listed = between.join(["the losses are not a valid Lens config:", *found])
        raise InputError(listed) from None
