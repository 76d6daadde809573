"""The result table in a terminal."""

from __future__ import annotations

from typing import IO

from lens.report.record import RunRecord
from lens.report.tables import finding, main_table


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
    shown = Table(box=box.SIMPLE_HEAD, title=record.title, title_justify="left", pad_edge=False)
    shown.add_column("System", no_wrap=True)
    for column in table.columns:
        heading = [column.group, column.label, f"n = {column.n}" if column.n else ""]
        shown.add_column("\n".join(filter(None, heading)), justify="right")
    for system, cells in table.lines:
        texts = ["\n".join(filter(None, (c.value, c.interval))) for c in cells]
        shown.add_row(system.label, *texts, style="bold" if system.name == record.main else None)
    console = Console(file=file, highlight=False, soft_wrap=False)
    console.print(shown)
    text = finding(record)
    if text:
        console.print(text)
