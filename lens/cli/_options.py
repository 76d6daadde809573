"""Options that several verbs share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lens.cli._config import print_config as _print_config
from lens.cli._config import read_config
from lens.cli._group import VERBOSE

F = TypeVar("F", bound=Callable[..., Any])


class Listed(click.ParamType[Any]):
    """Comma-separated text; in YAML a list does as well."""

    name = "list"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Split at commas and drop blanks."""
        parts = value.split(",") if isinstance(value, str) else list(value)
        found = tuple(str(part).strip() for part in parts if str(part).strip())
        if not found:
            self.fail(f"{value!r} names nothing; expected codes such as en,es,sw", param, ctx)
        return found


class Layers(click.ParamType[Any]):
    """Half-open slices of blocks such as ``-2:`` or ``10:20,24``; in YAML also numbers."""

    name = "slices"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Join what YAML gives as numbers or lists."""
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Strength(click.ParamType[Any]):
    """One number for all languages, or ``spa_Latn=1.5,swh_Latn=2``; in YAML also a mapping."""

    name = "number | lang=number,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> float | dict[str, float]:
        """Read a number or pairs."""
        try:
            if isinstance(value, dict):
                return {str(key): float(number) for key, number in value.items()}
            if not isinstance(value, str) or "=" not in value:
                return float(value)
            pairs = [part.partition("=") for part in value.split(",")]
            return {key.strip(): float(number) for key, _, number in pairs}
        except (TypeError, ValueError):
            self.fail(
                f"{value!r} is not a strength; expected a number such as 1.5, or one per "
                "language: spa_Latn=1.5,swh_Latn=2",
                param,
                ctx,
            )


def talk_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--config``, ``--print-config``, ``--json``, ``--quiet`` and ``-v`` of every verb."""

    @functools.wraps(function)
    def printed_or_run(*args: Any, print_config: bool, **given: Any) -> Any:
        if print_config:
            return _print_config(click.get_current_context())
        return function(*args, **given)

    decorated: Callable[..., Any] = printed_or_run
    for decorate in (
        click.option("--config", "-C", type=click.Path(path_type=Path), expose_value=False,
                     is_eager=True, callback=read_config, metavar="FILE",
                     help="YAML file with these options as keys; the command line wins."),
        click.option("--print-config", is_flag=True,
                     help="Print the options of this call as such a file, and stop."),
    ):  # fmt: skip
        decorated = decorate(decorated)
    return saying_options(decorated)


def saying_options(function: F) -> F:
    """``--json``, ``--quiet`` and ``-v``, for verbs whose ``--config`` is of another kind."""
    for decorate in (
        click.option("-v", "--verbose", count=True, expose_value=False, callback=_remember_verbose,
                     is_eager=True, help="Show the traceback of an error."),
        click.option("--quiet", is_flag=True, expose_value=False, callback=_silence,
                     help="No progress, only the result."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def model_options(function: F) -> F:
    """Which model, and how it is loaded."""
    return _model_options(function, required=True)


def any_model_options(function: F) -> F:
    """`model_options` of a verb that can do without a model."""
    return _model_options(function, required=False)


def _model_options(function: F, *, required: bool) -> F:
    for decorate in (
        click.option("--trust-remote-code", is_flag=True, help="Run code of the checkpoint."),
        click.option("--dtype", default="auto", show_default=True,
                     help="auto, float32, bfloat16 or float16."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps or auto."),
        click.option("--revision", help="Branch, tag or commit of a hub id (or ID@REVISION)."),
        click.option("--model", required=required, help="Folder of a checkpoint, or hub id."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def part_options(function: F) -> F:
    """Which part of a data set, and what to do with rows that lack a language."""
    for decorate in (
        click.option("--incomplete", type=click.Choice(["refuse", "drop"]), default="refuse",
                     show_default=True, help="Rows that are empty in some language."),
        click.option("--column", help="Field of text, where a language has several."),
        click.option("--split", help="Split of a data set, where it has several."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def chat_options(function: F) -> F:
    """How prompts meet the chat template."""
    for decorate in (
        click.option("--enable-thinking/--no-thinking", "thinking", default=None,
                     help="Value of the template's enable_thinking flag."),
        click.option("--system", help="System message."),
        click.option("--template/--no-template", default=None,
                     help="Use the chat template (default: where there is one)."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def load_model(
    model: str,
    *,
    revision: str | None,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    layer_by_layer: bool = False,
) -> tuple[Any, Any]:
    """Load what :func:`model_options` names."""
    from lens.models.loading import load

    return load(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        layer_by_layer=layer_by_layer,
    )


def chat_of(template: bool | None, system: str | None, thinking: bool | None) -> Any:
    """Chat options from :func:`chat_options`."""
    from lens.models.tokenization import ChatOptions

    return ChatOptions(template=template, system=system, enable_thinking=thinking)


def print_json(data: Any) -> None:
    """Print one JSON value on stdout."""
    click.echo(json.dumps(data, indent=1, ensure_ascii=False, default=str))


def _remember_verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    ctx.meta[VERBOSE] = value


def _silence(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    from lens.utils.progress import set_quiet

    set_quiet(value)
