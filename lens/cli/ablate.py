"""``lens ablate``: a grid of settings from one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from lens.cli._options import print_json, talk_options


@click.command()
@click.option(
    "--sweep", required=True, type=click.Path(path_type=Path), help="YAML: what is varied."
)
@click.option("--out", type=click.Path(path_type=Path),
              help="Folder of results; a finished run found there is not done again.")  # fmt: skip
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation",
              show_default=True, help="Questions to ask.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List the runs and stop.")
@talk_options
def command(
    sweep: Path, out: Path | None, split: Literal["validation", "test"], dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Run every setting of a sweep on every model with every seed; print the table.

    Interrupted sweeps go on where they stopped when the same command is given again.
    """
    from lens.experiments.config import read_sweep

    read = read_sweep(sweep)
    if dry_run:
        runs = read.expand()
        if as_json:
            print_json([{"name": r.name, "seed": r.seed, "where": r.where} for r in runs])
            return
        for run in runs:
            where = "".join(f" {key}={value}" for key, value in run.where.items())
            click.echo(f"{run.name} [{run.setting.method}] seed={run.seed}{where}")
        click.echo(f"{len(runs)} runs")
        return
    if out is None:
        raise click.UsageError("Missing option '--out': the folder for the results.")
    from dataclasses import asdict

    from lens.experiments.ablation import ablate
    from lens.experiments.summary import tables

    lines = ablate(read, out, split=split)
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    click.echo(tables(lines))
    click.echo(f"\n{out}/runs.jsonl, table.md, results.json")
