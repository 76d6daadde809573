"""A merge as data, in the format of mergekit's YAML files, which are read unchanged."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lens.errors import InputError
from lens.utils import config

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
    """Mergekit's long form of a model, as the short one."""
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        return value

    def short(part: dict[str, Any]) -> str:
        return "@".join(str(part[key]) for key in ("path", "revision") if part.get(key))

    lora = value.get("lora")
    return short(value["model"]) + (f"+{short(lora)}" if isinstance(lora, dict) else "")


Reference = Annotated[str, BeforeValidator(_reference)]
"""Folder, hub id, ``id@revision`` or ``model+adapter``."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, values: Any) -> Any:
        """Take a key without a value, as YAML has it, for one that is not there."""
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values


class ModelEntry(_Frozen):
    """One model that is merged, with parameters of its own."""

    model: Reference
    parameters: Parameters = {}


class SliceSource(_Frozen):
    """Blocks of one model, half-open, that become blocks of the result."""

    model: Reference
    layer_range: tuple[int, int]
    parameters: Parameters = {}


class OutputSlice(_Frozen):
    """Consecutive blocks of the result and what they are merged from."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: Reference | None = None
    parameters: Parameters = {}


class Ability(_Frozen):
    """An ability: what training on it in the pivot language changed (MAEC).

    Attributes
    ----------
    trained : str or None
        θ_A, the model trained on the ability.
    located : str or None
        θ', the model trained on it briefly, whose changes say which neurons are its own;
        ``trained`` itself when not given.
    pivot : str or None
        θ_c, the model trained on general text in the pivot language.
    extracted : str or None
        File of `lens.merging.extract`, instead of the three.
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
            raise ValueError("'extracted' stands for 'located' and 'pivot' too; leave them out")
        return self


class Language(_Frozen):
    """A language: the base after continued pre-training on it, and its factor μ."""

    name: str = "language"
    model: Reference
    mu: Finite = 1.0


class Tokenizer(_Frozen):
    """Mergekit's long form of ``tokenizer_source``."""

    source: str | None = None


class MergeConfig(_Frozen):
    """Everything that decides the result of a merge.

    Attributes
    ----------
    merge_method : str
        One of `lens.merging.methods.METHODS`.
    base_model : str or None
        θ_o, of which the others are changes; also gives tokenizer, template and configuration.
    models : tuple of Model
        What is merged. Or ``slices``, by blocks; or, for MAEC, ``abilities`` and ``languages``.
    parameters : dict
        Of the method. A value is a number; a list of numbers, interpolated over the blocks; or a
        list of ``{filter, value}``, of which the first whose filter is in a tensor's name holds.
    dtype, out_dtype : str or None
        ``out_dtype``, else ``dtype``, is what results are rounded to; without either each tensor
        keeps the dtype it has in the base. Calculated is in float32 or better, whatever they say.
    tokenizer_source : str or None
        Only ``"base"``, or ``"union"`` of equal tokenizers: it is copied byte for byte.
    chat_template : str or None
        Jinja text that takes the place of the template's own; ``"auto"`` for the one that most of
        the models have.
    """

    merge_method: str
    base_model: Reference | None = None
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[OutputSlice, ...] = ()
    abilities: tuple[Ability, ...] = ()
    languages: tuple[Language, ...] = ()
    parameters: Parameters = {}
    dtype: OutDtype | None = None
    out_dtype: OutDtype | None = None
    tokenizer_source: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    seed: int = 0


def parse_config(values: Any, *, where: str = "the merge config") -> MergeConfig:
    """Turn plain values into a config.

    Raises
    ------
    InputError
        Naming every unknown key with the nearest known one, and every value that does not fit.
    """
    if isinstance(values, MergeConfig):
        return values
    if not isinstance(values, dict):
        raise InputError(f"{where} holds a {type(values).__name__}; expected keys with values")
    try:
        return MergeConfig.model_validate(values)
    except ValidationError as error:
        found = config.problems(error, MergeConfig, values)
        raise InputError("\n".join(f"{where}: {text}" for text in found)) from None


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
