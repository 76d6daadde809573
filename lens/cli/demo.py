"""``lens demo`` and ``lens demo export``: the embedded sample world."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli.options import Verb, command, print_json
from lens.utils.settings import option


class DemoCommand(Verb):
    """Options of ``lens demo``."""

    out: Path = option(Path("lens-demo"), "Folder for report.html, results.json and record.json.")
    full: bool = option(
        False, "More questions and a finer grid of strengths: the figures of the README."
    )
    limit: int | None = option(
        None, "Test questions per language; 200 by default, 500 with --full.", ge=1, le=1000
    )
    seed: int = option(0, "Seed of the draws.")
    second_act: bool = option(
        True, "Carry an ability from English to other languages by merging, too."
    )
    force: bool = option(False, "Replace --out whatever it holds.")


@command(DemoCommand)
def demo(settings: DemoCommand) -> None:
    """Probe, train and measure the sample world; print a table and write a report.

    The second act teaches an ability in English and carries it to Spanish and Swahili by merging
    weights (MAEC); its report is in OUT/merging. Needs no download and a few minutes on two CPU
    cores; --full takes about twice as long. An earlier demo in --out is replaced; anything else
    there is kept unless --force.
    """
    from lens.demo import ability, run
    from lens.report.console import print_table
    from lens.report.io import MERGING, is_run, write_run
    from lens.utils.files import new_folder, refuse_existing

    out, seed, full = settings.out, settings.seed, settings.full
    budget = run.FULL if full else run.QUICK
    limit = settings.limit or budget.test
    force = settings.force or is_run(out)
    refuse_existing(out, force=force)
    acts = {"": run.run(limit=limit, seed=seed, full=full)}
    if settings.second_act:
        acts[MERGING] = ability.run_ability(limit=min(limit, budget.ability), seed=seed, full=full)
    with new_folder(out, force=force) as folder:
        for name, record in acts.items():
            write_run(record, folder / name)
    if settings.as_json:
        rows = [row.to_dict() for record in acts.values() for row in record.rows]
        print_json({"rows": rows, "out": str(out)})
        return
    for name, record in acts.items():
        print_table(record)
        click.echo(f"\n{out / name / 'report.html'}")


class ExportCommand(Verb):
    """Options of ``lens demo export``."""

    out: Path = option(Path("lens-world"), "Folder to create.")
    models: Path | None = option(
        None, "Folder of models trained from another seed; the shipped models by default."
    )
    force: bool = option(False, "Replace --out.")


@command(ExportCommand)
def export(settings: ExportCommand) -> None:
    """Write models, prompts, answers, references and text of the sample world as plain files."""
    from lens.demo.export import export

    out = settings.out
    names = export(out, models=settings.models, force=settings.force)
    if settings.as_json:
        print_json({"out": str(out), "files": names})
    else:
        click.echo("\n".join(f"{out}/{name}" for name in names))
