"""The recipe as data: corpora, steps, what is located, trained and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lens.configs import problems, read_yaml
from lens.errors import InputError
from lens.lsm.config import LensConfig
from lens.maec.config import OutDtype, Parameters

How = Literal["mask", "revert", "all"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tuning(_Frozen):
    """How a model is tuned: AdamW with warm-up, cosine decay and clipping.

    Attributes
    ----------
    steps, batch_size : int
        Optimizer steps; rows per step, those of the replay included.
    micro_batch : int or None
        Rows per forward pass, when a whole batch does not fit in memory; gradients add up.
    learning_rate, weight_decay, clip, warmup : float
        Peak learning rate; gradient norm limit; share of the steps spent warming up.
    replay : float
        Share of the rows of each batch that is general text, so that nothing else is forgotten.
    row_tokens : int
        Tokens of a row of plain text: documents are put end to end and cut into such rows.
    autocast : bool
        Multiply matrices in bfloat16; weights, gradients and the optimizer stay as they are.
    train : str or None
        Train these parts of the blocks only, as in `lens.train`: ``"full"``, ``"attention"``,
        ``"mlp"``, ``"norm"``, a dotted name inside the blocks, or several with commas between.
        Embeddings, head and final norm then keep their bits. Everything is trained by default.
    layers : str
        Blocks of ``train``, such as ``"2:6"`` or ``"-4:"``.
    """

    steps: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    learning_rate: float = Field(2e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    replay: float = Field(0.0, ge=0, lt=1)
    row_tokens: int = Field(512, ge=2)
    autocast: bool = False
    train: str | None = Field(None, min_length=1)
    layers: str = "all"

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        if self.train is None and self.layers != "all":
            raise ValueError("layers are those of 'train'; add train: full for all of the blocks")
        return self

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.replay and not 0 < self.replayed < self.batch_size:
            raise ValueError(
                f"replay {self.replay:g} of {self.batch_size} rows is {self.replayed} rows; "
                "choose a share that leaves at least one row of each kind"
            )
        return self

    @property
    def replayed(self) -> int:
        """Rows of general text in each batch."""
        return round(self.replay * self.batch_size)

    @property
    def optimizer(self) -> LensConfig:
        """The same for the optimizer loop of `lens.lsm`."""
        return LensConfig(
            terms=(), steps=self.steps, batch_size=self.batch_size, micro_batch=self.micro_batch,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip=self.clip,
            warmup=self.warmup, shares_every=0,
        )  # fmt: skip


class Source(_Frozen):
    """A model made from the base by tuning.

    Attributes
    ----------
    rows : str or None
        JSONL of ``{"prompt": …, "answer": …}``: answers are learnt, prompts only read.
    text : str or None
        Plain text instead, one document a line, or JSONL of ``{"text": …}``.
    replay : str or None
        General text, of which ``training.replay`` says the share.
    training : dict
        Settings of `Tuning` that differ from the recipe's own.
    """

    rows: str | None = None
    text: str | None = None
    replay: str | None = None
    training: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.rows is None) == (self.text is None):
            raise ValueError("expected exactly one of 'rows' and 'text'")
        return self


class AbilitySource(Source):
    """The ability, taught in the pivot language.

    Attributes
    ----------
    locate : dict
        Settings of the brief training that says which neurons are the ability's own (θ').
    how : {"mask", "revert", "all"}
        Train key neurons only; train all and put the others back; or train all and leave it to
        the merge to take the key neurons alone.
    """

    locate: dict[str, Any] = {}
    how: How = "mask"


class LanguageSource(Source):
    """A language: continued pre-training on its text, and its factor μ in the merge."""

    name: str
    mu: float = Field(1.0, allow_inf_nan=False)


class Recipe(_Frozen):
    """Everything from corpora to a merged model.

    Attributes
    ----------
    base_model : str
        θ_o: folder, hub id or ``id@revision``.
    training : Tuning
        Settings of every tuning, unless a source says otherwise.
    ability : AbilitySource
        θ', its key neurons and θ_A.
    pivot : Source or None
        θ_c, the base tuned on general text in the pivot language; needed where β is not 0.
    languages : tuple of LanguageSource
        θ_l, one each.
    parameters : dict
        Of the merge: k1, unit, scope, alpha, beta, mask_pivot, k2, gamma, eta, preset.
    dtype : str
        Dtype of the tuned models. A change of a weight in 16 bits is lost in rounding, so float32.
    out_dtype : str or None
        Dtype of the merged model; that of the base by default.
    """

    base_model: str
    training: Tuning = Tuning()
    ability: AbilitySource
    pivot: Source | None = None
    languages: tuple[LanguageSource, ...] = Field(min_length=1)
    parameters: Parameters = {}
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    out_dtype: OutDtype | None = None
    device: str = "cpu"
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [language.name for language in self.languages]
        if len(set(names)) < len(names) or any(not _is_name(name) for name in names):
            raise ValueError(
                f"languages are called {', '.join(map(repr, names))}; expected different names "
                "that can be names of folders, such as swh_Latn"
            )
        for source in self.sources:
            if source.replay is None and self.tuning(source).replay:
                raise ValueError("training.replay is a share of a text; name it by replay")
        if self.ability.how == "mask" and self.keyless:
            raise ValueError("ability.how is mask, but k1 is 1: lower it, or how: all")
        self.tuning(self.ability, self.ability.locate)
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """Ability, pivot if there is one, and languages."""
        pivot = () if self.pivot is None else (self.pivot,)
        return (self.ability, *pivot, *self.languages)

    @property
    def keyless(self) -> bool:
        """Whether every weight counts as a key neuron."""
        preset = self.parameters.get("preset") == "paper"
        return float(self.parameters.get("k1", 0.05 if preset else 1.0)) >= 1

    def tuning(self, source: Source, further: dict[str, Any] | None = None) -> Tuning:
        """Return the settings of one tuning."""
        values = {**self.training.model_dump(), **source.training, **(further or {})}
        try:
            return Tuning.model_validate(values)
        except ValidationError as error:  # this is asked while the recipe itself is validated
            raise ValueError("training: " + "; ".join(problems(error, Tuning, values))) from None


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from YAML; paths in it are relative to the working folder.

    Raises
    ------
    InputError
        With one line per key that is unknown, missing or out of range.
    """
    return parse_recipe(read_yaml(path), where=str(path))


def parse_recipe(values: Any, *, where: str = "the recipe") -> Recipe:
    """Turn plain values into a recipe.

    Raises
    ------
    InputError
        As `read_recipe`.
    """
    if isinstance(values, Recipe):
        return values
    if not isinstance(values, dict):
        raise InputError(f"{where} holds a {type(values).__name__}; expected keys with values")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = problems(error, Recipe, values)
        raise InputError("\n".join(f"{where}: {line}" for line in found)) from None


def _is_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")
