"""``lens report``: render a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli.options import Verb, command, print_json
from lens.utils.settings import option


class ReportCommand(Verb):
    """Options of ``lens report``."""

    run: Path = option(..., "Run folder, or its record.json.", argument=True)
    out: Path | None = option(
        None, "The page; RUN/report.html by default. An older page is replaced."
    )


@command(ReportCommand)
def report(settings: ReportCommand) -> None:
    """Render the report of RUN, a run folder or its record.json, as one HTML page."""
    from lens.report.html import render
    from lens.report.io import read_run
    from lens.utils.files import write_text

    run = settings.run
    target = settings.out or (run if run.is_dir() else run.parent) / "report.html"
    write_text(target, render(read_run(run)))
    print_json({"out": str(target)}) if settings.as_json else click.echo(str(target))
