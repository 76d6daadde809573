"""``lens ablate``: a grid of settings from one YAML file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from lens.cli.options import Verb, command, print_json
from lens.errors import InputError
from lens.utils.settings import option


class AblateCommand(Verb):
    """Options of ``lens ablate``."""

    sweep: Path = option(..., "YAML: what is varied.")
    out: Path | None = option(
        None, "Folder of results; a finished run found there is not done again."
    )
    split: Literal["validation", "test"] = option("validation", "Questions to ask.")
    dry_run: bool = option(False, "List the runs and stop.")


@command(AblateCommand)
def ablate(settings: AblateCommand) -> None:
    """Run every setting of a sweep on every model with every seed; print the table.

    An interrupted sweep resumes when the same command is given again.
    """
    from lens.experiments.config import read_sweep

    sweep, out = read_sweep(settings.sweep), settings.out
    if settings.dry_run:
        runs = sweep.expand()
        if settings.as_json:
            print_json([{"name": r.name, "seed": r.seed, "where": r.where} for r in runs])
            return
        for run in runs:
            where = "".join(f" {key}={value}" for key, value in run.where.items())
            click.echo(f"{run.name} [{run.setting.method}] seed={run.seed}{where}")
        click.echo(f"{len(runs)} runs")
        return
    if out is None:
        raise InputError("Missing option '--out': the folder for the results.")
    from lens.experiments.ablation import ablate
    from lens.experiments.summary import tables

    lines = ablate(sweep, out, split=settings.split)
    if settings.as_json:
        print_json([asdict(line) for line in lines])
        return
    click.echo(tables(lines))
    click.echo(f"\n{out}/runs.jsonl, table.md, results.json")
