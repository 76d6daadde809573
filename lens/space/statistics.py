"""What a language space holds: means, spread and counts per site and language, and their fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lens.data.languages import canonical
from lens.errors import InputError
from lens.models.sites import resolve_site
from lens.space.about import About
from lens.space.building import MomentsTable, check_table

if TYPE_CHECKING:
    from lens.stats import Moments, StreamingMoments
    from lens.subspace import SubspaceResult

Agnostic: TypeAlias = Literal["mean", "complement"]
Rank: TypeAlias = int | Literal["auto", "full"]


class LanguageStatistics:
    """Statistics of pooled states per site and language, and the subspaces they give.

    Parameters
    ----------
    moments : mapping
        Site to language to `lens.stats.StreamingMoments`; the same languages at every site.
    about : About
        Pivot language and where the states come from.

    Raises
    ------
    InputError
        When there are fewer than two languages, the pivot is not among them, or the sites do not
        have the same languages.
    """

    __slots__ = ("_about", "_moments", "_results")

    def __init__(self, moments: Mapping[str, Mapping[str, StreamingMoments]], about: About) -> None:
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
    def about(self) -> About:
        """How the states were read, with hashes of model, tokenizer, template and text."""
        return self._about

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows per language."""
        moments = self._at(self.sites[0])
        return {language: int(m.count) for language, m in moments.items()}

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
