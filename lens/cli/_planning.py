"""What ``lens plan train`` and ``lens plan probe`` share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from lens.cli._options import print_json

if TYPE_CHECKING:
    from lens.planning.plan import Plan
    from lens.planning.resources import Rates

FLOPS = click.Option(
    ["--flops"], type=click.FloatRange(min=0, min_open=True),
    help="Operations a second, such as 2e11, in place of measuring.",
)  # fmt: skip
NO_TIME = click.Option(["--no-time"], is_flag=True, help="Measure nothing and estimate no time.")
QUICK = click.Option(
    ["--quick"], is_flag=True, help="From headers alone, in milliseconds; estimates no time."
)


def params_of(
    job: click.Command, *, optional: Sequence[str], own: Iterable[click.Option]
) -> list[click.Parameter]:
    """Options of a job, so that a command can be planned by putting plan before its verb."""
    found: list[click.Parameter] = []
    for param in job.params:
        if isinstance(param, click.Option) and param.name in optional:
            names = [*param.opts, param.name or ""]
            text = f"{param.help or ''} Optional here.".strip()
            found.append(click.Option(names, type=param.type, help=text))
        else:
            found.append(param)
    return [*found, *own]


def rates_of(
    given: dict[str, Any], *, second: str, share: float | None
) -> Rates | Literal["measure"] | None:
    """Rates from the command line: operations, and bytes a second of one other thing."""
    from lens.errors import InputError
    from lens.planning.resources import Rates

    flops, other = given["flops"], given[second]
    if flops is None:
        if other is not None:
            raise InputError(f"--{second} goes with --flops; without it both are measured")
        return None if given["no_time"] else "measure"
    rate = other if other is not None or share is None else flops * share
    moved = {second: rate}
    return Rates(
        flops, flops if second == "bandwidth" else None, moved.get("bandwidth"), "given",
        "rates from the command line", moved.get("reading"),
    )  # fmt: skip


def finish(plan: Plan, *, as_json: bool) -> None:
    """Show a plan; exit code 2 where the job could not run."""
    if as_json:
        print_json(plan.to_dict())
    else:
        _show(plan)
    if plan.errors:
        click.get_current_context().exit(2)


def _show(plan: Plan) -> None:
    from rich.console import Console

    from lens.report.console import tables

    console = Console(highlight=False)
    for item in tables(plan):
        console.print(item, soft_wrap=isinstance(item, str), markup=False)
