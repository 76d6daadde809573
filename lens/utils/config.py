"""Reading of YAML settings; every problem is reported at once, one line per key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from lens.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


class FrozenModel(BaseModel):
    """Base of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises
    ------
    InputError
        If it is missing or no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no config file '{path}'; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None


def read_as(path: str | Path, model: type[Model]) -> Model:
    """Read a YAML file as a model's fields.

    Raises
    ------
    InputError
        With one line per key that is unknown or out of range.
    """
    return parse_as(model, read_yaml(path), where=str(path))


def parse_as(model: type[Model], values: Any, *, where: str) -> Model:
    """Turn plain values into a model; messages begin with ``where``.

    Raises
    ------
    InputError
        With one line per key that is unknown or out of range.
    """
    if isinstance(values, model):
        return values
    if not isinstance(values, Mapping):
        raise InputError(f"{where} holds a {type(values).__name__}; expected keys with values")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        found = problems(error, model, values)
        raise InputError("\n".join(f"{where}: {line}" for line in found)) from None
    except InputError as error:  # from a validator
        raise InputError(f"{where}: {error}") from None


def unknown(key: object, known: Iterable[str]) -> str:
    """Say that a key is unknown, and which is meant, or all there are where none is like it."""
    names = list(known)
    nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    meant = f"the nearest is '{nearest[0]}'" if nearest else f"expected one of {', '.join(names)}"
    return f"unknown key '{key}'; {meant}"


def problems(
    errors: ValidationError | Sequence[Any],
    model: type[BaseModel],
    data: Any,
    *,
    spell: Callable[[tuple[str | int, ...]], tuple[str, str, int]] | None = None,
) -> list[str]:
    """Say what pydantic found, one line per key, each with the path of the key.

    Parameters
    ----------
    errors : ValidationError or list
        What was raised, or the errors in it.
    model : type of BaseModel
        What ``data`` was validated against; an unknown key is told its nearest field.
    data : mapping
        What was validated.
    spell : callable, optional
        Takes a location; returns the name of an option, what separates it from the rest of the
        location, and how many steps of the location it stands for.
    """
    listed = errors if isinstance(errors, Sequence) else errors.errors(include_url=False)
    found: dict[str, list[str]] = {}
    for one in listed:
        location = one["loc"]
        named, between, skipped = spell(location) if spell else ("", "", 0)
        missing = one["type"] == "missing"
        if one["type"] == "extra_forbidden":
            path = _spoken(location[:-1], data, skipped=skipped)
            message = unknown(location[-1], _fields(model, location[:-1]))
        else:
            path = _spoken(location, data, missing=missing, skipped=skipped)
            message = one["msg"].removeprefix("Value error, ")
        path = between.join(filter(None, (named, path)))
        message = message.replace("Input should be", "expected")
        message = re.sub("^expected (greater|less)", r"expected a number \1", message)
        value = one["input"]
        if missing:
            message = "missing"
        elif message.startswith("expected") and not isinstance(value, Mapping):
            message = f"got {value!r}, {message}"
        alternatives = found.setdefault(path, [])
        if alternatives and message.startswith("got") and alternatives[-1].startswith("got"):
            alternatives[-1] += " or" + message.partition(", expected")[2]  # members of a union
        else:
            alternatives.append(message)
    return [
        f"{path}: {line}" if path else line
        for path, messages in found.items()
        for message in messages
        for line in map(str.strip, message.split("\n"))
    ]


def _spoken(
    location: Sequence[str | int], data: Any, *, missing: bool = False, skipped: int = 0
) -> str:
    """Dotted path without the steps that name a member of a union, and without the first ones."""
    steps = []
    for number, step in enumerate(location, 1):
        inside = isinstance(data, Mapping) and step in data
        inside = inside or (isinstance(data, Sequence) and isinstance(step, int))
        if inside:
            data = data[step]
        elif not missing or number < len(location):
            continue
        if number > skipped:
            steps.append(str(step))
    return ".".join(steps)


def _fields(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the fields at a place inside a model."""
    models = [model]
    for step in location:
        inner = [
            found
            for one in models
            for name, field in one.model_fields.items()
            if step in (name, field.alias)
            for found in _models(field.annotation)
        ]
        named = [  # a step that picks a member of a union, by tag or by name
            one
            for one in models
            if step == one.__name__ or step in {f.default for f in one.model_fields.values()
                                                if isinstance(f.default, str)}
        ]  # fmt: skip
        models = inner or named or models
    return [field.alias or name for one in models for name, field in one.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that an annotation mentions."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
