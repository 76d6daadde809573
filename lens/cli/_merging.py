"""Options of the verbs that merge, and the config that they and ``--config`` make together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lens.cli._options import print_json
from lens.errors import InputError

if TYPE_CHECKING:
    from lens.merging.config import MergeConfig


class WeightedOption(click.ParamType[Any]):
    """``MODEL`` or ``MODEL=NUMBER``."""

    name = "model[=number]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, float | None]:
        """Split at the last equals sign, if a number follows it."""
        if isinstance(value, tuple):
            return value
        model, sign, number = str(value).rpartition("=")
        try:
            return (model, float(number)) if sign else (str(value), None)
        except ValueError:
            return str(value), None


class PairOption(click.ParamType[Any]):
    """``NAME=VALUE``, the value as in YAML."""

    name = "name=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        """Split at the first equals sign."""
        if isinstance(value, tuple):
            return value
        import yaml

        name, sign, text = str(value).partition("=")
        if not sign:
            self.fail(
                f"{value!r} is no parameter; expected NAME=VALUE, such as k1=0.05", param, ctx
            )
        return name.strip().replace("-", "_"), yaml.safe_load(text)


MERGE_METHOD_HELP = (
    "maec, linear, task_arithmetic, ties, dare_ties, dare_linear, della, della_linear, "
    "breadcrumbs, breadcrumbs_ties, slerp, layer_swap or passthrough."
)


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what is merged, and how: a YAML file, flags, or both; flags win."""
    for decorate in (
        click.option("--seed", type=int, help="Of random masks and the null."),
        click.option("--max-memory", metavar="SIZE", default="1GiB", show_default=True,
                     help="Memory for everything together."),
        click.option("--param", "parameters", type=PairOption(), multiple=True,
                     help="A parameter of the method, such as k1=0.05 or lambda=0.8."),
        click.option("--language", "languages", type=WeightedOption(), multiple=True,
                     help="MAEC: model further trained on a language, and its factor μ."),
        click.option("--extracted", help="MAEC: file of lens extract, in place of these three."),
        click.option("--pivot-model", help="MAEC: model further trained on general pivot text."),
        click.option("--located", help="MAEC: model trained briefly on the ability."),
        click.option("--trained", help="MAEC: model trained on the ability."),
        click.option("--model", "models", type=WeightedOption(), multiple=True,
                     help="A model that is merged, and its weight; MODEL+ADAPTER for LoRA."),
        click.option("--base-model", help="Model that the others are changes of."),
        click.option("--method", help=MERGE_METHOD_HELP),
        click.option("--config", "-C", type=click.Path(path_type=Path), metavar="FILE",
                     help="YAML file of the merge, ours or mergekit's; flags win."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def recipe(
    config: Path | None,
    *,
    method: str | None,
    base_model: str | None,
    models: Sequence[tuple[str, float | None]],
    trained: str | None,
    located: str | None,
    pivot_model: str | None,
    extracted: str | None,
    languages: Sequence[tuple[str, float | None]],
    parameters: Sequence[tuple[str, Any]],
    seed: int | None,
    **dtypes: str | None,
) -> MergeConfig:
    """Make one config from the file and the flags."""
    from lens.merging.config import parse_config, read_config

    values: dict[str, Any] = {}
    if config is not None:
        values = read_config(config).model_dump(exclude_defaults=True)
    given = {"merge_method": method, "base_model": base_model, "seed": seed, **dtypes}
    values |= {name: value for name, value in given.items() if value is not None}
    if models:
        values["models"] = [_model(*model) for model in models]
    ability = {
        "trained": trained, "located": located, "pivot": pivot_model, "extracted": extracted,
    }  # fmt: skip
    if any(ability.values()):
        values["abilities"] = [{k: v for k, v in ability.items() if v is not None}]
    if languages:
        values["languages"] = [
            {"model": model, "mu": 1.0 if mu is None else mu} for model, mu in languages
        ]
    values["parameters"] = {**values.get("parameters", {}), **dict(parameters)}
    if "merge_method" not in values:
        raise InputError("no merge is described; give --config FILE, or --method and models")
    return parse_config(values, where="the merge")


def _model(reference: str, weight: float | None) -> dict[str, Any]:
    return {"model": reference, "parameters": {} if weight is None else {"weight": weight}}


def show_plan(config: MergeConfig, *, max_memory: str, out: Path | None, as_json: bool) -> None:
    """Print what a merge will do and everything that would stop it; exit code 2 if anything."""
    from lens.merging.plan import plan_merge
    from lens.utils.files import said

    plan = plan_merge(config, max_memory=max_memory, out=out)
    plan.files.close()
    told = plan.to_dict()
    if as_json:
        print_json(told)
    else:
        click.echo(f"{told['method']} of {', '.join(told['sources'])}")
        click.echo(
            f"{told['tensors']} tensors, {told['parameters'] / 1e6:.1f} M parameters; reads "
            f"{said(told['bytes_read'])}, writes {said(told['bytes_written'])}, holds at most "
            f"{said(told['memory'])} in memory, about {told['seconds']} s"
        )
        for note in told["notes"]:
            click.echo(f"note: {note}")
        for problem in told["problems"]:
            click.echo(f"problem: {problem}")
    if plan.problems:
        click.get_current_context().exit(2)
