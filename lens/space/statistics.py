"""Statistics of a language space: counts, means and variances per site and language, and fits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lens.data.languages import canonical
from lens.errors import InputError, ShapeError
from lens.models.layers import block_index, resolve_site
from lens.pooling import StreamingMoments
from lens.space.importers import Float64, as_states
from lens.space.provenance import Provenance, SpaceShard, combined_data

if TYPE_CHECKING:
    from lens.pooling import Moments
    from lens.subspace import SubspaceResult

# Site to language to statistics.
MomentsTable: TypeAlias = dict[str, dict[str, StreamingMoments]]


def check_table(table: MomentsTable, pivot: str) -> None:
    """Refuse a table without sites, two languages or the pivot, or of uneven languages."""
    if not table:
        raise InputError("a space needs at least one site")
    languages = list(next(iter(table.values())))
    if any(list(found) != languages for found in table.values()):
        raise InputError("every site of a space must have the same languages, in one order")
    listed = ", ".join(languages) or "none"
    if len(languages) < 2:
        raise InputError(
            f"a space needs at least two languages; found: {listed}. "
            "Language directions are differences between languages: add the pivot"
        )
    if pivot not in languages:
        raise InputError(f"the pivot {pivot} is not among the languages: {listed}")


def from_states(
    states: Mapping[str, Mapping[str, Any]], about: Provenance, *, row_offset: int = 0
) -> tuple[MomentsTable, Provenance]:
    """Compute the moments of pooled states by site and language, under canonical codes.

    The record gets their rows (with hashes of the states) and spellings where it names none.
    """
    table: MomentsTable = {}
    typed_as: dict[str, str] = {}
    digests: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for site, languages in states.items():
        table[site] = {}
        for typed, block in languages.items():
            values = as_states(block, f"states of {typed} at {site}")
            code = canonical(typed)
            if code in table[site]:
                raise InputError(f"duplicate language {code} (as {typed!r}) at {site}; keep one")
            _same_shape(values, table[site], counts.get(code), f"states of {typed} at {site}")
            table[site][code] = StreamingMoments(values.shape[1])
            table[site][code].update(values, row_offset)
            counts[code] = len(values)
            typed_as.setdefault(code, typed)
            digest = digests.setdefault(code, hashlib.sha256())
            digest.update(f"{site}{values.shape}".encode())
            digest.update(values.tobytes())
    shards = {c: [SpaceShard(row_offset, counts[c], d.hexdigest())] for c, d in digests.items()}
    return table, replace(about, typed=about.typed or typed_as, data=about.data or shards)


def _same_shape(
    values: Float64, others: Mapping[str, StreamingMoments], rows: int | None, name: str
) -> None:
    """Refuse another width than other languages have, or other rows than at other sites."""
    width = next(iter(others.values())).d if others else values.shape[1]
    if values.shape[1] != width:
        raise ShapeError(f"{name}: width {values.shape[1]}, expected {width} as before")
    if rows not in (None, len(values)):
        raise ShapeError(f"{name}: {len(values)} rows, expected {rows} as at the other sites")


def combine(
    ours: MomentsTable, theirs: MomentsTable, about: tuple[Provenance, Provenance], *, shared: str
) -> tuple[MomentsTable, Provenance]:
    """Join two tables with the same sites, and their records.

    A language in both must have different rows where ``shared`` is ``"merge"``, which are added,
    and the same rows where it is ``"same"``, which are taken once.
    """
    mine, other = about
    data = combined_data(mine, other, shared=shared)
    table: MomentsTable = {}
    for site, languages in ours.items():
        table[site] = dict(languages)
        for code, found in theirs[site].items():
            if code in languages and shared == "merge":
                table[site][code] = _merged(languages[code], found)
            else:
                table[site].setdefault(code, found)
    truncated = {**other.truncated, **mine.truncated}
    if shared == "merge":
        for code in mine.truncated.keys() & other.truncated.keys():
            truncated[code] = mine.truncated[code] + other.truncated[code]
    joint = replace(
        mine,
        data=data,
        typed={**other.typed, **mine.typed},
        prompts_sha256={**other.prompts_sha256, **mine.prompts_sha256},
        truncated=truncated,
        parallel=mine.parallel and other.parallel,
        ranks={},  # chosen on fewer rows or languages
    )
    return table, joint


def restrict(
    table: MomentsTable, about: Provenance, languages: list[str]
) -> tuple[MomentsTable, Provenance]:
    """Keep some languages of a table and its record."""

    def keep(entries: dict[str, Any]) -> dict[str, Any]:
        return {code: entries[code] for code in languages if code in entries}

    record = replace(
        about,
        typed=keep(about.typed),
        data=keep(about.data),
        truncated=keep(about.truncated),
        prompts_sha256=keep(about.prompts_sha256),
        ranks={},
    )
    return {site: keep(found) for site, found in table.items()}, record


def _merged(ours: StreamingMoments, theirs: StreamingMoments) -> StreamingMoments:
    """Merge into a copy: a space is never changed."""
    copy = StreamingMoments.from_arrays(ours.to_arrays())
    copy.merge(theirs)
    return copy


Agnostic: TypeAlias = Literal["mean", "complement"]
Rank: TypeAlias = int | Literal["auto", "full"]


class LanguageStatistics:
    """Statistics of pooled states per site and language, and the subspaces they give.

    Parameters
    ----------
    moments : mapping
        Site to language to `lens.pooling.StreamingMoments`; the same languages at every site.
    about : Provenance
        Pivot language and where the states come from.

    Raises
    ------
    InputError
        When there are fewer than two languages, the pivot is not among them, or the sites do not
        have the same languages.
    """

    __slots__ = ("_about", "_moments", "_results")

    def __init__(
        self, moments: Mapping[str, Mapping[str, StreamingMoments]], about: Provenance
    ) -> None:
        self._moments: MomentsTable = {site: dict(found) for site, found in moments.items()}
        self._about = about
        self._results: dict[str, dict[str, Moments]] = {}
        check_table(self._moments, about.pivot)

    @property
    def languages(self) -> tuple[str, ...]:
        """Canonical language codes, in the order of the rows of `means`."""
        return tuple(next(iter(self._moments.values())))

    @property
    def pivot(self) -> str:
        """Canonical code of the central language."""
        return self._about.pivot

    @property
    def sites(self) -> tuple[str, ...]:
        """Where states were read: ``"block.N"`` (block outputs) and ``"final"``."""
        return tuple(self._moments)

    @property
    def about(self) -> Provenance:
        """How the states were read, with hashes of model, tokenizer, template and text."""
        return self._about

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows per language."""
        moments = self._at(self.sites[0])
        return {language: int(m.count) for language, m in moments.items()}

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the model the states were read from, as far as is known."""
        recorded = self._about.model.get("num_hidden_layers")
        if isinstance(recorded, int):
            return recorded
        return 1 + max((i for i in map(block_index, self.sites) if i is not None), default=-1)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.means(self.sites[0]).shape[1])

    def means(self, site: str | int) -> NDArray[np.float64]:
        """Language means at one site.

        Parameters
        ----------
        site : str or int
            ``"block.7"``, ``7``, ``-1`` (last block) or ``"final"``.

        Returns
        -------
        ndarray
            (L, d) float64, rows in the order of `languages`.

        Raises
        ------
        InputError
            When the space does not have the site.
        """
        return np.stack([m.mean for m in self._at(site).values()])

    def variances(self, site: str | int) -> NDArray[np.float64]:
        """Variance of each coordinate per language, (L, d) float64; see `means`."""
        return np.stack([m.variance for m in self._at(site).values()])

    def noise(self, site: str | int) -> NDArray[np.float64]:
        """Total sampling variance of each language mean.

        Parameters
        ----------
        site : str or int
            As in `means`.

        Returns
        -------
        ndarray
            (L,) float64, the sum over coordinates of variance / count.
        """
        return np.array([float(m.variance.sum()) / m.count for m in self._at(site).values()])

    def fit(
        self, site: str | int, *, rank: Rank = "auto", agnostic: Agnostic = "mean"
    ) -> SubspaceResult:
        """Fit the language subspace of one site.

        Parameters
        ----------
        site : str or int
            As in `means`.
        rank : int, "auto" or "full"
            See `lens.subspace.fit`. A rank that `Space.choose_ranks` chose for the site is what
            "auto" takes.
        agnostic : str
            ``"mean"`` or ``"complement"``.

        Returns
        -------
        SubspaceResult
            Basis (d, r), agnostic direction, singular values, rank and its reason.

        References
        ----------
        arXiv 2410.04407, arXiv 2401.05792.
        """
        from lens import subspace

        chosen = self._about.ranks.get(resolve_site(site, self.sites)) if rank == "auto" else None
        noise = self.noise(site)  # not a number where a language has a single row
        found = subspace.fit(
            self.means(site),
            rank=rank if chosen is None else int(chosen["rank"]),
            languages=list(self.languages),
            agnostic=agnostic,
            noise=noise if np.isfinite(noise).all() else None,
        )
        return found if chosen is None else replace(found, rank_reason=str(chosen["reason"]))

    def fit_all(
        self, *, rank: Rank = "auto", agnostic: Agnostic = "mean"
    ) -> dict[str, SubspaceResult]:
        """Fit every site; parameters as in `fit`. Returns site to result."""
        return {site: self.fit(site, rank=rank, agnostic=agnostic) for site in self.sites}

    def delta(self, site: str | int, language: str) -> NDArray[np.float64]:
        """Step from the pivot to a language at one site.

        Parameters
        ----------
        site : str or int
            As in `means`.
        language : str
            Any spelling.

        Returns
        -------
        ndarray
            (d,) float64, m_l - m_c.

        Raises
        ------
        InputError
            When the space does not have the site or the language.
        """
        moments = self._at(site)
        step: NDArray[np.float64] = moments[self.language(language)].mean - moments[self.pivot].mean
        return step

    def language(self, typed: str) -> str:
        """Return the canonical code of a language of this space, or raise naming those it has."""
        code = canonical(typed)
        if code not in self.languages:
            raise InputError(
                f"language {typed!r} ({code}) is not in this space; "
                f"it has: {', '.join(self.languages)}"
            )
        return code

    def _at(self, site: str | int) -> dict[str, Moments]:
        name = resolve_site(site, self.sites)
        if name not in self._results:
            self._results[name] = {code: m.result() for code, m in self._moments[name].items()}
        return self._results[name]
