"""Tables in a terminal: results, inspections, plans."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from lens.analysis.results import Inspection, SiteInspection
from lens.evaluation.results import AVERAGE, ResultRow
from lens.planning.plan import Plan
from lens.planning.resources import CostEstimate, Rates
from lens.report import inspection
from lens.report import tables as report_tables
from lens.report.record import RunRecord
from lens.report.tables import (
    METRIC_LABELS,
    N_BESIDE,
    cell,
    finding,
    language_name,
    main_table,
)
from lens.utils.files import said

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_table(record: RunRecord, *, file: IO[str] | None = None) -> None:
    """Print the main table and the opening paragraph of a run.

    Parameters
    ----------
    record : RunRecord
        A finished run.
    file : text file, optional
        Where to print; stdout by default. Colour only where it is a terminal.
    """
    console = console_for(file)
    console.print(stacked_table(main_table(record), title=record.title))
    text = finding(record)
    if text:
        console.print(text)


def print_rows(rows: Iterable[ResultRow], *, title: str = "", file: IO[str] | None = None) -> None:
    """Print rows one per line: language, metric, value, interval and n."""
    heads = ("Language", "Metric", "Value", "95 % interval", "n")
    table = rich_table(*heads, title=title, left=2)
    for row in rows:
        shown = cell(row, with_n=True)
        name = "Average" if row.language == AVERAGE else language_name(row.language)
        label = METRIC_LABELS.get(row.metric, row.metric)
        table.add_row(name, label, shown.value, shown.interval, shown.n)
    console_for(file).print(table)


def print_inspection(found: Inspection, *, file: IO[str] | None = None) -> None:
    """Print a table of the sites and what follows from it; colour only on terminals."""
    _print_inspection(found, console_for(file))


def inspection_summary(found: Inspection) -> str:
    """Return what `print_inspection` prints, 100 columns wide."""
    out = io.StringIO()
    _print_inspection(found, console_for(out, width=100))
    return out.getvalue()


def stacked_table(shown: report_tables.Table, *, title: str = "") -> Table:
    """Lay out a table for 80 columns: intervals below their values, headings wrap instead."""
    table = rich_table(title=title, padding=0)
    table.add_column(shown.stub, no_wrap=True)
    for i, column in enumerate(shown.columns):
        shared = "" if column.below == N_BESIDE else column.below
        heading = "\n".join(filter(None, (column.group, column.label, shared)))
        width = 1 + max((len(row.cells[i].interval) for row in shown.rows), default=0)
        side = "left" if column.css else "right"
        table.add_column(heading, justify=side, min_width=width)  # type: ignore[arg-type]
    for row in shown.rows:
        texts = ["\n".join(filter(None, (c.value, c.interval))) for c in row.cells]
        table.add_row(row.label, *texts, style="bold" if row.strong else None)
    return table


def fitting(shown: report_tables.Table, width: int) -> Iterator[report_tables.Table]:
    """Split a table into some that fit a terminal of this many columns, as nearly as they can."""
    stub = max((len(row.label) for row in shown.rows), default=0) + 1
    parts: list[list[int]] = [[]]
    used = stub
    for i, column in enumerate(shown.columns):
        words = [word for text in (column.label, column.below) for word in text.split()]
        words += [
            text for row in shown.rows for text in (row.cells[i].interval, row.cells[i].value)
        ]
        needed = 1 + max(map(len, words), default=0)
        if parts[-1] and used + needed > width:
            parts.append([])
            used = stub
        parts[-1].append(i)
        used += needed
    for part in parts:
        rows = [replace(row, cells=[row.cells[i] for i in part]) for row in shown.rows]
        yield replace(shown, columns=[shown.columns[i] for i in part], rows=rows)


def console_for(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Return a console on a file, stdout by default; colour only where it is a terminal."""
    from rich.console import Console

    return Console(file=file, highlight=False, soft_wrap=False, width=width)


def rich_table(*columns: str, title: str = "", left: int = 1, padding: int | None = None) -> Table:
    """Return an empty table; the first ``left`` columns are aligned left, the others right."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1) if padding is None else padding,
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    return table


def _print_inspection(found: Inspection, console: Console) -> None:
    console.print(f"{inspection.name_of_space(found)}, pivot {found.pivot}")
    counts = ", ".join(f"{code} {n}" for code, n in found.counts.items())
    console.print(f"rows: {counts}", markup=False)
    if found.rows is not None:
        table = rich_table("Site", *(column.label for column in inspection.INSPECTION_COLUMNS))
    else:
        table = rich_table("Site", "Rank", "Noise")
        table.add_column("Singular values")
        table.add_column("Why this rank")
    for site in found.sites:
        cells = _without_states(site) if found.rows is None else _with_states(site)
        table.add_row(site.site, *cells)
    console.print(table)
    findings = (inspection.inspection_finding, inspection.band_text, inspection.disjoint_text)
    for text in (say(found) for say in findings):
        if text:
            console.print(text, markup=False)
    collapsed = inspection.collapsed_sites(found)
    if collapsed:
        listed = "; ".join(collapsed)
        console.print(
            f"States hardly differ between sentences (alignment says little): {listed}",
            markup=False,
        )
    for text in found.missing.values():
        console.print(text, style="dim", markup=False)


def _with_states(site: SiteInspection) -> list[str]:
    """Cells of a row; intervals stand behind their value."""
    pairs = zip(inspection.inspection_cells(site), inspection.INSPECTION_COLUMNS, strict=True)
    return [
        f"{cell.value} ({cell.interval})"
        if cell.interval and column.below == "95 %"
        else cell.value
        for cell, column in pairs
    ]


def _without_states(site: SiteInspection) -> list[str]:
    """Cells of a row where there are no stored states."""
    values = " ".join(f"{value:.3g}" for value in site.singular_values[:5])
    noise = "–" if math.isnan(site.noise_share) else f"{site.noise_share:.0%}"
    return ["–" if site.rank is None else str(site.rank), noise, values, site.rank_reason]


def tables(plan: Plan) -> Iterator[Table | str]:
    """Yield what a terminal shows, from the model to the problems."""
    if plan.model is not None:
        yield _model(plan)
    if plan.memory:
        free = "" if plan.memory_free is None else f" ({said(plan.memory_free)} free here)"
        yield f"\nMemory: at most {said(plan.peak)}{free}"
        yield _memory(plan)
        yield "\nDisk"
        yield _disk(plan)
        yield _title_of_work(plan)
        yield _work(plan)
        yield ""
    for note in plan.notes:
        yield f"note: {note}"
    for problem in plan.problems:
        yield f"{problem.level}: {problem.about}: {problem.text}"
    if not plan.problems:
        yield "No problem was found."


def _model(plan: Plan) -> str:
    model, rows = plan.model, plan.rows or {}
    if model is None:
        return ""
    lines = [
        f"{model.architecture}, {model.dtype}, {_count(model.parameters)} parameters in "
        f"{model.blocks} blocks of {_count(model.per_block)} (from the {model.source})"
    ]
    if plan.job == "train":
        blocks = ", ".join(map(str, model.layers))
        lines.append(f"trains {_count(model.trained)} of them in blocks {blocks}")
    if rows and plan.job == "probe":
        size, tokens = rows["largest_batch"]
        lines.append(
            f"{rows['rows']} rows in {len(rows['languages'])} languages, {rows['tokens']:,} "
            f"tokens, up to {rows['longest']} a row; {len(rows['sites'])} sites"
            f"{', one block at a time' if rows['layer_by_layer'] else ''}; {rows['batches']} "
            f"batches, the largest {size} rows of {tokens} tokens"
        )
    elif rows:
        lines.append(
            f"{rows['prompts']} prompts in {len(rows['languages'])} languages, "
            f"{rows['tokens']:,} tokens, up to {rows['longest']} a prompt; "
            f"{rows['steps']} steps of {rows['batch_size']} prompts"
        )
    return "\n".join(lines)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _memory(plan: Plan) -> Table:
    table = _table("", *(phase.name for phase in plan.memory))
    parts = list(dict.fromkeys(part for phase in plan.memory for part in phase.parts))
    for part in parts:
        cells = [phase.parts.get(part) for phase in plan.memory]
        table.add_row(part, *("" if cell is None else said(cell) for cell in cells))
    table.add_row("total", *(said(phase.total) for phase in plan.memory))
    return table


def _disk(plan: Plan) -> Table:
    table = _table("", "needed", "free", "folder")
    for use in plan.disk:
        name = use.what if use.stays else f"{use.what} (temporary)"
        table.add_row(name, said(use.nbytes), said(use.free), use.where)
    return table


def _work(plan: Plan) -> Table:
    rates = plan.rates
    table = _table("", "FLOPs", *([] if rates is None else ["per second", "time"]))
    for cost in plan.costs:
        work, speed = _pace(cost, rates)
        cells = [cost.name, work]
        if rates is not None and cost.seconds is not None:
            cells += [speed, duration(cost.seconds)]
        table.add_row(*cells)
    return table


def _pace(cost: CostEstimate, rates: Rates | None) -> tuple[str, str]:
    """FLOPs or bytes of a part of a job, and its rate per second."""
    if cost.name == "open":
        return "", ""
    if cost.name == "read":
        speed = None if rates is None else rates.reading
        return said(cost.traffic), "" if speed is None else said(int(speed))
    frozen = cost.name in ("cache", "probe")
    rate = None if rates is None else rates.forward if frozen else rates.training
    return f"{cost.flops:.3g}", "" if rate is None else f"{rate:.3g}"


def _title_of_work(plan: Plan) -> str:
    if plan.rates is None or plan.time is None:
        return "\nWork"
    speed = plan.rows_per_second
    rows = "" if speed is None else f", {speed:.3g} rows per second once the weights are read"
    return f"\nTime: about {duration(plan.time)}{rows}, an estimate from {plan.rates.about}"


def duration(seconds: float) -> str:
    """Write a time as a person would."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def _count(number: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:,}"
