"""``--config``, a YAML file whose keys are a verb's options; ``--print-config`` writes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import click

from lens.errors import InputError
from lens.utils.config import problems, read_yaml

# Options about the call itself; they are no part of what a printed config repeats.
_CALL = ("as_json", "print_config")
_YAML = (".yaml", ".yml", ".json")
_PLAIN = {type(click.BOOL): bool, type(click.INT): int, type(click.FLOAT): float,
          type(click.STRING): str}  # fmt: skip


class Settings(click.ParamType[Any]):
    """A YAML file of settings; in a config also the mapping itself.

    Parameters
    ----------
    name : str
        Shown in help.
    check : callable
        Takes a mapping, or a word that is no YAML file, and returns plain data.
    """

    def __init__(self, name: str, check: Callable[[Any], Any]) -> None:
        self.name, self.check = name, check

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read the file, if it is one, and check what it holds."""
        is_file = not isinstance(value, Mapping) and Path(str(value)).suffix in _YAML
        try:
            return self.check(read_yaml(value) if is_file else value)
        except InputError as error:
            self.fail(f"{value}: {error}" if is_file else str(error), param, ctx)


def spelled(option: str) -> str:
    """Key of an option: without dashes in front, and with hyphens inside."""
    return option.removeprefix("--").replace("_", "-")


def read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Turn a YAML file into defaults of the options that the command line leaves out.

    Raises
    ------
    InputError
        With one line per key that is unknown, out of range or given twice.
    """
    if path is None:
        return
    raw = _content(path)
    content = {spelled(key): value for key, value in raw.items()}
    options = _options(ctx.command)
    found, values = _validated(options, content, ctx)
    given: dict[str, str] = {}
    for key in raw:
        name = options[spelled(key)].name if spelled(key) in options else None
        if name in given:
            found.append(f"'{given[name]}' and '{key}' are one option; expected one of them")
        elif name:
            given[name] = key
    if found:
        raise InputError("\n".join(f"{path}: {line}" for line in found))
    ctx.default_map = {**(ctx.default_map or {}), **values}


def _content(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}; expected keys with values, one per option, "
            "such as 'layers: \"-2:\"'"
        )
    return {str(key): value for key, value in content.items()}


def _options(command: click.Command) -> dict[str, click.Parameter]:
    """Options by key, those that switch a flag off among them."""
    return {
        spelled(option): param
        for param in command.params
        for option in (*param.opts, *param.secondary_opts)
        if option.startswith("--") and option not in ("--config", "--help", "--print-config")
    }


def _validated(
    options: Mapping[str, click.Parameter], content: Mapping[str, Any], ctx: click.Context
) -> tuple[list[str], dict[str, Any]]:
    """Validate a config by the pydantic model whose fields are the options."""
    from pydantic import ConfigDict, Field, ValidationError, create_model

    fields: dict[str, Any] = {  # keys are aliases: some, such as "json", are no names for a field
        f"option_{i}": (_kind(param, ctx) | None, Field(None, alias=key))
        for i, (key, param) in enumerate(options.items())
    }
    rules = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    model = create_model("Options", __config__=rules, **fields)
    try:
        read = model.model_validate(content)
    except ValidationError as error:
        return problems(error, model, content), {}
    values = {}
    for i, (key, param) in enumerate(options.items()):
        value = getattr(read, f"option_{i}")
        if value is not None and param.name is not None:  # nothing after the colon: not given
            off = any(spelled(option) == key for option in param.secondary_opts)
            values[param.name] = (not value) if off else value
    return [], values


def _kind(param: click.Parameter, ctx: click.Context) -> Any:
    """Type of an option's value, in pydantic's terms."""
    from pydantic import AfterValidator, Field

    kind = param.type
    if isinstance(kind, click.IntRange | click.FloatRange):
        low, high = ("gt" if kind.min_open else "ge"), ("lt" if kind.max_open else "le")
        limits = ((low, kind.min), (high, kind.max))
        bounds: dict[str, Any] = {name: limit for name, limit in limits if limit is not None}
        one: Any = int if isinstance(kind, click.IntRange) else float
        one = Annotated[one, Field(**bounds)]
    elif isinstance(kind, click.Choice):
        one = Literal[tuple(kind.choices)]
    elif isinstance(kind, click.Path):
        one = Path
    else:
        one = _PLAIN.get(type(kind))
    if one is None:

        def convert(value: Any) -> Any:
            try:
                return None if value is None else kind.convert(value, param, ctx)
            except click.UsageError as error:
                raise ValueError(error.message) from None

        one = Annotated[Any, AfterValidator(convert)]
    return list[one] if param.multiple else one


def print_config(ctx: click.Context) -> None:
    """Print the options of this call as YAML that ``--config`` takes, defaults as comments."""
    import yaml

    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        key = next((spelled(option) for option in param.opts if option.startswith("--")), None)
        if value is None or param.name in _CALL or key is None:
            continue
        text = yaml.safe_dump({key: _plain(value)}, sort_keys=False, allow_unicode=True)
        said = was_said(ctx, param.name or "")
        click.echo(
            text if said else "".join(f"# {line}" for line in text.splitlines(True)), nl=False
        )


def was_said(ctx: click.Context, name: str) -> bool:
    """Whether an option was given, on the command line or in a config."""
    source = ctx.get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
