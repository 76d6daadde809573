"""The language space: statistics of a model's states per site and language, with provenance."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lens import __version__
from lens.data.languages import canonical
from lens.errors import InputError
from lens.models.layers import FINAL, block_index, resolve_site
from lens.pooling import Moments, StreamingMoments
from lens.space import hub, io
from lens.space.provenance import Provenance, require_same_source
from lens.space.statistics import MomentsTable, check_table, combine, from_states, restrict
from lens.utils.files import new_folder, write_text

if TYPE_CHECKING:
    from lens.space.state_store import StateStore
    from lens.steering.policy import Policy
    from lens.subspace import SubspaceResult

Agnostic: TypeAlias = Literal["mean", "complement"]
Rank: TypeAlias = int | Literal["auto", "full"]

_HEAD = ("site", "rank", "singular values", "why")
_SITE = re.compile(r"block\.\d+")


class Space:
    """A language space of one model: statistics per site and language, and the subspaces they give.

    Made by `lens.probe`, `Space.load` or `Space.from_states`. Spaces are not changed in place:
    `merge`, `extend` and `drop` return new ones.

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

    # -- joining and cutting

    def merge(self, other: Space) -> Space:
        """Join two shards of one probe, or two probes of one model.

        Parameters
        ----------
        other : Space
            Read in the same way from the same model. A language in both must come from different
            rows (see ``row_offset`` of `lens.probe`); its statistics are added.

        Returns
        -------
        Space
            Languages of both.

        Raises
        ------
        InputError
            When the two were read differently or share rows; every difference is named.
        """
        return self._combine(other, shared="merge")

    def extend(self, other: Space) -> Space:
        """Add the languages of another probe of the same model.

        Parameters
        ----------
        other : Space
            Read in the same way. A language in both (the pivot, usually) must come from the same
            rows and is taken once.

        Returns
        -------
        Space
            Languages of both.

        Raises
        ------
        InputError
            When the two were read differently, or a shared language has different rows.
        """
        return self._combine(other, shared="same")

    def drop(self, *languages: str) -> Space:
        """Leave out languages.

        Parameters
        ----------
        *languages : str
            Any spelling; not the pivot, and two languages must remain.

        Returns
        -------
        Space
            The rest.

        Raises
        ------
        InputError
            When a language is not in the space or cannot be left out.
        """
        gone = {self.language(name) for name in languages}
        if self.pivot in gone:
            raise InputError(f"the pivot {self.pivot} cannot be dropped; every step starts there")
        kept = [code for code in self.languages if code not in gone]
        return Space(*restrict(self._moments, self._about, kept))

    def choose_ranks(
        self,
        states: StateStore,
        *,
        limit: int | None = None,
        n_splits: int = 10,
        n_resamples: int = 200,
        n_permutations: int = 200,
        seed: int = 0,
        n_threads: int | None = None,
    ) -> Space:
        """Choose the rank of every site on kept states: held-out rows, bootstrap and null.

        Parameters
        ----------
        states : StateStore
            Those that the probe of this space kept.
        limit : int, optional
            Rows per language that are used, see `StateStore.gram`.
        n_splits, n_resamples, n_permutations, seed, n_threads
            As in `lens.resample.choose_rank`.

        Returns
        -------
        Space
            The same, whose ``fit(rank="auto")`` takes the chosen ranks with their reasons; they are
            saved with it.

        Raises
        ------
        InputError
            When the states are not those of this space, or have fewer than 4 rows of a language.
        """
        states.require_source(self._about)
        ranks = {}
        for site in self.sites:
            choice = states.choose_rank(
                site,
                limit=limit,
                n_splits=n_splits,
                n_resamples=n_resamples,
                n_permutations=n_permutations,
                seed=seed,
                n_threads=n_threads,
            )
            ranks[site] = {
                "rank": choice.rank,
                "reason": choice.reason,
                "stable": choice.stable,
                "p_value": choice.p_value,
            }
        return Space(self._moments, replace(self._about, ranks=ranks))

    def _combine(self, other: Space, *, shared: str) -> Space:
        if self.sites != other.sites or self.width != other.width:
            raise InputError(
                f"these spaces cannot be combined: sites {', '.join(self.sites)} (width "
                f"{self.width}) and {', '.join(other.sites)} (width {other.width})"
            )
        require_same_source(self._about, other._about)
        records = (self._about, other._about)
        return Space(*combine(self._moments, other._moments, records, shared=shared))

    # -- model

    def check_model(self, model: Any) -> None:
        """Refuse a model other than the one this space was read from.

        Parameters
        ----------
        model : torch.nn.Module
            The model about to be steered or trained.

        Raises
        ------
        InputError
            When its fingerprint differs; the message says in what. A space made from states
            alone has no fingerprint: then only the width is compared.
        """
        self._about.check_model(model, self.width)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a tokenizer other than the one this space was read with.

        Parameters
        ----------
        tokenizer : transformers.PreTrainedTokenizerBase
            The tokenizer about to be used.

        Raises
        ------
        InputError
            When its hash differs. A space made from states alone has none: then nothing is
            compared.
        """
        self._about.check_tokenizer(tokenizer)

    def steer(
        self, model: Any, policy: Policy, *, language: str | None = None
    ) -> AbstractContextManager[None]:
        """Steer a model by a policy inside a ``with`` block.

        Parameters
        ----------
        model : torch.nn.Module
            The model this space was read from.
        policy : Policy
            Rules that refer to languages of this space.
        language : str, optional
            Language to steer to, for policies that have rules for several.

        Returns
        -------
        context manager
            Restores the model on exit.
        """
        from lens.steering.hooks import steer  # needs torch, a space does not

        self.check_model(model)
        return steer(model, policy.resolve(self, language=language))

    # -- file

    @property
    def sha256(self) -> str:
        """Hash of everything the space holds (the same for the same content)."""
        return io.content_sha256(self._moments, self._about.to_dict())

    def save(self, path: str | Path) -> Path:
        """Write the space to a safetensors file, with a readable ``.json`` twin beside it.

        Parameters
        ----------
        path : str or Path
            Target; a file that is there is replaced in one step.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        InputError
            When it cannot be written.
        """
        target = Path(path)
        io.write_space(target, self._moments, self.to_dict(), self._fits())
        return target

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a space.

        Parameters
        ----------
        path : str or Path
            A file written by `save`, a folder with one, or the id of a repository on the Hugging
            Face Hub, also as ``"name/repository@revision"``.

        Returns
        -------
        Space
            With the same statistics, bit for bit.

        Raises
        ------
        InputError
            When the file does not exist, is truncated, is not a space, or its content does not
            have the hash it was saved with.
        """
        place = Path(path)
        if not place.exists() and hub.looks_like_id(str(path)):
            place = hub.fetch(str(path))
        return cls(*io.read_space(place))

    def push(self, repo: str, *, private: bool = False, revision: str | None = None) -> str:
        """Upload the space and a card that describes it to the Hugging Face Hub.

        Parameters
        ----------
        repo : str
            ``"name/space-of-a-model"``; made where it does not exist.
        private : bool
            Whether a repository that is made is private.
        revision : str, optional
            Branch to upload to.

        Returns
        -------
        str
            Address of the upload.

        Raises
        ------
        InputError
            When the hub refuses or cannot be reached.
        MissingExtraError
            When huggingface_hub is not installed.
        """
        return hub.push(self.export, repo, private=private, revision=revision)

    def export(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write what `push` would upload: the space, its JSON twin and a card, README.md."""
        out = Path(folder)
        with new_folder(out, force=force) as place:
            self.save(place / io.NAME)
            text = hub.card(self._about, self.counts, self.sites, self.width, self.sha256)
            write_text(place / "README.md", text)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the record without the arrays, as plain data."""
        return {
            "languages": list(self.languages),
            "pivot": self.pivot,
            "sites": list(self.sites),
            "width": self.width,
            "counts": self.counts,
            "about": self._about.to_dict(),
        }

    # -- states made elsewhere

    @classmethod
    def from_states(
        cls,
        states: Mapping[str, Any],
        *,
        pivot: str,
        site: str | None = None,
        about: Provenance | None = None,
        row_offset: int = 0,
    ) -> Self:
        """Build a space from pooled states.

        Parameters
        ----------
        states : mapping
            Site to language (any spelling) to (n, d) pooled states; with `site`, language to
            states. Arrays of NumPy or torch (bfloat16 too), or any with the array interface or
            DLPack. `lens.space.read_states` reads them from files.
        pivot : str
            Central language.
        site : str, optional
            Where all states were read: ``"block.7"`` or ``"final"``.
        about : Provenance, optional
            Record of where the states come from.
        row_offset : int
            Id of the first row, for shards that `merge` will join.

        Returns
        -------
        Space
            Their statistics.

        Raises
        ------
        InputError
            When the languages do not fit together, or a state is not finite or of another dtype.

        Notes
        -----
        A space holds statistics, not the states. `lens.resample.choose_rank` and the bootstrap,
        which need the states, start from ``lens.resample.gram(states[site])``; pass the chosen rank
        to `fit`.
        """
        record = about or Provenance(pivot=canonical(pivot), package_version=__version__)
        table = {site: states} if site is not None else states
        wrong = [name for name in table if name != FINAL and not _SITE.fullmatch(str(name))]
        if wrong or not all(isinstance(found, Mapping) for found in table.values()):
            raise InputError(
                f"states are by {', '.join(map(str, table))}; expected sites such as block.7 or "
                "final, and in each language to states; for one site pass site='block.7'"
            )
        return cls(*from_states(table, record, row_offset=row_offset))

    # -- showing

    def summary(self) -> str:
        """Return a short table as text: per site the rank, its reason and the spectrum."""
        lines = [
            f"Space of {len(self.languages)} languages, pivot {self.pivot}",
            self._row_counts(),
        ]
        rows = [_HEAD, *self._table()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*cells, row[3]]).rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Name languages, pivot and size."""
        return (
            f"Space(languages={list(self.languages)}, pivot={self.pivot!r}, "
            f"sites={len(self.sites)}, width={self.width})"
        )

    def _repr_html_(self) -> str:
        def cells(row: tuple[str, ...]) -> str:
            return "".join(f"<td>{html.escape(cell)}</td>" for cell in row)

        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        body = "".join(f"<tr>{cells(row)}</tr>" for row in self._table())
        title = f"<b>Language space</b>, pivot {html.escape(self.pivot)}"
        return (
            f"<p>{title}<br>{html.escape(self._row_counts())}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _row_counts(self) -> str:
        return "rows: " + ", ".join(f"{code} {n}" for code, n in self.counts.items())

    def _fits(self) -> dict[str, SubspaceResult | str]:
        """Fit every site at the automatic rank; where that fails, the reason instead.

        A space with two equal languages can be kept though not fitted.
        """
        found: dict[str, SubspaceResult | str] = {}
        for site in self.sites:
            try:
                found[site] = self.fit(site, agnostic="complement")
            except InputError as error:
                found[site] = str(error)
        return found

    def _table(self) -> list[tuple[str, str, str, str]]:
        """Cells of the summary under `_HEAD`."""
        rows = []
        for site, result in self._fits().items():
            if isinstance(result, str):
                rows.append((site, "-", "-", result))
                continue
            spectrum = " ".join(f"{value:.3g}" for value in result.singular_values[:8])
            rows.append((site, str(result.rank), spectrum, result.rank_reason))
        return rows
