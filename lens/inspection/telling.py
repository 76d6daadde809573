"""An inspection in words and cells; shared by the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lens.inspection.results import Inspection, SiteInspection
from lens.report.tables import language_name

NONE = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the overview: heading, the line under it, and what it means."""

    label: str
    below: str
    meaning: str


COLUMNS = (
    Column("Rank", "of L−1", "directions worth keeping, chosen on held-out rows"),
    Column("p", "shuffled", "how often shuffled language labels vary as much"),
    Column("Angle", "95 %", "between the fit and refits to resampled rows, the largest, degrees"),
    Column("Enough", "rows", "rows of each language from which that angle stays below the bound"),
    Column("MEXA", "mean", "sentences nearest to their own translation, mean over languages"),
    Column("Told apart", "95 %", "held-out states whose language the nearest mean names"),
)


def cells(site: SiteInspection) -> list[tuple[str, str]]:
    """Value and smaller text of each column of `COLUMNS`; the share of noise without states."""
    if site.rank is None:
        return [(NONE, "")] * len(COLUMNS)
    L = len(site.singular_values)
    row = [(str(site.rank), f"of {L}")]
    row.append((NONE if site.spectrum is None else probability(site.spectrum.p_value), ""))
    if site.angles is None or site.curve is None:
        row += [(NONE, "")] * 2
    else:
        span = f"{site.angles.low:.1f}–{site.angles.high:.1f}"
        row.append((f"{site.angles.median:.1f}°", span))
        row.append((rows_text(site), ""))
    row.append((share(site.mexa), "") if site.alignment else (NONE, ""))
    if site.separation is None:
        row.append((NONE, ""))
    else:
        found = site.separation
        row.append((share(found.accuracy), f"{share(found.low)}–{share(found.high)}"))
    return row


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


def share(value: float) -> str:
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


def finding(found: Inspection) -> str:
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
            f"Translations are nearest to one another at {best.site}, where {share(best.mexa)} of "
            f"{best.alignment[0].n} sentences find their own (mean over languages; random pairings "
            f"reach {share(null)})."
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
        how = f"{share(least.accuracy)} of held-out states at every site"
    else:
        how = f"{share(least.accuracy)} to {share(most.accuracy)} of held-out states, by site"
    return f"The nearest mean names the language of {how} (chance {share(least.chance)})."


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


def from_to(values: Sequence[float], unit: str) -> str:
    """Smallest to largest of whole numbers, once where they are the same."""
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def watched(found: Inspection) -> list[str]:
    """List where the variance guard speaks up."""
    out = []
    for site in found.sites:
        low = [a for a in site.alignment if a.collapsed]
        if low:
            names = ", ".join(language_name(a.language) for a in low)
            out.append(f"{site.site}: {names}")
    return out


def readings_text(found: Inspection) -> list[str]:
    """One sentence a reading, with the range of its angles and what is kept."""
    out = []
    for reading in found.readings:
        kept = from_to([100 * share for share in reading.kept], " %")
        out.append(
            f"{reading.name} against {reading.against} ({reading.note}): "
            f"{from_to(reading.largest, ' degrees')}; of the variance between languages as the "
            f"other reads it {kept} is kept."
        )
    pairs = [(s.disjoint, s.matched) for s in found.sites]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if both:
        apart, together = [a.median for a, _ in both], [b.median for _, b in both]
        out.append(
            f"Rows that are not parallel ({found.disjoint_rows} of each language, none shared) "
            f"turn the subspace by {min(apart):.0f} to {max(apart):.0f} degrees, as many parallel "
            f"rows by {min(together):.0f} to {max(together):.0f} (medians of 200 draws, by site)."
        )
    return out
