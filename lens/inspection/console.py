"""An inspection in a terminal."""

from __future__ import annotations

import io
import math
from typing import IO, TYPE_CHECKING

from lens.inspection import telling
from lens.inspection.results import Inspection, SiteInspection

if TYPE_CHECKING:
    from rich.console import Console


def print_inspection(found: Inspection, *, file: IO[str] | None = None) -> None:
    """Print a table of the sites and what follows from it; colour only on terminals."""
    from rich.console import Console

    console = Console(file=file, highlight=False)
    _print(found, console)


def summary(found: Inspection) -> str:
    """Return what `print_inspection` prints, 100 columns wide."""
    from rich.console import Console

    out = io.StringIO()
    _print(found, Console(file=out, highlight=False, width=100))
    return out.getvalue()


def _print(found: Inspection, console: Console) -> None:
    from rich import box
    from rich.table import Table

    console.print(f"{telling.name_of_space(found)}, pivot {found.pivot}")
    counts = ", ".join(f"{code} {n}" for code, n in found.counts.items())
    console.print(f"rows: {counts}", markup=False)
    with_states = found.rows is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Site")
    if with_states:
        for column in telling.COLUMNS:
            table.add_column(column.label, justify="right")
    else:
        table.add_column("Rank", justify="right")
        table.add_column("Noise", justify="right")
        table.add_column("Singular values")
        table.add_column("Why this rank")
    for site in found.sites:
        table.add_row(site.site, *(_with_states(site) if with_states else _without(site)))
    console.print(table)
    for text in (telling.finding(found), telling.band_text(found)):
        if text:
            console.print(text, markup=False)
    for text in telling.readings_text(found):
        console.print(f"- {text}", markup=False)
    watch = telling.watched(found)
    if watch:
        console.print(
            f"States hardly differ between sentences (alignment says little): {'; '.join(watch)}",
            markup=False,
        )
    for text in found.missing.values():
        console.print(text, style="dim", markup=False)


def _with_states(site: SiteInspection) -> list[str]:
    """Cells of a line; intervals stand behind their value."""
    pairs = zip(telling.cells(site), telling.COLUMNS, strict=True)
    return [f"{value} ({below})" if below and column.below == "95 %" else value
            for (value, below), column in pairs]  # fmt: skip


def _without(site: SiteInspection) -> list[str]:
    """Cells of a line where there are no kept states."""
    values = " ".join(f"{value:.3g}" for value in site.singular_values[:5])
    noise = "–" if math.isnan(site.noise_share) else f"{site.noise_share:.0%}"
    return ["–" if site.rank is None else str(site.rank), noise, values, site.rank_reason]
