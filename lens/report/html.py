"""One self-contained HTML page of a run: no request leaves it, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from lens.errors import InputError, MissingExtraError
from lens.report import figures
from lens.report.figures import PAGE, inline_panels
from lens.report.record import RunRecord
from lens.report.tables import METRIC_LABELS, finding, language_name, language_table, main_table

_RIGHT_TO_LEFT = {"Arab", "Hebr", "Syrc", "Thaa", "Nkoo", "Adlm"}


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
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise MissingExtraError("jinja2", "report", "rendering a report") from None
    if not record.ordered_systems():
        raise InputError(
            f"the record has no rows of split '{record.split}'; expected at least one "
            f"(splits found: {sorted({row.split for row in record.rows}) or 'none'})"
        )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["language_name"] = language_name
    environment.filters["html_lang"] = lambda code: code.replace("_", "-")
    environment.filters["direction"] = direction
    environment.filters["flat"] = flat
    folder = files("lens.report") / "templates"
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    style = (folder / "report.css").read_text(encoding="utf-8")
    return template.render(record=record, style=style, **_content(record))


def _content(record: RunRecord) -> dict[str, Any]:
    measured = {row.metric for row in record.rows if row.split == record.split}
    labels = {system.name: system.label for system in record.ordered_systems()}
    return {
        "finding": finding(record),
        "main": main_table(record),
        "per_language": [
            (METRIC_LABELS[metric], language_table(record, metric))
            for metric in ("fidelity", "accuracy_in_language", "accuracy_any")
            if metric in measured
        ],
        "notes": [system for system in record.ordered_systems() if system.note],
        "roles": [
            (role, labels[name])
            for role, name in (
                ("before", record.baseline), ("after", record.main), ("upper", record.upper),
            )
            if name in labels
        ],
        "compared": " against ".join(
            f"“{labels.get(name, name)}”" for name in (record.main, record.baseline)
        ),
        "one_rank": len({(s.rank, s.rank_reason) for s in record.spectra}) == 1,
        "metric_labels": METRIC_LABELS,
        "grid_metrics": list(dict.fromkeys(cell.metric for cell in record.grid)),
        "languages_svg": inline_panels(figures.plot_languages(record, palette=PAGE), "languages"),
        "spectra_svg": inline_panels(figures.plot_spectra(record, palette=PAGE), "spectra"),
        "losses_svg": inline_panels(figures.plot_losses(record, palette=PAGE), "losses"),
        "grid_svg": inline_panels(figures.plot_grid(record, palette=PAGE), "grid"),
    }  # fmt: skip


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
        elif isinstance(value, list | tuple):
            pairs.append((name, ", ".join(map(str, value))))
        else:
            pairs.append((name, "–" if value is None else str(value)))
    return pairs
