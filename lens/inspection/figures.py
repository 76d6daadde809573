"""Plots of an inspection as small matplotlib panels; colours come from a palette."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lens.inspection.results import Inspection, SiteInspection
from lens.report.figures import SCREEN, Palette, site_ticks, styled_axes
from lens.report.tables import language_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _HIGH = 3.75, 2.3  # inches of a panel
_SHOWN = 5  # singular values drawn over the sites


def plot_spectra(
    found: Inspection, site: str | int | None = None, *, palette: Palette = SCREEN
) -> list[Figure]:
    """Singular values over the sites, and at one site beside shuffled labels."""
    fitted = [s for s in found.sites if s.rank is not None]
    if not fitted:
        return []
    with styled_axes(_WIDE, _HIGH, palette) as (over, ax):
        for k in range(min(_SHOWN, len(fitted[0].singular_values))):
            ys = [float(s.singular_values[k]) for s in fitted]
            faint = 1 - 0.75 * k / _SHOWN
            ax.plot(ys, color=palette.after, alpha=faint, marker="o", markersize=2.6)
            _name_last(ax, len(ys) - 1, ys[-1], str(k + 1), palette)
        ax.set_yscale("log")
        site_ticks(ax, [s.site for s in fitted])
        ax.set_title("Singular values (log scale)", color=palette.ink)
    chosen = found.at(site)
    with styled_axes(_WIDE, _HIGH, palette) as (one, ax):
        values = chosen.singular_values
        if chosen.spectrum is not None:
            values = chosen.spectrum.singular_values
            xs = range(1, len(values) + 1)
            ax.fill_between(xs, 0, chosen.spectrum.null_high, color=palette.muted, alpha=0.25, lw=0)
            _label(ax, len(values), float(chosen.spectrum.null_high[-1]), "shuffled", palette)
        ax.plot(range(1, len(values) + 1), values, color=palette.after, marker="o", markersize=3)
        if chosen.rank is not None:
            ax.axvline(chosen.rank + 0.5, color=palette.ink, lw=0.7, ls=(0, (4, 2)))
        ax.set_ylim(bottom=0)
        _whole_ticks(ax, len(values))
        ax.set_xlabel("direction")
        ax.set_title(f"Singular values at {chosen.site}", color=palette.ink)
    return [over, one]


def plot_certainty(
    found: Inspection, site: str | int | None = None, *, palette: Palette = SCREEN
) -> list[Figure]:
    """Angles of bootstrap refits over the sites, and against the number of rows at one."""
    seen = [s for s in found.sites if s.angles is not None]
    if not seen:
        return []
    with styled_axes(_WIDE, _HIGH, palette) as (over, ax):
        for x, s in enumerate(seen):
            if s.angles is not None:
                _bar(ax, x, s.angles.low, s.angles.median, s.angles.high, "after", palette)
        ax.set_ylim(0, 90)
        ax.set_yticks([0, 15, 30, 45, 60, 90])
        ax.axhline(45, color=palette.rule, lw=0.7)
        site_ticks(ax, [s.site for s in seen])
        ax.set_title("Largest angle of refits to the fit, degrees", color=palette.ink)
    curve = found.at(site).curve
    if curve is None:
        return [over]
    with styled_axes(_WIDE, _HIGH, palette) as (one, ax):
        ax.fill_between(curve.sizes, curve.low, curve.high, color=palette.after, alpha=0.15, lw=0)
        ax.plot(curve.sizes, curve.median, color=palette.after, marker="o", markersize=3)
        ax.axhline(curve.bound, color=palette.upper, lw=0.9, ls=(0, (4, 2)))
        ax.set_xscale("log", base=2)
        ax.minorticks_off()
        ax.set_xticks(curve.sizes, [f"{n:,}" for n in curve.sizes])
        ax.set_ylim(0, 90)
        ax.set_yticks([0, 15, 30, 45, 60, 90])
        ax.set_xlabel("rows of each language")
        ax.set_title(f"The same against rows, {found.at(site).site}", color=palette.ink)
    return [over, one]


def plot_geometry(
    found: Inspection, site: str | int | None = None, *, palette: Palette = SCREEN
) -> list[Figure]:
    """Angles between languages at one site, and their tree."""
    if site is None and all(s.geometry is None or s.rank is None for s in found.sites):
        return []
    chosen = found.at(site)
    return [_heat(chosen, palette), plot_tree(chosen, palette=palette)] if chosen.geometry else []


def _heat(chosen: SiteInspection, palette: Palette) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap

    shape = chosen.geometry
    if shape is None:
        raise ValueError("no geometry")
    order = list(shape.order)
    names = [shape.languages[i].partition("_")[0] for i in order]
    size = max(2.6, 0.6 + 0.17 * len(order))
    with styled_axes(size + 0.7, size, palette) as (figure, ax):
        shades = LinearSegmentedColormap.from_list("angle", [palette.after, palette.paper])
        drawn = ax.imshow(shape.angles[np.ix_(order, order)], cmap=shades, vmin=0, vmax=120)
        ax.set_xticks(range(len(order)), names, rotation=90)
        ax.set_yticks(range(len(order)), names)
        ax.tick_params(length=0)
        ax.set_title(f"Angles between languages, {chosen.site}", color=palette.ink)
        bar = figure.colorbar(drawn, ax=ax, shrink=0.7)
        bar.set_label("degrees", color=palette.muted)
    return figure


def plot_tree(chosen: SiteInspection, *, palette: Palette = SCREEN) -> Figure:
    """Average linkage of the distances between means, languages from top to bottom."""
    shape = chosen.geometry
    if shape is None:
        raise ValueError("no geometry")
    L = len(shape.languages)
    place: dict[int, tuple[float, float]] = {
        language: (0.0, float(y)) for y, language in enumerate(shape.order)
    }
    with styled_axes(_WIDE, max(1.6, 0.45 + 0.17 * L), palette) as (figure, ax):
        for step, (a, b, height) in enumerate(shape.merges):
            (xa, ya), (xb, yb) = place[a], place[b]
            ax.plot([xa, height, height, xb], [ya, ya, yb, yb], color=palette.after, lw=1)
            place[L + step] = (height, (ya + yb) / 2)
        ax.set_yticks(range(L), [language_name(shape.languages[i]) for i in shape.order])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_ylim(L - 0.5, -0.5)
        ax.set_xlim(left=0)
        ax.set_xlabel("distance between means")
        ax.set_title(f"Who is near whom, {chosen.site}", color=palette.ink)
    return figure


def plot_alignment(found: Inspection, *, palette: Palette = SCREEN) -> list[Figure]:
    """MEXA of each language over the sites, and its mean beside separability with the band."""
    seen = [s for s in found.sites if s.separation is not None]
    panels = []
    if any(s.alignment for s in seen):
        panels.append(_mexa_panel([s for s in seen if s.alignment], palette))
    if seen:
        panels.append(_both_panel(found, seen, palette))
    return panels


def _mexa_panel(seen: Sequence[SiteInspection], palette: Palette) -> Figure:
    codes = [a.language for a in seen[0].alignment]
    with styled_axes(_WIDE, _HIGH, palette) as (figure, ax):
        ends: list[tuple[float, str]] = []
        for place, code in enumerate(codes):
            ys = [s.alignment[place].score for s in seen]
            ax.plot(ys, color=palette.after, alpha=0.55, lw=1)
            ends.append((ys[-1], code.partition("_")[0]))
        ax.plot([np.mean([a.null_high for a in s.alignment]) for s in seen],
                color=palette.muted, ls=":", lw=1)  # fmt: skip
        for y, text in _spread_labels(ends):
            _name_last(ax, len(seen) - 1, y, text, palette)
        _unit(ax)
        site_ticks(ax, [s.site for s in seen])
        ax.set_title("Alignment (MEXA) of each language", color=palette.ink)
    return figure


def _both_panel(found: Inspection, seen: Sequence[SiteInspection], palette: Palette) -> Figure:
    with styled_axes(_WIDE, _HIGH, palette) as (figure, ax):
        names = [s.site for s in seen]
        if found.band is not None and found.band.sites:
            run = [x for x, name in enumerate(names) if name in found.band.sites]
            ax.axvspan(run[0] - 0.5, run[-1] + 0.5, color=palette.muted, alpha=0.15, lw=0)
        lines: list[tuple[str, list[tuple[float, float, float]]]] = [
            ("upper", [(s.separation.low, s.separation.accuracy, s.separation.high)
                       for s in seen if s.separation is not None])
        ]  # fmt: skip
        if all(s.alignment for s in seen):
            lines.append(("after", [_mean_of(s) for s in seen]))
        for role, values in lines:
            colour = str(getattr(palette, role))
            low, middle, high = zip(*values, strict=True)
            ax.fill_between(range(len(seen)), low, high, color=colour, alpha=0.15, lw=0)
            marker = "D" if role == "upper" else "o"
            ax.plot(middle, color=colour, marker=marker, markersize=2.8)
        _unit(ax)
        site_ticks(ax, names)
        ax.set_title("Separability and mean alignment", color=palette.ink)
    return figure


def _mean_of(site: SiteInspection) -> tuple[float, float, float]:
    low, middle, high = (
        float(np.mean([getattr(a, part) for a in site.alignment]))
        for part in ("low", "score", "high")
    )
    return low, middle, high


def plot_readings(found: Inspection, *, palette: Palette = SCREEN) -> list[Figure]:
    """Largest angle between subspaces read in two ways, over the sites: one panel a reading."""
    panels = []
    yardstick = found.readings[0] if found.readings else None
    for reading in found.readings[1:]:
        with styled_axes(2.35, 1.7, palette) as (figure, ax):
            if yardstick is not None:
                ax.plot(yardstick.largest, color=palette.before, ls=":", lw=1.1)
            ax.plot(reading.largest, color=palette.after, marker="o", markersize=2.6)
            ax.set_ylim(-2, 92)
            ax.set_yticks([0, 45, 90])
            site_ticks(ax, list(reading.sites), most=5)
            ax.set_title(reading.name, color=palette.ink)
        panels.append(figure)
    return panels


def _bar(
    ax: Axes, x: float, low: float, middle: float, high: float, role: str, palette: Palette
) -> None:
    colour = str(getattr(palette, role))
    ax.plot([x, x], [low, high], color=colour, lw=1.5)
    ax.plot([x], [middle], color=colour, marker="o", markersize=4, ls="none")


def _label(ax: Axes, x: float, y: float, text: str, palette: Palette) -> None:
    ax.annotate(text, (x, y), xytext=(0, 4), textcoords="offset points", ha="right",
                fontsize=7, color=palette.muted)  # fmt: skip


def _name_last(ax: Axes, x: float, y: float, text: str, palette: Palette) -> None:
    ax.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center",
                fontsize=7, color=palette.muted)  # fmt: skip


def _spread_labels(
    ends: Sequence[tuple[float, str]], gap: float = 0.065
) -> list[tuple[float, str]]:
    """Move labels apart, from the lowest up; none where one would stand far from its line."""
    out: list[tuple[float, str]] = []
    furthest = 0.0
    for y, text in sorted(ends):
        place = max(y, out[-1][0] + gap) if out else y
        furthest = max(furthest, place - y)
        out.append((place, text))
    return out if furthest < 2.5 * gap and out[-1][0] < 1.05 else []


def _unit(ax: Any) -> None:
    ax.set_ylim(-0.03, 1.05)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])


def _whole_ticks(ax: Axes, n: int) -> None:
    step = max(1, -(-n // 8))
    ax.set_xticks(list(range(1, n + 1, step)))
