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
@click.option("--force", is_flag=True, help="Replace --out whatever it holds.")
@talk_options
def command(out: Path, limit: int, seed: int, force: bool, as_json: bool) -> None:
    """Probe, train and measure the sample world; print a table and write a report.

    Needs no download and a few minutes on two CPU cores. An earlier demo in --out is replaced;
    anything else there is kept unless --force.
    """
    from lens.io import new_folder, refuse_existing
    from lens.report import print_table, write_run
    from lens.report.files import is_run
    from lens.world.demo import run

    force = force or is_run(out)
    refuse_existing(out, force=force)
    record = run(limit=limit, seed=seed)
    with new_folder(out, force=force) as folder:
        write_run(record, folder)
    if as_json:
        print_json({"rows": [row.to_dict() for row in record.rows], "out": str(out)})
        return
    print_table(record)
    click.echo(f"\n{out / 'report.html'}")
