"""``lens world transfer``: the study of an ability carried to other languages by weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from lens.cli._options import print_json, saying_options


@click.command("transfer")
@click.option("--config", "-C", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="YAML: worlds, seeds, trainings, trials.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="Folder of models and results; finished parts are not done again.")  # fmt: skip
@click.option("--split", type=click.Choice(["validation", "test"]), default="validation",
              show_default=True, help="Questions of the table.")  # fmt: skip
@click.option("--world", "worlds", multiple=True,
              help="Only this world; several processes may share --out.")  # fmt: skip
@saying_options
def command(
    config: Path, out: Path, split: Literal["validation", "test"], worlds: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Teach an ability in English, carry it over by merging, compare MAEC with its rivals.

    All settings of each method are searched together, with Optuna, on validation questions of each
    world; the test split is asked with --split test only.
    """
    from dataclasses import asdict

    from lens.demo.transfer.config import read_study
    from lens.demo.transfer.study import study
    from lens.demo.transfer.summary import summarise, tables, write

    read = read_study(config)
    records = study(read, out, split=split, worlds=worlds or None)
    lines = summarise(records) if worlds else write(out, read, records, split=split)
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    click.echo(tables(lines))
