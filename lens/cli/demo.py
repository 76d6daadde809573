"""``lens demo``: the whole road on the embedded sample world."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import print_json, talk_options


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="lens-demo", show_default=True,
              help="Folder for report.html, results.json and record.json.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 1000), default=500, show_default=True,
              help="Test questions per language.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--second-act/--no-second-act", "second", default=True, show_default=True,
              help="Carry an ability from English to other languages by merging, too.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace --out whatever it holds.")
@talk_options
def command(
    out: Path, limit: int, seed: int, second: bool, force: bool, as_json: bool
) -> None:  # fmt: skip
    """Probe, train and measure the sample world; print a table and write a report.

    The second act teaches an ability in English and carries it to Spanish and Swahili by merging
    weights (MAEC); its report is in OUT/merging. Needs no download and a few minutes on two CPU
    cores. An earlier demo in --out is replaced; anything else there is kept unless --force.
    """
    from lens.demo import ability, run
    from lens.report.console import print_table
    from lens.report.io import MERGING, is_run, write_run
    from lens.utils.files import new_folder, refuse_existing

    force = force or is_run(out)
    refuse_existing(out, force=force)
    acts = {"": run.run(limit=limit, seed=seed)}
    if second:
        acts[MERGING] = ability.run_ability(limit=min(limit, ability.LIMIT), seed=seed)
    with new_folder(out, force=force) as folder:
        for name, record in acts.items():
            write_run(record, folder / name)
    if as_json:
        rows = [row.to_dict() for record in acts.values() for row in record.rows]
        print_json({"rows": rows, "out": str(out)})
        return
    for name, record in acts.items():
        print_table(record)
        click.echo(f"\n{out / name / 'report.html'}")
