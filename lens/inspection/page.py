"""An inspection as one self-contained HTML page, in the look of the other reports."""

from __future__ import annotations

import json
import math
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.errors import MissingExtraError
from lens.inspection import figures, telling
from lens.inspection.results import Inspection, SiteInspection
from lens.io import new_folder
from lens.report.page import flat
from lens.report.svg import PAGE, inline_panels
from lens.report.tables import language_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
table.heat { width: auto; }
table.heat td { padding: 0 .3rem; min-width: 2.1rem; height: 1.5rem; text-align: center;
  border: 1px solid var(--paper); font-size: .75rem; vertical-align: middle; }
table.heat th { font-weight: 400; padding: .1rem .35rem; font-size: .75rem; }
table.heat th[scope="row"] { max-width: none; min-width: 0; white-space: nowrap; }
table.heat thead th { text-align: center; }
.missing { border-left: 3px solid var(--rule); padding-left: .9rem; font: .875rem/1.45 var(--sans);
  color: var(--muted); overflow-wrap: anywhere; max-width: 46rem; }
.lead { font-style: italic; }
td.why { white-space: normal; text-align: left; min-width: 8rem; }
th.narrow small { white-space: normal; }
summary { font: .875rem/1.45 var(--sans); cursor: pointer; margin-top: .6rem; }
"""


def render_inspection(found: Inspection) -> str:
    """Render an inspection as one HTML page.

    Parameters
    ----------
    found : Inspection
        From `lens.inspect_space`.

    Returns
    -------
    str
        A page that works offline, follows the reader's light or dark scheme, and prints.

    Raises
    ------
    MissingExtraError
        If jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise MissingExtraError("jinja2", "report", "rendering a report") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["language_name"] = language_name
    environment.filters["flat"] = flat
    environment.filters["percent"] = lambda value: 100 * value
    folder = files("lens.report") / "templates"
    template = environment.from_string((folder / "inspection.html.j2").read_text(encoding="utf-8"))
    style = (folder / "report.css").read_text(encoding="utf-8") + _STYLE
    return template.render(found=found, style=style, told=telling, **_content(found))


def save(found: Inspection, folder: Path, *, force: bool = False) -> Path:
    """Write the page and the numbers; see `Inspection.save`."""
    page = render_inspection(found)  # before anything is written
    with new_folder(folder, force=force) as unfinished:
        (unfinished / "report.html").write_text(page, encoding="utf-8")
        numbers = json.dumps(found.to_dict(), indent=1, ensure_ascii=False, default=str)
        (unfinished / "inspection.json").write_text(numbers + "\n", encoding="utf-8")
    return folder / "report.html"


def table_html(found: Inspection) -> str:
    """Return the overview as HTML for notebooks."""
    heads = "".join(f"<th>{escape(c.label)}</th>" for c in telling.COLUMNS)
    lines = []
    for site in found.sites:
        cells = "".join(
            f"<td>{escape(value)}{f' ({escape(below)})' if below else ''}</td>"
            for value, below in telling.cells(site)
        )
        lines.append(f"<tr><th>{escape(site.site)}</th>{cells}</tr>")
    told = [telling.finding(found), telling.band_text(found), *found.missing.values()]
    said = "".join(f"<p>{escape(text)}</p>" for text in told if text)
    return (
        f"<p><b>{escape(telling.name_of_space(found))}</b>, pivot {escape(found.pivot)}</p>"
        f"<table><thead><tr><th>site</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
        f"</table>{said}"
    )


def _content(found: Inspection) -> dict[str, Any]:
    fitted = [site for site in found.sites if site.rank is not None]
    detail = found.at() if fitted else None
    seen = [site for site in fitted if site.separation is not None]
    one_reason = len({site.rank_reason for site in fitted}) == 1
    return {
        "fitted": fitted,
        "detail": detail,
        "with_states": bool(seen),
        "aligned": any(site.alignment for site in seen),
        "one_reason": one_reason,
        "spectra_svg": inline_panels(figures.plot_spectra(found, palette=PAGE), "spectra"),
        "certainty_svg": inline_panels(figures.plot_certainty(found, palette=PAGE), "certainty"),
        "tree_svg": inline_panels(_tree(detail), "tree"),
        "alignment_svg": inline_panels(figures.plot_alignment(found, palette=PAGE), "alignment"),
        "readings_svg": inline_panels(figures.plot_readings(found, palette=PAGE), "readings"),
        "angles": _angle_rows(detail),
        "angles_even": math.degrees(math.acos(-1 / max(1, len(found.languages) - 1))),
        "mexa": _mexa_rows(found, seen),
        "mexa_heads": [site.site.removeprefix("block.") for site in seen if site.alignment],
        "disjoint": [site for site in seen if site.disjoint is not None],
    }


def _tree(detail: SiteInspection | None) -> list[Figure]:
    if detail is None or detail.geometry is None:
        return []
    return [figures.plot_tree(detail, palette=PAGE)]


Row = tuple[str, list[tuple[str, float, str]]]
"""Heading, and for each cell its text, its depth of colour from 0 to 1, and what it tells."""


def _angle_rows(detail: SiteInspection | None) -> tuple[list[str], list[Row], list[float]] | None:
    """Angles between languages at the site in detail, in the order of the tree."""
    if detail is None or detail.geometry is None:
        return None
    shape = detail.geometry
    heads = [shape.languages[i].partition("_")[0] for i in shape.order]
    rows: list[Row] = []
    angles = shape.angles
    for i in shape.order:
        name = language_name(shape.languages[i])
        line = []
        for j in shape.order:
            angle = float(angles[i, j])
            other = language_name(shape.languages[j])
            text = "" if i == j else f"{angle:.0f}"
            line.append((text, max(0.0, 1 - angle / 120), f"{name} and {other}: {angle:.1f}°"))
        rows.append((name, line))
    return heads, rows, [float(shape.norms[i]) for i in shape.order]


def _mexa_rows(found: Inspection, seen: list[SiteInspection]) -> list[Row]:
    """Scores by language and site."""
    rows: list[Row] = []
    for place, code in enumerate(code for code in found.languages if code != found.pivot):
        line = []
        for site in seen:
            if not site.alignment:
                continue
            a = site.alignment[place]
            text = (
                f"{language_name(code)} at {site.site}: {a.score:.3f} ({a.low:.3f}–{a.high:.3f}, "
                f"n = {a.n}); random pairings up to {a.null_high:.3f}, p = {a.p_value:.2g}; "
                f"variance between sentences {a.variance:.3g}, pivot's {a.pivot_variance:.3g}"
            )
            line.append((f"{a.score:.2f}" + ("!" if a.collapsed else ""), a.score, text))
        rows.append((language_name(code), line))
    return rows if any(line for _, line in rows) else []
