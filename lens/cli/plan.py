"""``lens plan train``, ``plan probe`` and ``plan merge``: memory, disk, time, and every problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from pydantic import model_validator

from lens.cli.merge import MergeOptions, show_plan
from lens.cli.options import Verb, command, print_json
from lens.cli.probe import ProbeOptions
from lens.cli.train import TrainOptions
from lens.planning.config import ProbePlanSettings, TrainPlanSettings
from lens.utils.settings import option

if TYPE_CHECKING:
    from lens.planning import Plan, Rates


class _Rates(Verb):
    flops: float | None = option(
        None, "FLOPs per second, such as 2e11, instead of measuring.", gt=0
    )
    no_time: bool = option(False, "Measure nothing and estimate no time.")

    def rates(self, second: str, share: float | None) -> Rates | Literal["measure"] | None:
        """Rates from the command line: FLOPs, and bytes of one other thing, per second."""
        from lens.planning import Rates

        flops, other = self.flops, getattr(self, second)
        if flops is None:
            return None if self.no_time else "measure"
        rate = other if other is not None or share is None else flops * share
        moved = {second: rate}
        return Rates(
            flops,
            flops if second == "bandwidth" else None,
            moved.get("bandwidth"),
            "given",
            "rates from the command line",
            moved.get("reading"),
        )

    @model_validator(mode="after")
    def _with_flops(self) -> _Rates:
        for name in ("bandwidth", "reading"):
            if self.flops is None and getattr(self, name, None) is not None:
                raise ValueError(f"--{name} goes with --flops; without it both are measured")
        return self


class PlanTrainCommand(TrainOptions, TrainPlanSettings, _Rates):
    """Options of ``lens plan train``: those of ``lens train``, and these."""

    space: Path | None = option(None, "Space file of this model. Optional here.")
    out: Path | None = option(None, "Checkpoint folder. Optional here.")
    bandwidth: float | None = option(
        None, "Bytes per second, with --flops; a tenth of it by default.", gt=0
    )


class PlanProbeCommand(ProbeOptions, ProbePlanSettings, _Rates):
    """Options of ``lens plan probe``: those of ``lens probe``, and these."""

    out: Path | None = option(None, "File of the space. Optional here.")
    reading: float | None = option(None, "Bytes per second of the disk, with --flops.", gt=0)

    @model_validator(mode="after")
    def _runs_a_model(self) -> PlanProbeCommand:
        if self.states is not None:
            raise ValueError("with --states no model is run, so there is nothing to plan")
        return self


class PlanMergeCommand(MergeOptions):
    """Options of ``lens plan merge``: those of ``lens merge``."""

    out: Path | None = option(None, "Folder of the result, to see whether there is space for it.")


@command(PlanTrainCommand)
def train(settings: PlanTrainCommand) -> None:
    """Plan lens train: what it needs in memory, on disk and in time, and what would stop it.

    Reads config, index files and safetensors headers; no weight. A config.json alone is enough.
    Exit code 2 where training could not run.
    """
    from lens.planning import plan_training

    plan = plan_training(
        settings.model,
        settings.prompts,
        space=settings.space,
        validation=settings.validation,
        rates=settings.rates("bandwidth", 0.1),
        settings=settings,
    )
    _show(plan, as_json=settings.as_json)


@command(PlanProbeCommand)
def probe(settings: PlanProbeCommand) -> None:
    """Plan lens probe: what it needs in memory, on disk and in time, and what would stop it.

    Reads config, index files and safetensors headers; no weight. A config.json alone is enough.
    Exit code 2 where the probe could not run.
    """
    from lens.planning import plan_probing

    plan = plan_probing(
        settings.model,
        settings.data,
        prompts=settings.prompts,
        rates=settings.rates("reading", None),
        settings=settings,
    )
    _show(plan, as_json=settings.as_json)


@command(PlanMergeCommand)
def merge(settings: PlanMergeCommand) -> None:
    """Plan lens merge: what it reads, writes and holds, and every problem at once.

    Reads configs, index files and safetensors headers, no weight: milliseconds for models of any
    size. Exit code 2 where the merge could not be done.
    """
    show_plan(settings.config, settings, settings.out)


def _show(plan: Plan, *, as_json: bool) -> None:
    """Print a plan; exit code 2 where the job could not run."""
    from rich.console import Console

    from lens.report.console import tables

    if as_json:
        print_json(plan.to_dict())
    else:
        console = Console(highlight=False)
        for item in tables(plan):
            console.print(item, soft_wrap=isinstance(item, str), markup=False)
    if plan.errors:
        click.get_current_context().exit(2)
