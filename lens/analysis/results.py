"""Results of an inspection as plain data; `lens.report` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from html import escape
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from lens.analysis.geometry import LanguageGeometry
from lens.analysis.layer_band import LayerBand
from lens.arrays import Float64
from lens.errors import InputError

COLLAPSED = 0.1  # of the pivot's variance between sentences: below it alignment says little


@dataclass(frozen=True, slots=True)
class SiteSpectrum:
    """Singular values of the centred means at one site, and under shuffled language labels.

    Attributes
    ----------
    singular_values : numpy.ndarray (L-1,)
        Of the fit, descending.
    null_high : numpy.ndarray (L-1,)
        97.5 % quantile under shuffled labels.
    p_values : numpy.ndarray (L-1,)
        Of each component.
    p_value : float
        Of the variance between languages.
    n_permutations : int
        Shuffles.
    """

    singular_values: Float64
    null_high: Float64
    p_values: Float64
    p_value: float
    n_permutations: int


@dataclass(frozen=True, slots=True)
class Angles:
    """Largest principal angle between the fit and its refits to resampled rows, degrees.

    Attributes
    ----------
    median, low, high : float
        Of the refits; 95 % lie from low to high.
    stable_share : float
        Share of the refits below 45 degrees.
    n_resamples : int
        Refits.
    each : tuple of float
        Median of every principal angle, ascending; the last is ``median``.
    """

    median: float
    low: float
    high: float
    stable_share: float
    n_resamples: int
    each: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """The same angle for refits to fewer or more rows, degrees; see `Angles`.

    Attributes
    ----------
    sizes : tuple of int
        Rows of each language.
    median, low, high : tuple of float
        Of the angle.
    bound : float
        Angle that is small enough.
    enough : int or None
        Rows from which 97.5 % of the refits stay below it, between two sizes by a straight line in
        logarithms; None where the largest size does not.
    """

    sizes: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    bound: float
    enough: int | None


@dataclass(frozen=True, slots=True)
class Alignment:
    """MEXA of one language with the pivot at one site (arXiv:2410.05873).

    Attributes
    ----------
    language : str
        Not the pivot.
    score, low, high : float
        Share of sentences nearest to their own translation both ways, and its Wilson interval.
    null_high : float
        97.5 % quantile under random pairings.
    p_value : float
        Under random pairings.
    variance, pivot_variance : float
        Between sentences, mean over coordinates.
    n : int
        Sentences.
    """

    language: str
    score: float
    low: float
    high: float
    null_high: float
    p_value: float
    variance: float
    pivot_variance: float
    n: int

    @property
    def collapsed(self) -> bool:
        """Whether sentences of one of the two hardly differ, so that the score says little."""
        less, more = sorted((self.variance, self.pivot_variance))
        return less < COLLAPSED * more


@dataclass(frozen=True, slots=True)
class Separation:
    """Held-out accuracy of naming a state's language by the nearest mean.

    Attributes
    ----------
    accuracy, low, high : float
        Share that was right, and its Wilson interval.
    n : int
        Held-out states of all languages.
    chance : float
        1/L.
    mistaken : tuple of (str, str, int)
        Languages most often taken for another: language, taken for, how many; at most five.
    """

    accuracy: float
    low: float
    high: float
    n: int
    chance: float
    mistaken: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class SiteInspection:
    """One site. What needs kept states is None, or empty, without them.

    Attributes
    ----------
    site : str
        Name.
    rank : int or None
        Advised; None where the means do not allow a fit.
    rank_reason : str
        Why.
    singular_values : numpy.ndarray (L-1,)
        Of the space's centred means; empty without a fit.
    noise_share : float
        Share of their variance that chance alone would give means of so many rows, at most 1; an
        upper bound where rows are parallel. NaN where a language has one row.
    geometry : LanguageGeometry or None
        Of the space's means.
    spectrum, angles, curve, separation
        See there; of the rows that were measured.
    disjoint, matched : Angles or None
        Fits to so few rows that languages need not share any, and to as many parallel ones.
    alignment : tuple of Alignment
        One a language other than the pivot.
    """

    site: str
    rank: int | None
    rank_reason: str
    singular_values: Float64
    noise_share: float
    geometry: LanguageGeometry | None
    spectrum: SiteSpectrum | None = None
    angles: Angles | None = None
    curve: Curve | None = None
    disjoint: Angles | None = None
    matched: Angles | None = None
    alignment: tuple[Alignment, ...] = ()
    separation: Separation | None = None

    @property
    def mexa(self) -> float:
        """Mean score over languages, NaN without any."""
        return float(np.mean([a.score for a in self.alignment])) if self.alignment else float("nan")


@dataclass(frozen=True, slots=True)
class Inspection:
    """All of a language space; made by `lens.inspect_space`.

    Attributes
    ----------
    languages : tuple of str
        Canonical codes.
    pivot : str
        Central language.
    counts : dict
        Rows of each language in the space.
    sites : tuple of SiteInspection
        In order.
    rows : int or None
        Rows of each language that resampling, alignment and separability measured.
    disjoint_rows : int or None
        Rows of each language in `SiteInspection.disjoint`.
    band : LayerBand or None
        By the crossing rule.
    missing : dict
        Section to the command that would fill it.
    about : dict
        Where the space comes from and how it was measured.
    """

    languages: tuple[str, ...]
    pivot: str
    counts: dict[str, int]
    sites: tuple[SiteInspection, ...]
    rows: int | None = None
    disjoint_rows: int | None = None
    band: LayerBand | None = None
    missing: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def at(self, site: str | int | None = None) -> SiteInspection:
        """Return a site by name or block number; without one, that which figures show in detail.

        That is the block output at which translations are aligned best, or, where alignment does
        not vary beyond its intervals, the middle one.
        """
        from lens.models.layers import resolve_site

        if site is not None:
            name = resolve_site(site, [found.site for found in self.sites])
            return next(found for found in self.sites if found.site == name)
        from lens.models.layers import FINAL

        fitted = [found for found in self.sites if found.rank is not None]
        fitted = [found for found in fitted if found.site != FINAL] or fitted
        if not fitted:
            raise InputError(
                f"no site could be fitted: {self.sites[0].rank_reason}; nothing can be shown"
            )
        aligned = [found for found in fitted if found.alignment]
        if aligned:
            best, least = (pick(aligned, key=lambda found: found.mexa) for pick in (max, min))
            low = np.mean([a.low for a in best.alignment])
            if low > np.mean([a.high for a in least.alignment]):
                return best
        return fitted[len(fitted) // 2]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; ``sites`` by name."""
        out: dict[str, Any] = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        return out | {"sites": {site["site"]: site for site in out["sites"]}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "the data") -> Inspection:
        """Read back what `to_dict` wrote.

        Raises
        ------
        InputError
            If a field is missing or malformed.
        """
        try:
            values = dict(data) | {"sites": list(data["sites"].values())}
            found: Inspection = _built(cls, values)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                f"{source} is no inspection ({error}); expected inspection.json as "
                "'lens inspect --out' writes it"
            ) from None
        return found

    def __repr__(self) -> str:
        """Name languages, sites, and what there was to look at."""
        return (
            f"Inspection(languages={list(self.languages)}, pivot={self.pivot!r}, "
            f"sites={len(self.sites)}, rows={self.rows})"
        )

    def _repr_html_(self) -> str:
        """Short table of the sites; `lens.report` draws figures and writes the full page."""
        heads = "".join(
            f"<th>{escape(name)}</th>" for name in ("site", *_OVERVIEW, "why this rank")
        )
        lines = []
        for site in self.sites:
            cells = ["–" if x is None or x != x else f"{x:.3g}" for x in _overview(site)]
            texts = "".join(f"<td>{escape(cell)}</td>" for cell in (*cells, site.rank_reason))
            lines.append(f"<tr><th>{escape(site.site)}</th>{texts}</tr>")
        notes = "".join(f"<p>{escape(text)}</p>" for text in self.missing.values())
        return (
            f"<p><b>{len(self.languages)} languages</b>, pivot {escape(self.pivot)}</p>"
            f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>{notes}"
        )


_OVERVIEW = ("rank", "p, shuffled", "angle, degrees", "rows enough", "MEXA", "told apart")


def _overview(site: SiteInspection) -> tuple[float | None, ...]:
    """Numbers of a notebook's table; what was not measured is None or NaN."""
    return (
        site.rank,
        None if site.spectrum is None else site.spectrum.p_value,
        None if site.angles is None else site.angles.median,
        None if site.curve is None else site.curve.enough,
        site.mexa,
        None if site.separation is None else site.separation.accuracy,
    )


def plain(value: Any) -> Any:
    """Turn results inside results, arrays and tuples into what JSON knows; NaN becomes None."""
    if isinstance(value, LayerBand | LanguageGeometry):
        return plain(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)} | (
            {"collapsed": value.collapsed} if isinstance(value, Alignment) else {}
        )
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _built(kind: Any, value: Any) -> Any:
    """Turn JSON back into a value of a type; null stands for NaN where a number is expected."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: _built(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if origin is UnionType:
        return None if value is None else _built(inner[0], value)
    if origin is np.ndarray:
        return np.array(value, dtype=np.float64)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(_built(k, item) for k, item in zip(kinds, value, strict=True))
    if origin is dict:
        return {key: _built(inner[1], item) for key, item in value.items()}
    if kind is float:
        return float("nan") if value is None else float(value)
    if kind in (int, str) and not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
