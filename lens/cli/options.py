"""From a settings model to a command: its options, ``--config``, ``--print-config``, its errors.

A verb declares one model and takes one object::

    @command(TrainCommand)
    def train(settings: TrainCommand) -> None: ...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt

from lens.cli.app import VERBOSE
from lens.errors import InputError
from lens.utils.settings import (
    Option,
    Settings,
    joined,
    members,
    option,
    options_of,
    options_yaml,
    read_options,
    validated,
)

V = TypeVar("V", bound="Verb")

_BOUNDS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))


class Verb(Settings):
    """What every command takes."""

    as_json: bool = option(False, "Print the result as JSON.", key="json", record=False)


def command(
    model: type[V], name: str | None = None
) -> Callable[[Callable[[V], None]], click.Command]:
    """Make a command of a function that takes the settings.

    Parameters
    ----------
    model : type of Verb
        Its fields are arguments and options.
    name : str, optional
        Name of the command; that of the function by default.
    """

    def decorate(function: Callable[[V], None]) -> click.Command:
        def run(**_values: Any) -> None:
            context = click.get_current_context()
            given, spelled = _given(context, model)
            file = context.params.get("config_file")
            found: list[str] = []
            if file is not None:
                held, names, found = read_options(file, model)
                given, spelled = joined(model, held, given), {**names, **spelled}
            if context.params.get("print_config"):
                _refuse(found)
                click.echo(options_yaml(model, given, spelled), nl=False)
                return
            function(_settings(model, given, spelled, found))

        shown = (one for one in options_of(model).values() if one.info.typed)
        made = [_parameter(one) for one in shown if not one.info.hidden]
        made.sort(key=lambda one: (isinstance(one, click.Option), one.name in Verb.model_fields))
        params = [*made, *_common()]
        return click.Command(
            name or function.__name__, callback=run, params=params, help=function.__doc__
        )

    return decorate


# --- parameters --------------------------------------------------------------------------------


class _Option(click.Option):
    """An option whose value stays as it was typed: the settings model reads it.

    Help shows ``--no-x`` only where ``--x`` is not what happens when nothing is said.
    """

    brief = False

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Row of the help, without the spelling that changes nothing."""
        record = super().get_help_record(ctx)
        if record is None or not self.brief:
            return record
        return record[0].split(" / ")[0], record[1]


class _AsTyped(click.ParamType[Any]):
    """Text that is read later; choices are offered to completion."""

    def __init__(self, name: str, choices: tuple[str, ...]) -> None:
        self.name, self.choices = name, choices

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        """Choices, or files where a path is expected."""
        from click.shell_completion import CompletionItem

        if self.name == "path":
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(one) for one in self.choices if one.startswith(incomplete)]


def _parameter(spec: Option) -> click.Parameter:
    info, kind = spec.info, spec.field.annotation
    metavar = info.metavar or _metavar(spec)
    if info.argument:
        many = "tuple" in str(kind)
        required = spec.field.is_required()
        shown = spec.key.upper().replace("-", "_") + ("..." if many else "")
        return click.Argument(
            [spec.name],
            type=_AsTyped(_word(spec), spec.choices),
            required=required,
            nargs=-1 if many else 1,
            metavar=shown if required else f"[{shown}]",
        )
    names = [f"--{key}" for key in spec.spellings]
    if spec.is_flag:
        names[0] += f"/--{spec.off}"
    names += [f"-{info.short}"] if info.short else []
    made = _Option(
        [*names, spec.name],
        help=_help(spec),
        is_flag=spec.is_flag or None,
        default=None,
        type=None if spec.is_flag else _AsTyped(_word(spec), spec.choices),
        multiple=spec.info.many,
        metavar=None if spec.is_flag else metavar,
    )
    made.brief = spec.field.default is False and info.off is None
    return made


def _word(spec: Option) -> str:
    kinds = {getattr(kind, "__name__", "") for kind in members(spec.field.annotation)}
    words = {"Path": "path", "str": "text", "float": "float", "int": "int"}
    return next((word for name, word in words.items() if name in kinds), "text")


def _metavar(spec: Option) -> str:
    if spec.choices:
        return f"[{'|'.join(spec.choices)}]"
    kinds = members(spec.field.annotation)
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    known = {"path": "PATH", "float": "FLOAT", "int": "INTEGER", "text": "TEXT"}
    return "|".join([*words, known[_word(spec)]])


def _help(spec: Option) -> str:
    """Return description, default and bounds."""
    default, told = spec.default, []
    if default not in (None, False, "", [], {}):
        listed = ",".join(map(str, default)) if isinstance(default, list) else default
        told.append(f"default: {spec.key if default is True else listed}")
    limits = [
        f"x{sign}{getattr(one, name):g}"
        for one in spec.field.metadata
        for kind, name, sign in _BOUNDS
        if isinstance(one, kind)
    ]
    told += [" and ".join(limits)] if limits else []
    told += ["required"] if spec.field.is_required() and len(spec.path) == 1 else []
    text = spec.field.description or ""
    return f"{text}  [{'; '.join(told)}]" if told else text


def _common() -> list[click.Parameter]:
    """Options of the call itself, which are no settings."""
    return [
        click.Option(
            ["--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_silence,
            help="No progress, only the result.",
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            expose_value=False,
            is_eager=True,
            callback=_remember_verbose,
            help="Show the traceback of an error.",
        ),
        click.Option(
            ["--config", "-C", "config_file"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="YAML file with these options as keys; the command line wins.",
        ),
        click.Option(
            ["--print-config"],
            is_flag=True,
            help="Print the options of this call as such a file, and stop.",
        ),
    ]


def _remember_verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    ctx.meta[VERBOSE] = value


def _silence(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    from lens.utils.progress import set_quiet

    set_quiet(value)


# --- values ------------------------------------------------------------------------------------


def _given(ctx: click.Context, model: type[Settings]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what was typed, by name, and how it is called in messages."""
    values, spelled = {}, {}
    for name, one in options_of(model).items():
        value = ctx.params.get(name)
        if value is None or value == ():
            continue
        values[name] = value
        spelled[name] = one.key.upper() if one.info.argument else f"--{one.key}"
    return values, spelled


def _settings(
    model: type[V], given: Mapping[str, Any], spelled: Mapping[str, str], found: list[str]
) -> V:
    try:
        settings = validated(
            model,
            given,
            spelled=spelled,
            unsaid=lambda one: f"--{one.key}" if one.info.typed else one.key,
        )
    except InputError as error:
        raise InputError("\n".join([*found, str(error)])) from None
    _refuse(found)
    return settings


def _refuse(found: list[str]) -> None:
    if found:
        raise InputError("\n".join(found))


def print_json(data: Any) -> None:
    """Print one JSON value on stdout."""
    click.echo(json.dumps(data, indent=1, ensure_ascii=False, default=str))
