"""Settings models: one pydantic model is a verb's options, YAML keys, keywords and defaults.

A field made by `option` is all of these at once. A field made by `group` holds a smaller model
whose fields are options too, such as the flags of the chat template. `validated` turns what the
user gave into one settings object and reports every problem at once; `takes` gives a Python
function the same options as keywords.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic.dataclasses
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lens.errors import InputError
from lens.utils.config import FrozenModel, problems, read_yaml, unknown
from lens.utils.files import size_in_bytes

__all__ = [
    "Flat",
    "Layers",
    "Names",
    "Numbers",
    "Option",
    "Settings",
    "Size",
    "group",
    "grouped",
    "joined",
    "members",
    "option",
    "options_of",
    "options_yaml",
    "plain",
    "read_file",
    "read_options",
    "takes",
    "validated",
]

M = TypeVar("M", bound="Settings")
R = TypeVar("R")
T = TypeVar("T")
_YAML = (".yaml", ".yml", ".json")
_INFO = "option"
_IN = " " * 4


class Settings(FrozenModel):
    """Base of the settings of a verb, whose fields are its options.

    A subclass gets the section ``Attributes`` of its docstring from the descriptions of its fields.
    """

    model_config = ConfigDict(validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        """Describe the fields in the docstring, unless it does so already."""
        doc = inspect.cleandoc(cls.__doc__ or "")
        lines = [
            line
            for name, field in cls.model_fields.items()
            if field.description
            for line in (
                f"{name} : {_kind(field)}",
                *textwrap.wrap(field.description, 96, initial_indent=_IN, subsequent_indent=_IN),
            )
        ]
        if lines and "Attributes\n----" not in doc:
            cls.__doc__ = "\n".join([doc, "", "Attributes", "----------", *lines, ""])

    def part(self, model: type[M], **more: Any) -> M:
        """Return another model with the fields that both have, and ``more``."""
        shared = {n: getattr(self, n) for n in model.model_fields if n in type(self).model_fields}
        return model.model_validate(shared | more)


class Flat(Settings):
    """Settings that also take the options inside their groups, as a YAML file spells them."""

    @model_validator(mode="wrap")
    @classmethod
    def _sorted(cls, values: Any, handler: Callable[[Any], Any], info: ValidationInfo[Any]) -> Any:
        if not isinstance(values, Mapping) or info.context == {"sorted": cls}:
            return handler(values)
        names = {str(name).replace("-", "_"): value for name, value in values.items()}
        return validated(cls, names, validate=handler)


# --- kinds of values ---------------------------------------------------------------------------


def _split(value: Any) -> Any:
    """Split text at commas; other values are left to the field's type."""
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if not parts:
        raise ValueError(f"{value!r} names nothing; expected codes such as en,es,sw")
    return parts


def _slices(value: Any) -> Any:
    """Join what YAML gives as numbers or lists: ``[2, "10:20"]`` is ``"2,10:20"``."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, int) else value


def _pairs(value: Any) -> Any:
    """Read ``es=1.5,sw=2`` as a mapping, a number as a number."""
    pairs = value
    if isinstance(value, str) and "=" in value:
        cut = [part.partition("=") for part in value.split(",") if part.strip()]
        pairs = {key.strip(): number.strip() for key, _, number in cut}
    try:
        if isinstance(pairs, Mapping):
            return {str(key): float(number) for key, number in pairs.items()}
        return float(pairs) if isinstance(pairs, str | int | float) else pairs
    except (TypeError, ValueError):
        raise ValueError(
            f"{value!r} is not a strength; expected a number such as 1.5, or one per language: "
            "spa_Latn=1.5,swh_Latn=2"
        ) from None


def _sized(value: str | int) -> str | int:
    size_in_bytes(value)
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Codes with commas between, or a list."""
Layers = Annotated[str, BeforeValidator(_slices)]
"""Half-open slices of blocks such as ``-2:`` or ``10:20,24``."""
Numbers = Annotated[float | dict[str, float], BeforeValidator(_pairs)]
"""One number for all languages, or one per language."""
Size = Annotated[str | int, AfterValidator(_sized)]
"""Bytes, such as ``12GB`` or ``500MiB``."""


# --- declaring options -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Info:
    """What a field says about its option, besides type, default, bounds and description."""

    key: str | None = None
    also: tuple[str, ...] = ()
    off: str | None = None
    short: str | None = None
    metavar: str | None = None
    argument: bool = False
    many: bool = False
    adds: bool = False
    typed: bool = True
    file: bool = False
    record: bool = True
    hidden: bool = False
    group: bool = False
    base: str | None = None
    defaults: bool = True


def option(default: Any, help: str, **given: Any) -> Any:
    """Declare a field that is an option of the command line, a YAML key and a keyword.

    Parameters
    ----------
    default
        ``...`` for an option that must be given.
    help : str
        One sentence: the text of ``--help`` and of the docstring.
    **given
        Bounds of pydantic's ``Field`` (``ge``, ``gt``, ``le``, ``lt``, ``min_length``), and where
        the option differs from its field: ``key`` (the field's name with hyphens), ``also`` (other
        spellings), ``off`` (what switches a flag off; ``no-KEY``), ``short`` (one letter),
        ``metavar``, ``argument`` (positional), ``many`` (may be repeated), ``file`` (a YAML file
        may hold the value), ``record`` (False leaves it out of ``--print-config``), ``hidden`` (a
        Python keyword only), ``typed`` (False: for YAML and Python only), ``adds`` (what is typed
        is added to what YAML holds).
    """
    names = {field.name for field in dataclasses.fields(_Info)}
    info = _Info(**{name: given.pop(name) for name in names & given.keys()})
    return Field(default, description=help, json_schema_extra={_INFO: info}, **given)  # type: ignore[dict-item]


def group(default: Any, help: str = "", *, base: str | None = None, **given: Any) -> Any:
    """Declare a field that holds another model, all fields of which are options here.

    Parameters
    ----------
    default, help
        As in `option`.
    base : str, optional
        Key of the group for which the field's own name stands: ``--lora 8`` gives ``rank``, while
        ``--lora-alpha`` is a field of the group. Without it the name is no option.
    **given
        As in `option`; ``defaults=False`` where defaults of the group depend on ``base``.
    """
    return option(default, help, group=True, base=base, **given)


@typing.dataclass_transform(frozen_default=True)
def grouped(**given: Any) -> Callable[[type[T]], type[T]]:
    """Make a small value class, such as the options of a chat template, that `group` can hold.

    It is a frozen pydantic dataclass, so that it can also be made by position; a value that does
    not fit is an InputError.
    """

    def decorate(cls: type[T]) -> type[T]:
        config = ConfigDict(extra="forbid")
        made = pydantic.dataclasses.dataclass(frozen=True, slots=True, config=config, **given)(cls)
        checked = made.__init__

        @functools.wraps(checked)
        def init(self: Any, *args: Any, **values: Any) -> None:
            try:
                checked(self, *args, **values)
            except ValidationError as error:
                named = dict(zip(_fields(made), args, strict=False)) | values
                listed = "; ".join(problems(_by_name(error, list(named)), made, named))
                raise InputError(f"{cls.__name__}: {listed}") from None

        made.__init__ = init
        return made  # type: ignore[no-any-return]

    return decorate


def _by_name(error: ValidationError, names: list[str]) -> list[Any]:
    """Errors whose location starts with a name where it was a position."""
    found: list[Any] = []
    for one in error.errors():
        first, *rest = one["loc"] or ("",)
        place = (names[first] if isinstance(first, int) else first, *rest)
        found.append({**one, "loc": place if one["loc"] else ()})
    return found


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a model.

    Attributes
    ----------
    name : str
        Keyword in Python.
    key : str
        Name on the command line and in YAML.
    path : tuple of str
        Where the settings hold it: a field, or a group and its field.
    field : FieldInfo
        Type, default, bounds and description.
    info : _Info
        The rest of what `option` was given.
    shown : bool
        Whether its default says what happens when it is not given.
    """

    name: str
    key: str
    path: tuple[str, ...]
    field: FieldInfo
    info: Any
    shown: bool = True

    @property
    def spellings(self) -> tuple[str, ...]:
        """Keys that mean this option, the first one its own."""
        return (self.key, *self.info.also)

    @property
    def is_flag(self) -> bool:
        """Whether the option is yes or no."""
        return bool in members(self.field.annotation) and not self.info.group

    @property
    def off(self) -> str | None:
        """Key that switches a flag off."""
        return (self.info.off or f"no-{self.key}") if self.is_flag else None

    @property
    def default(self) -> Any:
        """Default as plain data; None where there is none or it depends on others."""
        if not self.shown or self.field.is_required():
            return None
        return plain(self.field.get_default(call_default_factory=True))

    @property
    def choices(self) -> tuple[str, ...]:
        """Words that are allowed, where there are only a few."""
        kinds = members(self.field.annotation) - {type(None)}
        words = [get_args(kind) for kind in kinds if get_origin(kind) is Literal]
        return tuple(map(str, words[0])) if len(words) == 1 == len(kinds) else ()

    def value(self, settings: Any) -> Any:
        """Value in a settings object, as plain data."""
        for step in self.path:
            settings = None if settings is None else getattr(settings, step)
        return plain(getattr(settings, self.info.base or "", settings))


@functools.cache
def options_of(model: type[Settings]) -> Mapping[str, Option]:
    """Options of a model by their Python names, in the order in which help lists them."""
    return {found.name: found for found in _options(model)}


def _options(model: type[Settings]) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        info = _info(field)
        if not info.group:
            yield Option(name, info.key or name.replace("_", "-"), (name,), field, info)
            continue
        if info.base is not None:
            yield Option(name, info.key or name.replace("_", "-"), (name,), field, info)
        for inner, part in _fields(_inner(field)).items():
            own = _info(part)
            if inner == info.base or own.hidden:
                continue
            key = own.key or inner.replace("_", "-")
            shown = info.defaults and info.base is None
            yield Option(key.replace("-", "_"), key, (name, inner), part, own, shown)


def _info(field: FieldInfo) -> _Info:
    extra = field.json_schema_extra
    found = extra.get(_INFO) if isinstance(extra, dict) else None
    # A field without `option` is for Python and for nested models, such as the terms of a loss.
    return found if isinstance(found, _Info) else _Info(hidden=True)


def _fields(model: Any) -> dict[str, FieldInfo]:
    found = getattr(model, "model_fields", None) or getattr(model, "__pydantic_fields__", {})
    return dict(found)


def _inner(field: FieldInfo) -> Any:
    """Model that a group holds: the one alternative of its annotation that has fields."""
    return next(kind for kind in members(field.annotation) if _fields(kind))


def members(annotation: Any) -> set[Any]:
    """Return the alternatives of a union, without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return set[Any]().union(*map(members, get_args(annotation)))
    return {annotation}


def plain(value: Any) -> Any:
    """Plain data that YAML can hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


# --- from what was given to settings -----------------------------------------------------------


def validated(
    model: type[M],
    given: Mapping[str, Any],
    *,
    start: M | None = None,
    spelled: Mapping[str, str] | None = None,
    unsaid: Callable[[Option], str] = lambda option: option.name,
    validate: Callable[[Any], Any] | None = None,
) -> M:
    """Make settings of the options that were given.

    Parameters
    ----------
    model : type of Settings
        Whose options they are.
    given : mapping
        Values by Python name; a group may also be given whole.
    start : Settings, optional
        Settings that hold what is not given.
    spelled : mapping of str to str, optional
        How the user named an option, for messages.
    unsaid : callable
        How an option that was not given is named.
    validate : callable, optional
        Takes the values in their groups; the model's own by default.

    Raises
    ------
    InputError
        One line per problem, all at once.
    """
    options, names = options_of(model), {name: name for name in given} | dict(spelled or {})
    found: list[str] = []
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in options and name not in model.model_fields:
            found.append(unknown(name, dict.fromkeys([*options, *model.model_fields])))
            continue
        try:
            values[name], file = read_file(options.get(name), value)
            if file:
                names[name] = f"{names[name]}: {file}"
        except InputError as error:
            found += [f"{names[name]}: {line}" for line in str(error).split("\n")]
    content = nested(model, values, start)
    broken = {options[name].path[0] for name in given if name in options and name not in values}

    def spell(location: tuple[Any, ...]) -> tuple[str, str, int]:
        """Option that an error is about, and how many steps of its location name it."""
        said = [
            (one, names.get(name, unsaid(one)))
            for name, one in options.items()
            if one.path == location[: len(one.path)] and (name in given or len(one.path) == 1)
        ]
        if not said:
            return "", "", 0
        one, name = max(said, key=lambda pair: len(pair[0].path))
        based = one.info.group and location[1:2] == (one.info.base,)
        return name, ": " if one.info.file or name[:2] == "--" else ".", len(one.path) + based

    try:
        settings: M = (
            validate(content)
            if validate is not None
            else model.model_validate(content, context={"sorted": model})
        )
    except ValidationError as error:
        errors = [one for one in error.errors() if not one["loc"] or one["loc"][0] not in broken]
        found += problems(errors, model, content, spell=spell)
        helps = {f"{names.get(name, unsaid(one))}: missing": one for name, one in options.items()}
        found = [
            f"{line}; {_lowered(helps[line].field.description or '')}" if line in helps else line
            for line in found
        ]
    else:
        if not found:
            return settings
    raise InputError("\n".join(found))


def read_file(option: Option | None, value: Any) -> tuple[Any, str]:
    """Return the value of an option, or what its YAML file holds and the file's name."""
    if option is None or not option.info.file or not isinstance(value, str | Path):
        return value, ""
    if Path(value).suffix not in _YAML:
        return value, ""
    return read_yaml(value), str(value)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def nested(
    model: type[Settings], given: Mapping[str, Any], start: Settings | None = None
) -> dict[str, Any]:
    """Sort options into the groups that hold them; a group that is given whole stays."""
    values = {} if start is None else {n: getattr(start, n) for n in start.model_fields_set}
    options, parts = options_of(model), dict[str, dict[str, Any]]()
    for name, value in given.items():
        path = options[name].path if name in options else (name,)
        if len(path) == 1:
            values[name] = value
        elif value is not None:  # nothing was said
            parts.setdefault(path[0], {})[path[1]] = value
    for name, inner in parts.items():
        field = model.model_fields[name]
        base = values.get(name, field.get_default(call_default_factory=True))
        values[name] = _merged(base, inner, _info(field).base)
    return values


def _merged(base: Any, parts: dict[str, Any], key: str | None) -> dict[str, Any]:
    if isinstance(base, BaseModel):
        base = {name: getattr(base, name) for name in base.model_fields_set}
    elif dataclasses.is_dataclass(base):
        base = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    elif base is not None and not isinstance(base, Mapping):
        base = {key: base}
    return {**(base or {}), **parts}


# --- YAML files ---------------------------------------------------------------------------------


def read_options(
    path: Path, model: type[Settings]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Read a YAML file whose keys are the options of a model.

    Returns
    -------
    values, spelled, problems
        Values and how the file spells their options, by Python name; what is wrong, line by line.

    Raises
    ------
    InputError
        If the file cannot be read, or is not a mapping.
    """
    content = read_yaml(path)
    if content is None:
        return {}, {}, []
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}; expected keys with values, one per option, "
            "such as 'layers: \"-2:\"'"
        )
    keys = {
        key.replace("_", "-"): (one, key == one.off)
        for one in options_of(model).values()
        if not one.info.argument and not one.info.hidden
        for key in (*one.spellings, *([one.off] if one.off else []))
    }
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    found: list[str] = []
    taken: dict[str, Any] = {}
    for key, value in content.items():
        if str(key).replace("_", "-") not in keys:
            shown = [known for known, (_, is_off) in keys.items() if not is_off]
            found.append(f"{path}: {unknown(key, shown)}")
            continue
        one, is_off = keys[str(key).replace("_", "-")]
        if one.name in taken:
            found.append(
                f"{path}: '{taken[one.name]}' and '{key}' are one option; expected one of them"
            )
        taken[one.name] = key
        if value is not None:  # nothing after the colon: not given
            values[one.name] = (not value) if is_off and isinstance(value, bool) else value
            spelled[one.name] = f"{path}: {key}"
    return values, spelled, found


def joined(
    model: type[Settings], held: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Put what was typed above, or beside, what the config holds."""
    values = {**held, **given}
    for name, one in options_of(model).items():
        if one.info.adds and name in held and name in given:
            values[name] = [held[name], *given[name]]
    return values


def options_yaml(
    model: type[Settings], given: Mapping[str, Any], spelled: Mapping[str, str]
) -> str:
    """Write options as YAML that `read_options` takes: what was given, and defaults as comments."""
    import yaml

    written = []
    settings = validated(_only(model, given), given, spelled=spelled)
    for name, one in options_of(model).items():
        if one.info.argument or one.info.hidden or not one.info.record:
            continue
        value = one.default
        if name in given and one.info.group:
            raw, held = read_file(one, given[name])[0], getattr(settings, name)
            value = plain(raw if isinstance(raw, Mapping) else getattr(held, one.info.base, raw))
        elif name in given:
            value = one.value(settings)
        if value is None:
            continue
        text = yaml.safe_dump({one.key: value}, sort_keys=False, allow_unicode=True)
        lines = text.splitlines(keepends=True)
        written.append(text if name in given else "".join(f"# {line}" for line in lines))
    return "".join(written)


def _only(model: type[Settings], names: Collection[str]) -> type[Settings]:
    """Return a model that has the optional fields and those that are named, each by itself."""
    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in model.model_fields.items()
        if not field.is_required() or name in names
    }
    return create_model(model.__name__, __base__=Settings, **fields)


# --- Python functions --------------------------------------------------------------------------


def takes(model: type[Settings]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a function that has a parameter ``settings`` take the model's options as keywords.

    The function is called with one settings object. Its signature and the section ``Parameters``
    of its docstring list every option. A function with a parameter ``refused`` gets the options
    that do not fit, each with what is wrong, and reports them with its own findings.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = inspect.signature(function).parameters
        options, fields = options_of(model), model.model_fields

        @functools.wraps(function)
        def with_options(*args: Any, settings: Any = None, **keywords: Any) -> R:
            given = {name: keywords.pop(name) for name in list(keywords) if name not in own}
            wrong = [name for name in given if name not in options and name not in fields]
            if wrong:
                known = dict.fromkeys([*own, *options, *fields])
                said = "; ".join(unknown(name, known).replace("key", "option", 1) for name in wrong)
                raise TypeError(f"{function.__name__}(): {said}")
            if settings is not None and not isinstance(settings, model):
                raise TypeError(
                    f"{function.__name__}(): settings is a {type(settings).__name__}; expected "
                    f"{model.__name__}"
                )
            given = {name: _scalar(value) for name, value in given.items()}
            if "refused" in own:
                given, keywords["refused"] = _usable(model, given)
            if settings is None or given:
                settings = validated(model, given, start=settings)
            return function(*args, settings=settings, **keywords)

        with_options.__signature__ = _signature(own, model)  # type: ignore[attr-defined]
        with_options.__doc__ = _documented(function.__doc__ or "", model)
        return with_options

    return decorate


def _usable(
    model: type[Settings], given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Options that fit, and those that do not with what is wrong."""
    usable, refused = {}, []
    for name, value in given.items():
        try:
            validated(model, {name: value})
            usable[name] = value
        except InputError as error:
            lines = str(error).split("\n")
            refused += [(name, line.removeprefix(f"{name}: ")) for line in lines]
    return usable, refused


def _scalar(value: Any) -> Any:
    """Turn a NumPy number into Python's."""
    is_number = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if is_number else value


def _public(model: type[Settings]) -> Iterator[tuple[str, FieldInfo, bool]]:
    """Keywords: fields, then the fields of groups that no other keyword stands for."""
    for name, field in model.model_fields.items():
        yield name, field, True
    for name, found in options_of(model).items():
        if name not in model.model_fields:
            yield name, found.field, found.shown


def _signature(own: Mapping[str, inspect.Parameter], model: type[Settings]) -> inspect.Signature:
    given = [one for name, one in own.items() if name not in ("settings", "refused")]
    keyword = inspect.Parameter.KEYWORD_ONLY
    for name, field, shown in _public(model):
        default = field.get_default(call_default_factory=True) if shown else None
        default = inspect.Parameter.empty if default is PydanticUndefined else default
        if name not in own:
            given.append(inspect.Parameter(name, keyword, default=default, annotation=_kind(field)))
    given.append(inspect.Parameter("settings", keyword, default=None, annotation=model.__name__))
    return inspect.Signature(given)


def _documented(doc: str, model: type[Settings]) -> str:
    """Put the options at the end of the section ``Parameters``."""
    lines = inspect.cleandoc(doc).split("\n")
    rules = [i for i, line in enumerate(lines) if line and set(line) == {"-"}]
    start = next((i for i in rules if lines[i - 1] == "Parameters"), None)
    if start is None:
        at = (rules[0] - 1) if rules else len(lines)
        lines[at:at] = ["Parameters", "----------", ""]
        start = at + 1
    end = next((i - 1 for i in rules if i > start), len(lines))
    while end > start + 1 and not lines[end - 1]:
        end -= 1
    told = [
        line
        for name, field, shown in _public(model)
        for line in (
            f"{name} : {_kind(field)}{_default(field) if shown else ', optional'}",
            *textwrap.wrap(field.description or "", 96, initial_indent=_IN, subsequent_indent=_IN),
        )
    ]
    told += [f"settings : {model.__name__}, optional", "    All of these as one object."]
    return "\n".join([*lines[:end], *told, *lines[end:]])


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return ""
    if default is None:
        return ", optional"
    return f", default {default!r}" if isinstance(default, str | int | float | tuple) else ""


def _kind(field: FieldInfo) -> str:
    """Name of a field's type, for people."""
    kinds = [kind for kind in _ordered(field.annotation) if kind is not type(None)]
    return " or ".join(dict.fromkeys(map(_named, kinds)))


def _ordered(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _ordered(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _ordered(one)
    else:
        yield annotation


def _named(kind: Any) -> str:
    origin, args = get_origin(kind), [one for one in get_args(kind) if one is not ...]
    if origin is Literal:
        return "{" + ", ".join(map(repr, args)) + "}"
    if origin is tuple or origin is list:
        return f"{origin.__name__} of {_named(args[0])}"
    if origin is dict:
        return f"dict of {_named(args[0])} to {_named(args[1])}"
    return getattr(kind, "__name__", str(kind)) if kind is not typing.Any else "any"
