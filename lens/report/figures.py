"""Figures of a run with matplotlib, and their SVG for a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any, cast

from lens.errors import MissingExtraError
from lens.evaluation.results import AVERAGE, ResultRow
from lens.report.record import GridCell, LossCurve, RunRecord
from lens.report.tables import METRIC_LABELS, language_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours by role; ``after`` and ``upper`` also differ in shape."""

    ink: str = "#1c1c1c"
    muted: str = "#767676"
    rule: str = "#d4d4d4"
    before: str = "#767676"
    after: str = "#0b5394"
    upper: str = "#b45f06"
    paper: str = "#ffffff"


SCREEN = Palette()
_STYLE: dict[str, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "svg.fonttype": "none",
}


def plot_languages(record: RunRecord, *, palette: Palette = SCREEN) -> list[Figure]:
    """Before, after and possible per language with intervals: one panel per metric."""
    metrics = ("fidelity", "accuracy_in_language")
    shown = [metric for metric in metrics if _has(record, record.main, metric)]
    return [_language_panel(record, metric, palette) for metric in shown]


def plot_site_spectra(record: RunRecord, *, palette: Palette = SCREEN) -> list[Figure]:
    """Singular values (log scale) and principal angles over the sites."""
    if not record.spectra:
        return []
    panels = [_site_panel(record, "singular_values", "Singular values (log scale)", palette)]
    if any(spectrum.angles for spectrum in record.spectra):
        panels.append(_site_panel(record, "angles", "Principal angles, degrees", palette))
    return panels


def plot_losses(record: RunRecord, *, palette: Palette = SCREEN) -> list[Figure]:
    """One small panel per loss, each with its own scale."""
    return plot_curves(record.losses, palette=palette)


def plot_curves(curves: Iterable[LossCurve], *, palette: Palette = SCREEN) -> list[Figure]:
    """One small panel per curve over optimizer steps, each with its own scale."""
    panels = []
    for curve in curves:
        with styled_axes(2.35, 1.6, palette) as (figure, ax):
            ax.plot(curve.steps, curve.values, color=palette.after, linewidth=1.1)
            ax.set_title(curve.name, color=palette.ink)
            ax.set_xlabel("step", color=palette.muted)
            ax.set_ylim(bottom=min(0.0, *_finite(curve.values)))
            ax.margins(x=0.02)
        panels.append(figure)
    return panels


def plot_grid(record: RunRecord, *, palette: Palette = SCREEN) -> list[Figure]:
    """Draw validation metrics over λ, one small panel per language; the chosen λ is marked."""
    by_language: dict[str, list[GridCell]] = {}
    for cell in record.grid:
        by_language.setdefault(cell.language, []).append(cell)
    ticks = sorted({cell.strength for cell in record.grid})
    return [_grid_panel(code, cells, ticks, palette) for code, cells in by_language.items()]


def plot_estimates(
    title: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    share: bool = True,
    palette: Palette | None = None,
) -> Figure:
    """Draw estimates with their intervals, one below the other.

    Parameters
    ----------
    title : str
    rows : sequence of (str, float, float, float)
        Name, value, and its interval from low to high.
    share : bool
        Values lie between 0 and 1; otherwise a line marks 0.
    palette : Palette, optional
        The page's own colours by default.

    Returns
    -------
    matplotlib.figure.Figure
    """
    palette = palette or PAGE
    with styled_axes(3.75, 0.62 + 0.26 * len(rows), palette) as (figure, ax):
        for place, (_, value, low, high) in enumerate(rows):
            ax.plot([low, high], [place, place], color=palette.after, linewidth=1.5)
            ax.plot([value], [place], color=palette.after, marker="o", markersize=4.5)
        ax.set_yticks(range(len(rows)), [row[0] for row in rows])
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.spines["left"].set_visible(False)
        if share:
            ax.set_xlim(-0.03, 1.03)
            ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])
        else:
            ax.axvline(0, color=palette.muted, linewidth=0.7, linestyle=(0, (4, 2)))
        ax.grid(axis="x", color=palette.rule, linewidth=0.4)
        ax.set_axisbelow(True)
        ax.set_title(title, color=palette.ink)
    return figure


@contextmanager
def styled_axes(width: float, height: float, palette: Palette) -> Iterator[tuple[Figure, Axes]]:
    """One styled axis of the given size in inches; the style ends with the block."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "drawing a figure") from None
    colours: dict[str, Any] = {
        "text.color": palette.ink,
        "axes.edgecolor": palette.muted,
        "axes.labelcolor": palette.muted,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
    }
    with rc_context(cast(Any, {**_STYLE, **colours})):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        ax = figure.add_subplot()
        ax.patch.set_alpha(0.0)
        yield figure, ax
        figure.canvas.draw()  # the layout is fixed while the style is in force


def _language_panel(record: RunRecord, metric: str, palette: Palette) -> Figure:
    codes = record.languages()
    order = [*codes, AVERAGE] if record.find(record.main, AVERAGE, metric) else codes
    with styled_axes(3.75, 0.62 + 0.3 * len(order), palette) as (figure, ax):
        for place, code in enumerate(order):
            old = record.find(record.baseline, code, metric)
            new = record.find(record.main, code, metric)
            if old and new:
                ax.plot([old.value, new.value], [place, place], color=palette.rule, zorder=1)
            _mark(ax, old, place - 0.17, "before", palette)
            _mark(ax, record.find(record.upper, code, metric), place + 0.17, "upper", palette)
            _mark(ax, new, place, "after", palette)
        for border in {int(record.pivot in codes), len(codes)} - {0, len(order)}:
            ax.axhline(border - 0.5, color=palette.rule, linewidth=0.6, zorder=0)
        names = ["Average" if code == AVERAGE else language_name(code) for code in order]
        ax.set_yticks(range(len(order)), names)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_xlim(-0.03, 1.03)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])
        ax.grid(axis="x", color=palette.rule, linewidth=0.4, zorder=0)
        ax.set_axisbelow(True)
        ax.spines["left"].set_visible(False)
        ax.set_title(METRIC_LABELS[metric], color=palette.ink)
    return figure


def _mark(ax: Axes, row: ResultRow | None, y: float, role: str, palette: Palette) -> None:
    """Draw one value with its interval: hollow circle, full circle or diamond by role."""
    if row is None:
        return
    colour = str(getattr(palette, role))
    if row.low is not None and row.high is not None:
        ax.plot([row.low, row.high], [y, y], color=colour, linewidth=1.5, zorder=2)
    ax.plot(
        [row.value],
        [y],
        marker="D" if role == "upper" else "o",
        markersize=3.6 if role == "upper" else 5,
        markerfacecolor=palette.paper if role == "before" else colour,
        markeredgecolor=colour,
        markeredgewidth=1.1,
        linestyle="none",
        zorder=3,
        clip_on=False,
    )


def _site_panel(record: RunRecord, part: str, title: str, palette: Palette) -> Figure:
    """Lines over sites, one per component; later components are fainter."""
    sites = [spectrum.site for spectrum in record.spectra]
    values = [list(getattr(spectrum, part)) for spectrum in record.spectra]
    width = max(map(len, values))
    with styled_axes(3.75, 2.2, palette) as (figure, ax):
        for k in range(width):
            xs = [x for x, row in enumerate(values) if k < len(row)]
            ys = [values[x][k] for x in xs]
            faint = 1 - 0.75 * k / max(1, width - 1)
            ax.plot(xs, ys, color=palette.after, alpha=faint, marker="o", markersize=2.6)
            ax.annotate(
                str(k + 1),
                (xs[-1], ys[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=palette.muted,
            )
        if part == "singular_values" and all(v > 0 for row in values for v in row):
            ax.set_yscale("log")
        elif part == "angles":
            ax.set_ylim(0, 90)
            ax.set_yticks([0, 30, 60, 90])
        site_ticks(ax, sites)
        ax.set_title(title, color=palette.ink)
    return figure


def site_ticks(ax: Axes, sites: Sequence[str], *, most: int = 12) -> None:
    """Label block outputs by number; at most about a dozen labels, the last one always."""
    step = max(1, -(-len(sites) // most))
    shown = [x for x in range(len(sites)) if x % step == 0 or x == len(sites) - 1]
    ax.set_xticks(shown, [sites[x].removeprefix("block.") for x in shown])
    ax.set_xlabel("block output")


def _grid_panel(
    code: str, cells: Sequence[GridCell], ticks: Sequence[float], palette: Palette
) -> Figure:
    roles = {"accuracy_in_language": "after", "accuracy_any": "upper", "fidelity": "before"}
    with styled_axes(2.35, 1.6, palette) as (figure, ax):
        for metric in dict.fromkeys(cell.metric for cell in cells):
            line = sorted((c for c in cells if c.metric == metric), key=lambda c: c.strength)
            colour = str(getattr(palette, roles.get(metric, "upper")))
            xs = [cell.strength for cell in line]
            if all(c.low is not None and c.high is not None for c in line):
                lows, highs = ([getattr(c, end) for c in line] for end in ("low", "high"))
                ax.fill_between(xs, lows, highs, color=colour, alpha=0.14, lw=0)
            hollow = metric == "fidelity"
            ax.plot(
                xs,
                [c.value for c in line],
                color=colour,
                marker="o",
                markersize=3,
                markerfacecolor=palette.paper if hollow else colour,
                linewidth=1,
            )
        for chosen in sorted({cell.strength for cell in cells if cell.chosen}):
            ax.axvline(chosen, color=palette.ink, linewidth=0.7, linestyle=(0, (4, 2)), zorder=0)
        ax.set_title(language_name(code), color=palette.ink)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_ylim(-0.03, 1.05)
        ax.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        ax.set_xlabel("λ")
    return figure


def _has(record: RunRecord, system: str, metric: str) -> bool:
    return any(row.system == system and row.metric == metric for row in record.rows)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if value == value] or [0.0]


# Colours that stand for the page's own; each is replaced by the CSS variable of its role.
PAGE = Palette(**{f.name: f"#0a0b{i:02x}" for i, f in enumerate(fields(Palette), 1)})


def inline_svg(figure: Figure, name: str, *, label: str) -> str:
    """Return the figure as an ``<svg>`` element.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Drawn with the palette :data:`PAGE`.
    name : str
        Prefix of every id inside, unique on the page.
    label : str
        What a screen reader says.

    Returns
    -------
    str
        Markup that needs nothing from outside; text stays text.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    empty = {key: None for key in ("Creator", "Date", "Format", "Type")}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for item in fields(PAGE):
        svg = svg.replace(getattr(PAGE, item.name), f"var(--{item.name})")
    # the browser's fonts, so that every script has glyphs; sizes stay as they were drawn
    svg = re.sub(r"(font: (?:\w+ )*[\d.]+px) [^;\"]+", r"\1 var(--sans)", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", svg)
    # height follows from the viewBox; the width is the natural one unless the column is narrower
    width = float(re.search(r'width="([\d.]+)pt"', svg).group(1))  # type: ignore[union-attr]
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    head = f'<svg role="img" aria-label="{label}" style="width:{width * 4 / 3:.0f}px"'
    return svg.replace("<svg", head, 1).strip()


def inline_panels(panels: Iterable[Figure], name: str) -> list[Any]:
    """Return figures as markup, each with its title for screen readers."""
    from markupsafe import Markup

    drawn = []
    for i, panel in enumerate(panels):
        label = escape(panel.axes[0].get_title(loc="left"), quote=True)
        drawn.append(Markup(inline_svg(panel, f"{name}{i}", label=label)))
    return drawn
