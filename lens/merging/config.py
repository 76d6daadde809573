"""A merge as data, in the format of mergekit's YAML files, which are read unchanged."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from lens.errors import InputError
from lens.training.config import FinetuneSettings
from lens.utils import config
from lens.utils.config import FrozenModel
from lens.utils.settings import Settings, option

Value = float | bool | str
Scope = Literal["run", "tensor", "model", "others"]
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a merge method.

    Attributes
    ----------
    name : str
        In the config.
    default : float, bool, str or None
        Also its type; None for a number that must be given.
    scope : {"run", "tensor", "model", "others"}
        One value for the run; one per tensor; one per model and tensor; the same without one for
        the base.
    low, high : float
        Range of numbers, both included.
    choices : tuple of str
        Allowed texts; any text if empty.
    """

    name: str
    default: Value | None = None
    scope: Scope = "tensor"
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Value:
        """Convert a value to the parameter's type; InputError if that fails, or out of range."""
        if isinstance(self.default, bool):
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            raise InputError(f"parameter '{self.name}': got {value!r}, expected true or false")
        if isinstance(self.default, str):
            if value in self.choices or (not self.choices and isinstance(value, str)):
                return str(value)
            expected = ", ".join(self.choices) or "text"
            raise InputError(f"parameter '{self.name}': got {value!r}, expected {expected}")
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and self.low <= number <= self.high):
            bounds = f" from {self.low:g} to {self.high:g}" if self.high < math.inf else ""
            raise InputError(f"parameter '{self.name}': got {value!r}, expected a number{bounds}")
        return number


def block_number(name: str) -> int | None:
    """Read the number of a tensor's block, the first number in its name."""
    match = _BLOCK.search(name)
    return None if match is None else int(match[1])


def evaluate(parameter: Parameter, setting: Any, *, tensor: str, t: float) -> Value | None:
    """Value of a setting at one tensor; None if no filter matches it.

    Parameters
    ----------
    parameter : Parameter
        Checks the value.
    setting : value, list of values, or list of mappings
        A list of numbers is interpolated over the blocks, one of texts or booleans steps through
        them; of mappings ``{filter, value}`` the first applies whose filter is in the name.
    tensor : str
        Name of the tensor.
    t : float
        Position of the tensor's block, from 0 for the first to 1 for the last.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, Sequence) or isinstance(setting, str):
        return parameter.check(setting)
    if not setting:
        return None
    if not any(isinstance(item, Mapping) for item in setting):
        return _interpolated(parameter, setting, t)
    for item in setting:
        if (
            not isinstance(item, Mapping)
            or "value" not in item
            or item.keys() - {"filter", "value"}
        ):
            raise InputError(
                f"parameter '{parameter.name}': got {item!r}, expected {{filter: …, value: …}}"
            )
        pattern = item.get("filter")
        if pattern in (None, "*") or str(pattern) in tensor:
            return evaluate(parameter, item["value"], tensor=tensor, t=t)
    return None


def _interpolated(parameter: Parameter, values: Sequence[Any], t: float) -> Value:
    checked = [parameter.check(value) for value in values]
    last = len(checked) - 1
    if isinstance(checked[0], bool | str):
        return checked[int(t * last)]
    low = int(t * last)
    share = t * last - low
    first, second = float(checked[low]), float(checked[min(low + 1, last)])
    return parameter.check((1 - share) * first + share * second)


def resolve(
    parameter: Parameter, settings: Iterable[Mapping[str, Any]], *, tensor: str, t: float
) -> Value | None:
    """Value at one tensor from settings in order of precedence, else the default."""
    for layer in settings:
        if parameter.name in layer:
            value = evaluate(parameter, layer[parameter.name], tensor=tensor, t=t)
            if value is not None:
                return value
    return parameter.default


Parameters = dict[str, Any]
OutDtype = Literal["float32", "float16", "bfloat16", "float64"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _reference(value: Any) -> Any:
    """Shorten mergekit's long form of a model."""
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        return value

    def short(part: dict[str, Any]) -> str:
        return "@".join(str(part[key]) for key in ("path", "revision") if part.get(key))

    lora = value.get("lora")
    return short(value["model"]) + (f"+{short(lora)}" if isinstance(lora, dict) else "")


Reference = Annotated[str, BeforeValidator(_reference)]
"""Folder, hub id, ``id@revision`` or ``model+adapter``."""


class _Entry(FrozenModel):
    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, values: Any) -> Any:
        """Drop keys without a value, as YAML may have them."""
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values


class ModelEntry(_Entry):
    """One model that is merged, with parameters of its own."""

    model: Reference
    parameters: Parameters = Field({})


class SliceSource(_Entry):
    """Blocks of one model, half-open, that become blocks of the result."""

    model: Reference
    layer_range: tuple[int, int]
    parameters: Parameters = Field({})


class OutputSlice(_Entry):
    """Consecutive blocks of the result and what they are merged from."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: Reference | None = None
    parameters: Parameters = Field({})


class Ability(_Entry):
    """An ability, learned by training in the pivot language (MAEC).

    Attributes
    ----------
    trained : str or None
        θ_A, the model trained on the ability.
    located : str or None
        θ', the model trained on it briefly, whose delta locates its key neurons; ``trained`` if
        not given.
    pivot : str or None
        θ_c, the model trained on general text in the pivot language.
    extracted : str or None
        File of `lens.merging.extract` in place of the three.
    weight : float
        Factor among several abilities.
    """

    name: str = "ability"
    trained: Reference | None = None
    located: Reference | None = None
    pivot: Reference | None = None
    extracted: str | None = None
    weight: Finite = 1.0

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.trained is None) == (self.extracted is None):
            raise ValueError("expected exactly one of 'trained' and 'extracted'")
        if self.extracted is not None and (self.located or self.pivot):
            raise ValueError("'extracted' replaces 'located' and 'pivot' too; leave them out")
        return self


class Language(_Entry):
    """A language: the base after continued pre-training on it, and its factor μ."""

    name: str = "language"
    model: Reference
    mu: Finite = 1.0


class Tokenizer(_Entry):
    """Mergekit's long form of ``tokenizer_source``."""

    source: str | None = None


def _weighted(value: Any) -> Any:
    """Split ``MODEL=NUMBER`` at the last equals sign; ``MODEL`` alone has no number."""
    if not isinstance(value, str):
        return value, None
    model, sign, number = value.rpartition("=")
    try:
        return (model, float(number)) if sign else (value, None)
    except ValueError:
        return value, None


def _models(values: Any) -> Any:
    """Take ``MODEL`` or ``MODEL=WEIGHT`` for a model that is merged."""
    if not isinstance(values, list | tuple):
        return values
    found = []
    for value in values:
        model, weight = _weighted(value)
        given = {} if weight is None else {"weight": weight}
        found.append({"model": model, "parameters": given} if isinstance(value, str) else value)
    return found


def _languages(values: Any) -> Any:
    """Take ``MODEL`` or ``MODEL=MU`` for a language."""
    if not isinstance(values, list | tuple):
        return values
    found = []
    for value in values:
        model, mu = _weighted(value)
        one = {"model": model, "mu": 1.0 if mu is None else mu}
        found.append(one if isinstance(value, str) else value)
    return found


def _pairs(values: Any) -> Any:
    """Join mappings and ``NAME=VALUE``, the value as in YAML; the last one holds."""
    import yaml

    if not isinstance(values, list | tuple):
        return values
    found: dict[str, Any] = {}
    for value in values:
        if isinstance(value, Mapping):
            found |= value
            continue
        name, sign, text = str(value).partition("=")
        if not sign:
            raise ValueError(f"{value!r} is no parameter; expected NAME=VALUE, such as k1=0.05")
        found[name.strip().replace("-", "_")] = yaml.safe_load(text)
    return found


class MergeConfig(_Entry, Settings):
    """Everything that determines the result of a merge, with the keys of mergekit's files."""

    merge_method: str = option(
        ...,
        "Merge method, such as maec, linear, task_arithmetic or ties; ? lists all.",
        key="method",
        also=("merge-method",),
    )
    base_model: Reference | None = option(
        None,
        "Model the others were trained from; also gives tokenizer, template and configuration.",
    )
    models: Annotated[tuple[ModelEntry, ...], BeforeValidator(_models)] = option(
        (),
        "Model to merge, and its weight; MODEL+ADAPTER for LoRA. Or slices, by blocks; or, for "
        "MAEC, abilities and languages.",
        key="model",
        also=("models",),
        many=True,
        metavar="MODEL[=WEIGHT]",
    )
    slices: tuple[OutputSlice, ...] = option((), "Models to merge, by blocks.", typed=False)
    abilities: tuple[Ability, ...] = option((), "MAEC: abilities to transfer.", typed=False)
    languages: Annotated[tuple[Language, ...], BeforeValidator(_languages)] = option(
        (),
        "MAEC: model further trained on a language, and its factor μ.",
        key="language",
        also=("languages",),
        many=True,
        metavar="MODEL[=MU]",
    )
    parameters: Annotated[Parameters, BeforeValidator(_pairs)] = option(
        {},
        "Parameter of the method, such as k1=0.05 or lambda=0.8. In YAML a value may also be a "
        "list of numbers, interpolated over the blocks, or of {filter, value}, of which the first "
        "whose filter is in a tensor's name applies.",
        key="param",
        also=("parameters",),
        many=True,
        adds=True,
        metavar="NAME=VALUE",
    )
    dtype: OutDtype | None = option(
        None,
        "Dtype of the result without --out-dtype; arithmetic is in float32 or better.",
    )
    out_dtype: OutDtype | None = option(None, "Dtype of the result; that of the base by default.")
    tokenizer_source: str | None = option(
        None,
        "Only base, or union of equal tokenizers: it is copied byte for byte.",
        typed=False,
    )
    tokenizer: Tokenizer | None = option(
        None, "Mergekit's long form of tokenizer_source.", typed=False
    )
    chat_template: str | None = option(
        None,
        "Jinja text that replaces the template's own; auto for the one that most models have.",
        typed=False,
    )
    seed: int = option(0, "Seed of random masks and of the null.")


def parse_config(values: Any, *, where: str = "the merge config") -> MergeConfig:
    """Turn plain values into a config.

    Raises
    ------
    InputError
        Naming every unknown key with the nearest known one, and every value that does not fit.
    """
    return config.parse_as(MergeConfig, values, where=where)


def nearest(name: str, known: Any) -> str:
    """Say which known name is the nearest."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"the nearest is '{close[0]}'" if close else f"expected one of {', '.join(known)}"


def read_config(path: str | Path) -> MergeConfig:
    """Read a YAML file, ours or mergekit's.

    Raises
    ------
    InputError
        If there is none, or it is not a merge.
    """
    return parse_config(config.read_yaml(path), where=str(path))


How = Literal["mask", "revert", "all"]


class RecipeSource(FrozenModel):
    """A model trained from the base.

    Attributes
    ----------
    rows : str or None
        JSONL of ``{"prompt": …, "answer": …}``: the loss covers the answers alone.
    text : str or None
        Plain text instead, one document per line, or JSONL of ``{"text": …}``.
    replay : str or None
        General text, mixed in by ``training.replay_share``.
    training : dict
        Settings of `FinetuneSettings` that differ from the recipe's own.
    """

    rows: str | None = None
    text: str | None = None
    replay: str | None = None
    training: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.rows is None) == (self.text is None):
            raise ValueError("expected exactly one of 'rows' and 'text'")
        return self


class AbilitySource(RecipeSource):
    """The ability, taught in the pivot language.

    Attributes
    ----------
    locate : dict
        Settings of the brief training that locates the key neurons (θ').
    how : {"mask", "revert", "all"}
        Train key neurons only; train all and restore the others; or train all and let the merge
        select the key neurons.
    """

    locate: dict[str, Any] = Field({})
    how: How = "mask"


class LanguageSource(RecipeSource):
    """A language: continued pre-training on its text, and its factor μ in the merge."""

    name: str
    mu: float = Field(1.0, allow_inf_nan=False)


class Recipe(Settings):
    """Everything from corpora to a merged model."""

    base_model: str = option(..., "θ_o: folder, hub id or id@revision.")
    training: FinetuneSettings = option(
        FinetuneSettings(),
        "Settings of every training, unless a source overrides them.",
        typed=False,
    )
    ability: AbilitySource = option(..., "θ', its key neurons and θ_A.", typed=False)
    pivot: RecipeSource | None = option(
        None,
        "θ_c, the base tuned on general text in the pivot language; needed where β is not 0.",
        typed=False,
    )
    languages: tuple[LanguageSource, ...] = option(..., "θ_l, one each.", min_length=1, typed=False)
    parameters: Parameters = option(
        {},
        "Of the merge: k1, unit, scope, alpha, beta, mask_pivot, k2, gamma, eta, preset.",
        typed=False,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "float32",
        "Dtype of the trained models; in 16 bits, small deltas are lost in rounding.",
    )
    out_dtype: OutDtype | None = option(
        None, "Dtype of the merged model; that of the base by default."
    )
    device: str = option("cpu", "cpu, cuda or mps.")
    seed: int = option(0, "Decides the order of rows.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [language.name for language in self.languages]
        if len(set(names)) < len(names) or any(not _is_name(name) for name in names):
            raise ValueError(
                f"languages are called {', '.join(map(repr, names))}; expected different names "
                "that can be names of folders, such as swh_Latn"
            )
        for source in self.sources:
            if source.replay is None and self.settings(source).replay_share:
                raise ValueError("training.replay_share is a share of a text; name it by replay")
        if self.ability.how == "mask" and self.keyless:
            raise ValueError("ability.how is mask, but k1 is 1: lower it, or how: all")
        self.settings(self.ability, self.ability.locate)
        return self

    @property
    def sources(self) -> tuple[RecipeSource, ...]:
        """Ability, pivot if there is one, and languages."""
        pivot = () if self.pivot is None else (self.pivot,)
        return (self.ability, *pivot, *self.languages)

    @property
    def keyless(self) -> bool:
        """Whether every weight counts as a key neuron."""
        preset = self.parameters.get("preset") == "paper"
        return float(self.parameters.get("k1", 0.05 if preset else 1.0)) >= 1

    def settings(
        self, source: RecipeSource, further: dict[str, Any] | None = None
    ) -> FinetuneSettings:
        """Return the settings of one training."""
        values = {**self.training.model_dump(), **source.training, **(further or {})}
        try:
            return FinetuneSettings.model_validate(values)
        except ValidationError as error:  # called while the recipe itself is validated
            raise ValueError(
                "training: " + "; ".join(config.problems(error, FinetuneSettings, values))
            ) from None


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from YAML; paths in it are relative to the working folder.

    Raises
    ------
    InputError
        With one line per key that is unknown, missing or out of range.
    """
    return parse_recipe(config.read_yaml(path), where=str(path))


def parse_recipe(values: Any, *, where: str = "the recipe") -> Recipe:
    """Turn plain values into a recipe; raises as `read_recipe` does."""
    return config.parse_as(Recipe, values, where=where)


def _is_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")
