"""The result table in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from lens.evaluate.rows import AVERAGE, ResultRow
from lens.report.record import RunRecord
from lens.report.tables import METRIC_LABELS, cell, finding, language_name, main_table


def print_table(record: RunRecord, *, file: IO[str] | None = None) -> None:
    """Print the opening paragraph and the main table.

    Parameters
    ----------
    record : RunRecord
        A finished run.
    file : text file, optional
        Where to print; stdout by default. Colour only where it is a terminal.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = main_table(record)
    shown = Table(
        box=box.SIMPLE_HEAD, title=record.title, title_justify="left", pad_edge=False, padding=0
    )
    shown.add_column("System", no_wrap=True)
    for i, column in enumerate(table.columns):
        heading = [column.group, column.label, f"n = {column.n}" if column.n else ""]
        # never cut an interval: headings wrap instead, and all fits a terminal of 80 columns
        width = 1 + max(len(cells[i].interval) for _, cells in table.lines)
        shown.add_column("\n".join(filter(None, heading)), justify="right", min_width=width)
    for system, cells in table.lines:
        texts = ["\n".join(filter(None, (c.value, c.interval))) for c in cells]
        shown.add_row(system.label, *texts, style="bold" if system.name == record.main else None)
    console = Console(file=file, highlight=False, soft_wrap=False)
    console.print(shown)
    text = finding(record)
    if text:
        console.print(text)


def print_rows(rows: Iterable[ResultRow], *, title: str = "", file: IO[str] | None = None) -> None:
    """Print rows one per line: language, metric, value, interval and n."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name, side in (("Language", "left"), ("Metric", "left"), ("Value", "right"),
                       ("95 % interval", "right"), ("n", "right")):  # fmt: skip
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in rows:
        shown = cell(row, with_n=True)
        name = "Average" if row.language == AVERAGE else language_name(row.language)
        label = METRIC_LABELS.get(row.metric, row.metric)
        table.add_row(name, label, shown.value, shown.interval, shown.n)
    Console(file=file, highlight=False).print(table)
