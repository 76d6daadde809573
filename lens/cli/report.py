"""``lens report``: show finished runs of any kind."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli.options import Verb, command, print_json
from lens.utils.settings import option


class ReportCommand(Verb):
    """Options of ``lens report``."""

    run: tuple[Path, ...] = option(
        ..., "Folders of runs, or the JSON of lens eval --out.", argument=True
    )
    out: Path | None = option(
        None,
        "The page; an older one is replaced. By default report.html in RUN, or beside it where RUN "
        "is a model. Several runs need it.",
    )


@command(ReportCommand)
def report(settings: ReportCommand) -> None:
    """Show finished runs: tables here, and one HTML page that works offline.

    RUN is what lens train, ablate, inspect, eval, merge, maec run or demo wrote.
    """
    from lens.report.runs import page_of, read_reports, write_reports

    reports = [report for path in settings.run for report in read_reports(path)]
    target = write_reports(reports, page_of(settings.run, reports, settings.out))
    if settings.as_json:
        runs = [{"kind": report.kind, "title": report.title} for report in reports]
        print_json({"out": str(target), "runs": runs})
        return
    for report in reports:
        report.show(None)
    click.echo(str(target))
