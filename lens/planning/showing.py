"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lens.planning.checks import said
from lens.planning.plans import Effort, Plan
from lens.planning.rates import Rates

if TYPE_CHECKING:
    from rich.table import Table


def tables(plan: Plan) -> Iterator[Table | str]:
    """Yield what a terminal shows, from the model to the problems."""
    if plan.model is not None:
        yield _model(plan)
    if plan.memory:
        free = "" if plan.memory_free is None else f" ({said(plan.memory_free)} free here)"
        yield f"\nMemory: {said(plan.peak)} at the most{free}"
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
    table.add_row("together", *(said(phase.total) for phase in plan.memory))
    return table


def _disk(plan: Plan) -> Table:
    table = _table("", "needed", "free", "folder")
    for use in plan.disk:
        kept = use.what if use.stays else f"{use.what} (temporary)"
        table.add_row(kept, said(use.nbytes), said(use.free), use.where)
    return table


def _work(plan: Plan) -> Table:
    rates = plan.rates
    table = _table("", "operations", *([] if rates is None else ["a second", "time"]))
    for effort in plan.efforts:
        work, speed = _pace(effort, rates)
        cells = [effort.name, work]
        if rates is not None and effort.seconds is not None:
            cells += [speed, duration(effort.seconds)]
        table.add_row(*cells)
    return table


def _pace(effort: Effort, rates: Rates | None) -> tuple[str, str]:
    """Operations or bytes of an effort, and how many of them a second does."""
    if effort.name == "open":
        return "", ""
    if effort.name == "read":
        speed = None if rates is None else rates.reading
        return said(effort.traffic), "" if speed is None else said(speed)
    frozen = effort.name in ("cache", "probe")
    rate = None if rates is None else rates.forward if frozen else rates.training
    return f"{effort.flops:.3g}", "" if rate is None else f"{rate:.3g}"


def _title_of_work(plan: Plan) -> str:
    if plan.rates is None or plan.time is None:
        return "\nWork"
    speed = plan.rows_per_second
    rows = "" if speed is None else f", {speed:.3g} rows a second once the weights are read"
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
