"""An inspection as figures and one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens.analysis.results import Inspection, SiteInspection
from lens.report.figures import PAGE, SCREEN, Palette, inline_panels, site_ticks, styled_axes
from lens.report.html import fragment, page, rank_table
from lens.report.tables import Cell, Column, Table, TableRow, language_name
from lens.utils.files import new_folder

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NONE = "–"
INSPECTION = "inspection.json"


INSPECTION_COLUMNS = (
    Column("Rank", below="of L−1", meaning="directions worth keeping, chosen on held-out rows"),
    Column("p", below="shuffled", meaning="how often shuffled language labels vary as much"),
    Column(
        "Angle",
        below="95 %",
        meaning="between the fit and refits to resampled rows, the largest, degrees",
    ),
    Column(
        "Enough",
        below="rows",
        meaning="rows of each language from which that angle stays below the bound",
    ),
    Column(
        "MEXA",
        below="mean",
        meaning="sentences nearest to their own translation, mean over languages",
    ),
    Column(
        "Told apart",
        below="95 %",
        meaning="held-out states whose language the nearest mean names",
    ),
)


def inspection_cells(site: SiteInspection) -> list[Cell]:
    """Return the cells of `INSPECTION_COLUMNS` for one site; dashes for what was not measured."""
    if site.rank is None:
        return [Cell(NONE)] * len(INSPECTION_COLUMNS)
    spectrum, angles, found = site.spectrum, site.angles, site.separation
    measured = angles is not None and site.curve is not None
    return [
        Cell(str(site.rank), f"of {len(site.singular_values)}"),
        Cell(NONE if spectrum is None else probability(spectrum.p_value)),
        Cell(f"{angles.median:.1f}°", f"{angles.low:.1f}–{angles.high:.1f}")
        if angles is not None and measured
        else Cell(NONE),
        Cell(rows_text(site) if measured else NONE),
        Cell(share_text(site.mexa) if site.alignment else NONE),
        Cell(NONE)
        if found is None
        else Cell(share_text(found.accuracy), f"{share_text(found.low)}–{share_text(found.high)}"),
    ]


def overview(found: Inspection) -> Table:
    """One row for each site; ranks and their reasons alone where there are no states."""
    chosen = found.at().site if any(s.rank is not None for s in found.sites) else None
    if any(s.separation is not None for s in found.sites if s.rank is not None):
        columns: Sequence[Column] = INSPECTION_COLUMNS
        cells = [inspection_cells(site) for site in found.sites]
    else:
        columns = [Column("Rank"), Column("Noise"), Column("Why this rank", css="why")]
        cells = [
            [Cell(NONE if s.rank is None else str(s.rank)), Cell(noise(s)), Cell(s.rank_reason)]
            for s in found.sites
        ]
    rows = [
        TableRow(site.site, line, site.site == chosen)
        for site, line in zip(found.sites, cells, strict=True)
    ]
    return Table(columns, rows, "Site")


def noise(site: SiteInspection) -> str:
    """Share of the variance between the means that chance alone would give."""
    return NONE if math.isnan(site.noise_share) else f"{100 * site.noise_share:.0f} %"


def rows_text(site: SiteInspection) -> str:
    """Rows that are enough, or more than were tried."""
    if site.curve is None:
        return NONE
    if site.curve.enough is None:
        return f"> {site.curve.sizes[-1]:,}"
    fewest = site.curve.high[0] < site.curve.bound and site.curve.enough == site.curve.sizes[0]
    return f"≤ {site.curve.enough:,}" if fewest else f"{site.curve.enough:,}"


def probability(p: float) -> str:
    """Return a p-value with two digits that count."""
    return f"{p:.2g}" if p >= 0.001 else "< .001"


def share_text(value: float) -> str:
    """Two decimals, more where two would round to 1, which is left to 1 itself."""
    if math.isnan(value):
        return NONE
    if 0.995 <= value < 1:
        return f"{value:.3f}" if value < 0.9995 else f"{value:.4f}"
    return f"{value:.2f}"


def name_of_space(found: Inspection) -> str:
    """Return what was inspected, in a few words."""
    model = found.about.get("model", {})
    kind = str(model.get("model_type", ""))
    size = f"{model['num_hidden_layers']} blocks" if "num_hidden_layers" in model else ""
    inside = ", ".join(filter(None, (kind, size)))
    return f"{len(found.languages)} languages in a model" + (f" ({inside})" if inside else "")


def inspection_finding(found: Inspection) -> str:
    """One paragraph in plain words with the numbers."""
    fitted = [s for s in found.sites if s.rank is not None]
    if not fitted:
        return f"No site could be fitted: {found.sites[0].rank_reason}."
    said = [_directions(fitted)]
    seen = [s for s in fitted if s.angles is not None and s.separation is not None]
    if seen:
        said.append(_certain(found, seen))
        said.append(_apart(seen))
    aligned = [s for s in seen if s.alignment]
    if aligned:
        best = max(aligned, key=lambda s: s.mexa)
        null = sum(a.null_high for a in best.alignment) / len(best.alignment)
        said.append(
            f"Translations are nearest to one another at {best.site}, where "
            f"{share_text(best.mexa)} of {best.alignment[0].n} sentences find their own "
            f"(mean over languages; random pairings reach {share_text(null)})."
        )
    return " ".join(said)


def _directions(fitted: list[SiteInspection]) -> str:
    ranks = sorted({s.rank for s in fitted if s.rank is not None})
    most = len(fitted[0].singular_values)
    many = f"{most} possible direction{'s' if most > 1 else ''}"
    if len(ranks) == 1:
        return f"The languages differ along {ranks[0]} of {many} at every site."
    return f"The languages differ along {ranks[0]} to {ranks[-1]} of {many}, by site."


def _certain(found: Inspection, seen: list[SiteInspection]) -> str:
    angles = [s.angles.median for s in seen if s.angles is not None]
    curves = [s.curve for s in seen if s.curve is not None]
    bound = curves[0].bound
    enough = [c.enough for c in curves if c.enough is not None]
    text = (
        f"Drawn again from {found.rows:,} rows of each language, the subspace turns by "
        f"{min(angles):.1f} to {max(angles):.1f} degrees (median, by site); "
    )
    if len(enough) == len(curves):
        return text + f"{max(enough):,} rows keep it within {bound:g} degrees at every site."
    if not enough:
        return text + f"no number of rows that was tried keeps it within {bound:g} degrees."
    return text + (
        f"at {len(enough)} of {len(curves)} sites {max(enough):,} rows keep it within {bound:g} "
        "degrees, at the others more are needed than were tried."
    )


def _apart(seen: list[SiteInspection]) -> str:
    found = [s.separation for s in seen if s.separation is not None]
    least = min(found, key=lambda s: s.accuracy)
    most = max(found, key=lambda s: s.accuracy)
    if least.accuracy == most.accuracy:
        how = f"{share_text(least.accuracy)} of held-out states at every site"
    else:
        span = f"{share_text(least.accuracy)} to {share_text(most.accuracy)}"
        how = f"{span} of held-out states, by site"
    return f"The nearest mean names the language of {how} (chance {share_text(least.chance)})."


def band_text(found: Inspection) -> str:
    """Return what the crossing rule says."""
    if found.band is None:
        return ""
    if not found.band.sites:
        return f"No band: {found.band.reason}."
    first, last = found.band.sites[0], found.band.sites[-1]
    span = first if first == last else f"{first} to {last}"
    rule = "Band" if found.band.rule == "crossing" else "Scaled band, a weak hint"
    return f"{rule}: {span}; {found.band.reason}."


def collapsed_sites(found: Inspection) -> list[str]:
    """List sites, with languages, at which states hardly differ between sentences."""
    out = []
    for site in found.sites:
        low = [a for a in site.alignment if a.collapsed]
        if low:
            names = ", ".join(language_name(a.language) for a in low)
            out.append(f"{site.site}: {names}")
    return out


def disjoint_text(found: Inspection) -> str:
    """One sentence on fits to rows that are not parallel; empty where there are none."""
    pairs = [(s.disjoint, s.matched) for s in found.sites]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return ""
    apart, together = [a.median for a, _ in both], [b.median for _, b in both]
    return (
        f"Rows that are not parallel ({found.disjoint_rows} of each language, none shared) "
        f"turn the subspace by {min(apart):.0f} to {max(apart):.0f} degrees, as many parallel "
        f"rows by {min(together):.0f} to {max(together):.0f} (medians of 200 draws, by site)."
    )


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
        ax.plot(
            [np.mean([a.null_high for a in s.alignment]) for s in seen],
            color=palette.muted,
            ls=":",
            lw=1,
        )
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
            (
                "upper",
                [
                    (s.separation.low, s.separation.accuracy, s.separation.high)
                    for s in seen
                    if s.separation is not None
                ],
            )
        ]
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


def plot_inspection(found: Inspection, *, palette: Palette = SCREEN) -> dict[str, list[Figure]]:
    """Draw every figure there is data for, by section.

    Parameters
    ----------
    found : Inspection
        From `lens.inspect_space`.
    palette : Palette
        Colours by role.

    Returns
    -------
    dict of str to list of matplotlib.figure.Figure
        ``spectra``, ``certainty``, ``geometry`` and ``alignment``; a section without data is left
        out.
    """
    drawn = {
        "spectra": plot_spectra(found, palette=palette),
        "certainty": plot_certainty(found, palette=palette),
        "geometry": plot_geometry(found, palette=palette),
        "alignment": plot_alignment(found, palette=palette),
    }
    return {name: panels for name, panels in drawn.items() if panels}


def _bar(
    ax: Axes, x: float, low: float, middle: float, high: float, role: str, palette: Palette
) -> None:
    colour = str(getattr(palette, role))
    ax.plot([x, x], [low, high], color=colour, lw=1.5)
    ax.plot([x], [middle], color=colour, marker="o", markersize=4, ls="none")


def _label(ax: Axes, x: float, y: float, text: str, palette: Palette) -> None:
    ax.annotate(
        text,
        (x, y),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color=palette.muted,
    )


def _name_last(ax: Axes, x: float, y: float, text: str, palette: Palette) -> None:
    ax.annotate(
        text,
        (x, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color=palette.muted,
    )


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
    name = name_of_space(found)
    return page([(name, inspection_body(found))], title=f"Language space: {name}")


def save_inspection(found: Inspection, folder: str | Path, *, force: bool = False) -> Path:
    """Write ``report.html`` and ``inspection.json`` into a new folder.

    Parameters
    ----------
    found : Inspection
        From `lens.inspect_space`.
    folder : str or Path
        Appears complete or not at all.
    force : bool
        Replace it.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        If the folder exists already.
    MissingExtraError
        If jinja2 or matplotlib is not installed.
    """
    content = render_inspection(found)  # before anything is written
    with new_folder(folder, force=force) as unfinished:
        (unfinished / "report.html").write_text(content, encoding="utf-8")
        numbers = json.dumps(found.to_dict(), indent=1, ensure_ascii=False, default=str)
        (unfinished / INSPECTION).write_text(numbers + "\n", encoding="utf-8")
    return Path(folder) / "report.html"


def inspection_body(found: Inspection, prefix: str = "") -> Markup:
    """Render an inspection as the content of a page.

    Parameters
    ----------
    found : Inspection
    prefix : str
        Of every id in the drawings, so that several runs can stand on one page.
    """
    fitted = [site for site in found.sites if site.rank is not None]
    detail = found.at() if fitted else None
    seen = [site for site in fitted if site.separation is not None]
    drawn = {
        "spectra": plot_spectra(found, palette=PAGE),
        "certainty": plot_certainty(found, palette=PAGE),
        "tree": _tree(detail),
        "alignment": plot_alignment(found, palette=PAGE),
    }
    return fragment(
        "inspection.html.j2",
        found=found,
        title=name_of_space(found),
        finding=inspection_finding(found),
        band=band_text(found),
        collapsed=bool(collapsed_sites(found)),
        overview=overview(found),
        meanings=[(column.label, column.meaning) for column in INSPECTION_COLUMNS],
        fitted=fitted,
        detail=detail,
        with_states=bool(seen),
        aligned=any(site.alignment for site in seen),
        one_reason=len({site.rank_reason for site in fitted}) == 1,
        ranks=rank_table([(s.site, s.rank, s.rank_reason) for s in fitted], "Why"),
        angles=_angle_rows(detail),
        angles_even=math.degrees(math.acos(-1 / max(1, len(found.languages) - 1))),
        mexa=_mexa_rows(found, seen),
        mexa_heads=[site.site.removeprefix("block.") for site in seen if site.alignment],
        disjoint=_disjoint_table(seen),
        **{f"{key}_svg": inline_panels(panels, prefix + key) for key, panels in drawn.items()},
    )


def _disjoint_table(seen: Sequence[SiteInspection]) -> Table | None:
    """Angles of fits to rows that are not parallel, and to as many parallel ones."""
    rows = [
        TableRow(
            site.site,
            [
                Cell(f"{a.median:.1f}°", f"{a.low:.1f}–{a.high:.1f}")
                for a in (site.disjoint, site.matched)
                if a is not None
            ],
        )
        for site in seen
        if site.disjoint is not None
    ]
    return Table([Column("Not parallel"), Column("Parallel")], rows, "Site") if rows else None


def _tree(detail: SiteInspection | None) -> list[Figure]:
    drawable = detail is not None and detail.geometry is not None
    return [plot_tree(detail, palette=PAGE)] if detail is not None and drawable else []


HeatRow = tuple[str, list[tuple[str, float, str]]]
"""Heading, and for each cell its text, its depth of colour from 0 to 1, and its tooltip."""


def _angle_rows(
    detail: SiteInspection | None,
) -> tuple[list[str], list[HeatRow], list[float]] | None:
    """Angles between languages at the site in detail, in the order of the tree."""
    if detail is None or detail.geometry is None:
        return None
    shape = detail.geometry
    heads = [shape.languages[i].partition("_")[0] for i in shape.order]
    rows: list[HeatRow] = []
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


def _mexa_rows(found: Inspection, seen: list[SiteInspection]) -> list[HeatRow]:
    """Scores by language and site."""
    rows: list[HeatRow] = []
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
