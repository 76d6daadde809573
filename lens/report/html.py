"""Self-contained HTML pages: no request leaves them, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lens.errors import InputError, MissingExtraError
from lens.evaluation.accuracy import SystemComparison
from lens.evaluation.results import AVERAGE
from lens.report import figures
from lens.report.figures import PAGE, inline_panels
from lens.report.record import RunRecord
from lens.report.tables import (
    METRIC_LABELS,
    Cell,
    Column,
    Table,
    TableRow,
    finding,
    language_name,
    language_table,
    main_table,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_RIGHT_TO_LEFT = {"Arab", "Hebr", "Syrc", "Thaa", "Nkoo", "Adlm"}
_LONG = 240  # characters of a fact, such as a bit mask, that a page does not show in full


def render(record: RunRecord) -> str:
    """Render a run as one HTML page.

    Parameters
    ----------
    record : RunRecord
        A finished run.

    Returns
    -------
    str
        A page that works offline, follows the reader's light or dark scheme, and prints.

    Raises
    ------
    InputError
        If the record has no rows of the split it reports.
    MissingExtraError
        If jinja2 or matplotlib is not installed.
    """
    return page([(record.title, run_body(record))])


def page(
    bodies: Sequence[tuple[str, Markup]], *, title: str | None = None, wide: bool = False
) -> str:
    """Return a whole page.

    Parameters
    ----------
    bodies : sequence of (str, Markup)
        Title and content of each run, from `fragment`; several get a list of contents.
    title : str, optional
        Of the page; the first body's by default.
    wide : bool
        Use the width of the window, for wide tables.

    Returns
    -------
    str
    """
    style = (files("lens.report") / "templates" / "report.css").read_text(encoding="utf-8")
    template = _environment().get_template("page.html.j2")
    return template.render(bodies=bodies, title=title or bodies[0][0], style=style, wide=wide)


def fragment(template: str, **content: Any) -> Markup:
    """Render the content of one run from a template of this package."""
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(**content))


@cache
def _environment() -> Environment:
    """Templates of this package; what they are given is escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingExtraError("jinja2", "report", "rendering a report") from None
    environment = Environment(
        loader=PackageLoader("lens.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["language_name"] = language_name
    environment.filters["html_lang"] = lambda code: code.replace("_", "-")
    environment.filters["direction"] = direction
    environment.filters["flat"] = flat
    return environment


def run_body(record: RunRecord, prefix: str = "") -> Markup:
    """Render a run record as the content of a page.

    Parameters
    ----------
    record : RunRecord
    prefix : str
        Of every id in the drawings, so that several runs can stand on one page.

    Raises
    ------
    InputError
        If the record has no rows of the split it reports.
    """
    systems = record.ordered_systems()
    if not systems:
        raise InputError(
            f"the record has no rows of split '{record.split}'; expected at least one "
            f"(splits found: {sorted({row.split for row in record.rows}) or 'none'})"
        )
    measured = {row.metric for row in record.rows if row.split == record.split}
    labels = {system.name: system.label for system in systems}
    shown = (("before", record.baseline), ("after", record.main), ("upper", record.upper))
    ranked = [s for s in record.spectra if s.rank]
    drawings = {
        "languages": figures.plot_languages,
        "spectra": figures.plot_site_spectra,
        "losses": figures.plot_losses,
        "grid": figures.plot_grid,
    }
    return fragment(
        "run.html.j2",
        record=record,
        finding=finding(record),
        main=main_table(record),
        per_language=[
            (METRIC_LABELS[metric], language_table(record, metric))
            for metric in ("fidelity", "accuracy_in_language", "accuracy_any")
            if metric in measured
        ],
        changes=list(_changes(record.comparisons)),
        system_notes=[(system.label, system.note) for system in systems if system.note],
        roles=[(role, labels[name]) for role, name in shown if name in labels],
        compared=" against ".join(
            f"“{labels.get(name, name)}”" for name in (record.main, record.baseline)
        ),
        one_rank=len({(s.rank, s.rank_reason) for s in record.spectra}) == 1,
        ranked=ranked,
        ranks=rank_table([(s.site, s.rank, s.rank_reason or "–") for s in ranked], "Reason"),
        metric_labels=METRIC_LABELS,
        grid_metrics=list(dict.fromkeys(cell.metric for cell in record.grid)),
        **{
            f"{name}_svg": inline_panels(draw(record, palette=PAGE), prefix + name)
            for name, draw in drawings.items()
        },
    )


def rank_table(rows: Sequence[tuple[str, int | None, str]], why: str) -> Table:
    """Ranks by site with their reasons."""
    columns = [Column("Rank"), Column(why, css="text")]
    lines = [TableRow(site, [Cell(str(rank)), Cell(reason)]) for site, rank, reason in rows]
    return Table(columns, lines, "Site")


def _changes(comparisons: Sequence[SystemComparison]) -> Iterator[tuple[str, Table]]:
    """For each metric the table of paired changes by language."""
    columns = [Column(label) for label in ("Difference", "Won", "Lost", "p", "n")]
    for metric in sorted({c.metric for c in comparisons}):
        rows = []
        for c in comparisons:
            if c.metric != metric:
                continue
            value, low, high = (
                f"{x:+.3f}".replace("-", "−") for x in (c.difference, c.low, c.high)
            )
            p = "< .001" if c.p_value < 0.001 else f"{c.p_value:.3f}"
            cells = [Cell(value, f"{low} to {high}"), *map(Cell, (f"{c.gained}", f"{c.lost}", p))]
            name = "Average" if c.language == AVERAGE else language_name(c.language)
            rows.append(TableRow(name, [*cells, Cell(f"{c.n}")]))
        yield METRIC_LABELS.get(metric, metric), Table(columns, rows, "Language")


def direction(code: str) -> str:
    """Return the writing direction of a FLORES code: ``rtl`` or ``ltr``."""
    return "rtl" if code.partition("_")[2] in _RIGHT_TO_LEFT else "ltr"


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List nested facts as (key, text) pairs, keys joined by a middle dot."""
    pairs: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name} · ")
        elif isinstance(value, list | tuple) and any(isinstance(x, Mapping) for x in value):
            pairs += flat({str(i): x for i, x in enumerate(value, 1)}, f"{name} · ")
        elif isinstance(value, list | tuple):
            pairs.append((name, _short(", ".join(map(str, value)))))
        else:
            pairs.append((name, "–" if value is None else _short(str(value))))
    return pairs


def _short(text: str) -> str:
    return text if len(text) <= 4 * _LONG else f"{text[:_LONG]}… ({len(text):,} characters)"
