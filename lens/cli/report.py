"""``lens report``: render a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import print_json, talk_options


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path),
              help="The page; RUN/report.html by default. An older page is replaced.")  # fmt: skip
@talk_options
def command(run: Path, out: Path | None, as_json: bool) -> None:
    """Render the report of RUN, a run folder or its record.json, as one HTML page."""
    from lens.report.html import render
    from lens.report.io import read_run
    from lens.utils.files import write_text

    folder = run if run.is_dir() else run.parent
    target = out or folder / "report.html"
    write_text(target, render(read_run(run)))
    if as_json:
        print_json({"out": str(target)})
    else:
        click.echo(str(target))
