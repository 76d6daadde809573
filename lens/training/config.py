"""Settings of Lens training as data: a list of loss terms and an optimiser recipe.

The published method and our default are two values of the same type, not two branches of code;
an ablation is a third value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lens.errors import InputError
from lens.models.layers import resolve_site, resolve_sites
from lens.utils.config import problems


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Positions = Literal["last", "all", "mean"] | Annotated[int, Field(ge=1)]
TokenPositions = Literal["last", "all"] | Annotated[int, Field(ge=1)]
Weights = dict[str, Annotated[float, Field(ge=0)]]


class _Term(_Frozen):
    """What all terms share.

    Attributes
    ----------
    weight : float
        Factor of the term in the loss; with 0 it is not computed at all.
    schedule : (float, float) or None
        Factors of the weight at the first and the last step, linear in between.
    """

    weight: float = Field(1.0, ge=0)
    schedule: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None

    def weight_at(self, progress: float) -> float:
        """Weight when a share ``progress``, 0 to 1, of the steps is done."""
        first, last = self.schedule or (1.0, 1.0)
        return self.weight * (first + (last - first) * progress)


class Separate(_Term):
    """Give a prompt in language l the language part of language l (the paper's language step).

    ``target="absolute"``: the pivot's own row moved by λ_l δ_l, M_sᵀh_l → M_sᵀh⁰_c + λ_l M_sᵀδ_l.
    ``target="shift"``: the frozen state of the same row moved, M_sᵀ(h_l − h⁰_l) → λ_l M_sᵀδ_l
    (published).

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
    languages: Weights = {}

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.positions == "all" and self.target == "absolute":
            raise ValueError(
                'positions="all" compares each token with itself, so it needs target="shift"; '
                'use "last", "mean" or a number of last tokens with target="absolute"'
            )
        return self


class Align(_Term):
    """Bring the language-agnostic part of a prompt in language l to that of the pivot's.

    ``agnostic``: the published single direction ("mean") or everything orthogonal to the
    language subspace ("complement"). ``pivot``: aim at the frozen pivot state, or at the trained
    one, which then receives a gradient too (published). ``site`` and ``languages`` as in
    `Separate`; ``positions`` too, without "all", since tokens of two languages do not correspond.
    """

    kind: Literal["align"] = "align"
    site: str = "final"
    agnostic: Literal["mean", "complement"] = "mean"
    pivot: Literal["frozen", "trained"] = "frozen"
    positions: Literal["last", "mean"] | Annotated[int, Field(ge=1)] = "last"
    languages: Weights = {}


class Retain(_Term):
    """Keep the pivot's states: at every token ("token") or their mean ("token_mean", published).

    ``rows="text"`` keeps the states of plain text in the trained languages instead of the
    pivot's prompts; it needs ``texts`` in `lens.train`. ``positions``: every token, the last one,
    or the last k.
    """

    kind: Literal["retain"] = "retain"
    site: str = "final"
    form: Literal["token", "token_mean"] = "token"
    rows: Literal["pivot", "text"] = "pivot"
    positions: TokenPositions = "all"


class PivotKL(_Term):
    """Keep what the pivot's rows predict: mean over tokens of KL(p⁰‖p) of the next token, nats.

    Measures what `Retain` only bounds, at the price of logits over the vocabulary.
    ``rows="prompts"``: at the tokens of the pivot's prompts; ``rows="answers"``: also at those of
    the pivot's answers, which must then be among the answers given to training.
    """

    kind: Literal["kl"] = "kl"
    rows: Literal["prompts", "answers"] = "prompts"
    positions: TokenPositions = "all"


class LanguageModel(_Term):
    """Ordinary tuning beside the other terms: cross-entropy on text, nats a token.

    ``rows="answers"``: the answers given to the prompts, such as real ones, or ones the model
    translated for itself; ``rows="text"``: plain text. ``languages`` as in `Separate`; the pivot's
    answers count only with ``pivot=True``.
    """

    kind: Literal["lm"] = "lm"
    rows: Literal["answers", "text"] = "answers"
    languages: Weights = {}
    pivot: bool = False


class Norm(_Term):
    """Keep the length of states: mean of (‖h‖/‖h⁰‖ − 1)² over prompts in all languages.

    ``site``, ``positions`` and ``languages`` as in `Separate`.
    """

    kind: Literal["norm"] = "norm"
    site: str = "final"
    positions: Positions = "last"
    languages: Weights = {}


Term = Annotated[
    Separate | Align | Retain | PivotKL | LanguageModel | Norm, Field(discriminator="kind")
]


class LensConfig(_Frozen):
    """Everything that decides a Lens training run, apart from model, space, prompts and seed.

    Attributes
    ----------
    terms : tuple of Separate, Align, Retain, PivotKL, LanguageModel or Norm
        The loss is their weighted sum; separate and align are summed over languages.
    rank : "auto", "full" or int
        Rank of the language subspace at every site. With "full" every language keeps its own
        step exactly; a lower rank can lose the languages that differ least from the others.
    steps, batch_size : int
        Optimizer steps, and parallel prompts (each in all languages) per step.
    micro_batch : int or None
        Prompts per forward pass, when a whole batch does not fit in memory; gradients add up.
    learning_rate, weight_decay, clip, warmup : float
        AdamW; gradient norm limit; share of the steps spent warming up. Cosine decay to zero.
    shares_every : int
        Steps between two entries of ``share_*`` in the log: each term's share of the gradient norm
        at the states it reads. 0 for none.
    validate_every : int
        Steps from one validation to the next, when there are validation prompts; the weights with
        the lowest validation loss are kept.
    patience : int or None
        Stop after so many validations in a row without a lower loss; None never stops early.
    """

    terms: tuple[Term, ...]
    rank: Literal["auto", "full"] | int = "auto"
    steps: int = Field(100, ge=1)
    batch_size: int = Field(8, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    shares_every: int = Field(10, ge=0)
    validate_every: int = Field(10, ge=1)
    patience: int | None = Field(None, ge=1)

    @property
    def active(self) -> tuple[Term, ...]:
        """Terms with a weight above zero."""
        return tuple(term for term in self.terms if term.weight > 0)

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that active terms read, in order of first mention."""
        return tuple(dict.fromkeys(site_of(term) for term in self.active))

    def placed(self, n_blocks: int) -> LensConfig:
        """Copy with canonical site names, such as ``"block.6"`` for ``"block.-2"`` of 8 blocks.

        Raises
        ------
        InputError
            If a site does not exist in a model of ``n_blocks``.
        """
        known = resolve_sites("all", n_blocks)
        terms = tuple(
            term
            if isinstance(term, PivotKL | LanguageModel)
            else term.model_copy(update={"site": resolve_site(term.site, known)})
            for term in self.terms
        )
        return self.model_copy(update={"terms": terms})

    @property
    def subspace_sites(self) -> tuple[str, ...]:
        """Sites whose language subspace active terms need."""
        found = (term.site for term in self.active if isinstance(term, Separate | Align))
        return tuple(dict.fromkeys(found))

    @property
    def references(self) -> Literal["last", "all"]:
        """Frozen states that must be kept of every prompt: of its last token, or of all."""
        pooled = (t for t in self.active if isinstance(t, Separate | Align | Norm))
        return "all" if any(term.positions not in ("last", 1) for term in pooled) else "last"


def site_of(term: Term) -> str:
    """Site a term reads; those over the vocabulary read the last one."""
    return "final" if isinstance(term, PivotKL | LanguageModel) else term.site


PRESETS: dict[str, LensConfig] = {
    "lens-v1": LensConfig(
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
    "corrected": LensConfig(
        terms=(Separate(target="absolute"), Retain(form="token")),
        rank="full",
    ),
    # The default: retain alone let the pivot drift in one world of three (docs/three-worlds.md).
    "pinned": LensConfig(
        terms=(Separate(target="absolute"), Retain(form="token"), PivotKL(weight=3.0)),
        rank="full",
    ),
}
# The same terms on other rows: prompts with their translation into the pivot as answers.
PRESETS["question-translation"] = PRESETS["self-translation"]


def resolve(losses: str | LensConfig | dict[str, Any]) -> LensConfig:
    """Turn a preset's name, a mapping or a config into a config.

    A mapping may start from a preset, ``{"preset": "corrected", "rank": 3}``.

    Raises
    ------
    InputError
        For an unknown preset, an unknown key or a value out of range.
    """
    if isinstance(losses, LensConfig):
        return losses
    if isinstance(losses, str):
        if losses not in PRESETS:
            raise InputError(
                f"unknown losses '{losses}'; use one of {', '.join(sorted(PRESETS))}, "
                "or pass a LensConfig"
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
