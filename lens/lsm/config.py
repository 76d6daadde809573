"""Settings of Lens training as data: a list of loss terms and an optimiser recipe.

The published method and our default are two values of the same type, not two branches of code;
an ablation is a third value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lens.errors import InputError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Separate(_Frozen):
    """Give a prompt in language l the language part of language l (the paper's language step).

    ``target="absolute"``: the pivot's own row moved by λ_l δ_l, M_sᵀh_l → M_sᵀh⁰_c + λ_l M_sᵀδ_l.
    ``target="shift"``: the frozen state of the same row moved, M_sᵀ(h_l − h⁰_l) → λ_l M_sᵀδ_l
    (published).
    """

    kind: Literal["separate"] = "separate"
    site: str = "final"
    weight: float = Field(1.0, ge=0)
    target: Literal["absolute", "shift"] = "absolute"


class Align(_Frozen):
    """Bring the language-agnostic part of a prompt in language l to that of the pivot's.

    ``agnostic``: the published single direction ("mean") or everything orthogonal to the
    language subspace ("complement"). ``pivot``: aim at the frozen pivot state, or at the trained
    one, which then receives a gradient too (published).
    """

    kind: Literal["align"] = "align"
    site: str = "final"
    weight: float = Field(1.0, ge=0)
    agnostic: Literal["mean", "complement"] = "mean"
    pivot: Literal["frozen", "trained"] = "frozen"


class Retain(_Frozen):
    """Keep the pivot's states: at every token ("token") or their mean ("token_mean", published).

    ``rows="text"`` keeps the states of plain text in the trained languages instead of the
    pivot's prompts; it needs ``texts`` in `lens.train`.
    """

    kind: Literal["retain"] = "retain"
    site: str = "final"
    weight: float = Field(1.0, ge=0)
    form: Literal["token", "token_mean"] = "token"
    rows: Literal["pivot", "text"] = "pivot"


Term = Annotated[Separate | Align | Retain, Field(discriminator="kind")]


class LensConfig(_Frozen):
    """Everything that decides a Lens training run, apart from model, space, prompts and seed.

    Attributes
    ----------
    terms : tuple of Separate, Align or Retain
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

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that active terms read, in order of first mention."""
        return tuple(dict.fromkeys(term.site for term in self.active))

    @property
    def active(self) -> tuple[Separate | Align | Retain, ...]:
        """Terms with a weight above zero."""
        return tuple(term for term in self.terms if term.weight > 0)


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
    "corrected": LensConfig(
        terms=(Separate(target="absolute"), Retain(form="token")),
        rank="full",
    ),
}


def resolve(losses: str | LensConfig | dict[str, Any]) -> LensConfig:
    """Turn a preset's name, a mapping or a config into a config.

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
    try:
        return LensConfig.model_validate(losses)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"the losses are not a valid Lens config: {found}") from None
