"""Pooled states stored by a probe: one memory-mapped file per site, read lazily."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import BF16, F16, F32
from lens.data.languages import canonical
from lens.errors import InputError
from lens.models.layers import resolve_site
from lens.space.provenance import Provenance, model_difference, same_model
from lens.utils.files import put_in_place, reserve, write_at, write_text

if TYPE_CHECKING:
    from lens.resample.gram import Gram
    from lens.resample.rank import RankChoice

SCHEMA = "lens.states/1"
RECORD = "states.json"
MOST_ROWS = 4096  # of all languages together in a Gram matrix, where no limit is given: 134 MB
ALIGNMENT = 64  # bytes; the numbers of a file begin at a multiple of it

StatesDtype: TypeAlias = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Storage:
    """How a dtype is stored: its name in safetensors, NumPy's dtype, the core's code, its range."""

    tag: str
    dtype: np.dtype[Any]
    code: int
    largest: float


STORAGE: dict[str, Storage] = {
    "float16": Storage("F16", np.dtype(np.float16), F16, 65504.0),
    "bfloat16": Storage("BF16", np.dtype(np.uint16), BF16, 3.3895e38),
    "float32": Storage("F32", np.dtype(np.float32), F32, float(np.finfo(np.float32).max)),
}


class StateStore:
    """Pooled states of every row, language and site, mapped from disk.

    Parameters
    ----------
    folder : str or Path
        Written by ``lens.probe(..., keep_states=folder)`` or ``lens probe --keep-states``.

    Raises
    ------
    InputError
        If it is not such a folder, or a file in it is cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        record = _record(self.folder)
        try:
            self.about = Provenance.from_dict(record["about"])
            self.sites: tuple[str, ...] = tuple(record["sites"])
            self.counts: dict[str, int] = {k: int(n) for k, n in record["counts"].items()}
            self.width = int(record["width"])
            self.dtype: StatesDtype = record["dtype"]
            self._storage = STORAGE[self.dtype]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.folder / RECORD} is not complete ({error}); probe again"
            ) from None
        self._mapped = {site: self._map(site) for site in self.sites}

    @property
    def languages(self) -> tuple[str, ...]:
        """Canonical language codes, in the order of the rows."""
        return tuple(self.counts)

    @property
    def parallel(self) -> bool:
        """Whether row i says the same in every language, so that rows may be drawn together."""
        return self.about.parallel and len(set(self.counts.values())) == 1

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        rows = len(self.sites) * sum(self.counts.values())
        return rows * self.width * self._storage.dtype.itemsize

    def row_ids(self, language: str) -> NDArray[np.int64]:
        """Ids of the rows of a language, (n,): those under which the space counted them."""
        shards = self.about.data.get(self._language(language), [])
        spans = [np.arange(s.start, s.start + s.rows) for s in shards]
        return np.concatenate(spans) if spans else np.empty(0, np.int64)

    def raw(self, site: str | int, language: str | None = None) -> NDArray[Any]:
        """Return stored states, mapped: nothing is read before it is used, none can be written.

        Parameters
        ----------
        site : str or int
            As in `Space.means`.
        language : str, optional
            Any spelling; without it all languages, one after the other.

        Returns
        -------
        ndarray
            (n, d) float16 or float32; bfloat16 comes as uint16, which functions of lens take with
            ``dtype="bfloat16"``.
        """
        mapped = self._mapped[resolve_site(site, self.sites)]
        if language is None:
            return mapped
        code = self._language(language)
        start = _rows_before(self.counts, code)
        return mapped[start : start + self.counts[code]]

    def values(
        self, site: str | int, language: str, rows: slice | NDArray[np.int64] = slice(None)
    ) -> NDArray[np.float32]:
        """States of one language in memory, widened.

        Parameters
        ----------
        site : str or int
            As in `Space.means`.
        language : str
            Any spelling.
        rows : slice or array of int
            Which of its rows, by position.

        Returns
        -------
        ndarray
            (n, d) float32.
        """
        chosen = np.ascontiguousarray(self.raw(site, language)[rows])
        out = np.empty(chosen.shape, np.float32)
        _core.dtype_load(out.reshape(-1), chosen.reshape(-1), self._storage.code)
        return out

    def gram(
        self, site: str | int, *, limit: int | None = None, n_threads: int | None = None
    ) -> Gram:
        """Inner products of the states of a site: where bootstrap and null start.

        Parameters
        ----------
        site : str or int
            As in `Space.means`.
        limit : int, optional
            Rows per language, evenly spread and the same in every language; by default as many
            as keep all languages together at 4096 or fewer, since N rows need N^2 numbers.
        n_threads : int, optional
            Threads of the C core.

        Returns
        -------
        Gram
            See `lens.resample.gram`. With all rows of a parallel set it is computed on the mapped
            file, without a copy.
        """
        from lens import resample

        most = self.most(limit)
        dtype = "bfloat16" if self.dtype == "bfloat16" else None
        sizes = set(self.counts.values())
        if len(sizes) == 1 and min(sizes) <= most:
            shape = (len(self.counts), min(sizes), self.width)
            blocks: Any = self.raw(site).reshape(shape)
        else:
            blocks = [
                np.ascontiguousarray(self.raw(site, code)[self.spread(code, most)])
                for code in self.counts
            ]
        return resample.gram(blocks, languages=self.languages, dtype=dtype, n_threads=n_threads)

    def most(self, limit: int | None) -> int:
        """Rows per language that `gram` takes at most; see its ``limit``."""
        most = MOST_ROWS // len(self.counts) if limit is None else limit
        if isinstance(most, bool) or not isinstance(most, int) or most < 2:
            raise InputError(f"limit: got {limit!r}, expected a number of rows of at least 2")
        return most

    def spread(self, language: str, most: int) -> Any:
        """Positions of at most ``most`` rows of a language, evenly spread: those `gram` takes."""
        n = self.counts[self._language(language)]
        return slice(None) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)

    def choose_rank(
        self,
        site: str | int,
        *,
        limit: int | None = None,
        n_splits: int = 10,
        n_resamples: int = 200,
        n_permutations: int = 200,
        seed: int = 0,
        n_threads: int | None = None,
    ) -> RankChoice:
        """Choose the rank of a site on held-out rows; parameters as in `lens.resample.choose_rank`.

        ``limit`` is that of `gram`; rows are drawn together where they are parallel.
        """
        from lens import resample

        return resample.choose_rank(
            self.gram(site, limit=limit, n_threads=n_threads),
            n_splits=n_splits,
            n_resamples=n_resamples,
            n_permutations=n_permutations,
            joint=self.parallel,
            seed=seed,
            n_threads=n_threads,
        )

    def require_source(self, about: Provenance) -> None:
        """Refuse a space that these states do not belong to; every difference is named.

        Parameters
        ----------
        about : Provenance
            Record of the space.

        Raises
        ------
        InputError
            If model, pooling, role or rows differ.
        """
        problems = [
            f"{name} differs: {getattr(self.about, name)!r} and {getattr(about, name)!r}"
            for name in ("pooling", "role", "max_tokens")
            if getattr(self.about, name) != getattr(about, name)
        ]
        if not same_model(self.about.model, about.model):
            problems.append("the model: " + model_difference(self.about.model, about.model))
        codes = dict.fromkeys((*self.about.data, *about.data))
        other = [c for c in codes if self.about.data.get(c) != about.data.get(c)]
        if other:
            problems.append(f"other rows: {', '.join(other)}")
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise InputError(f"the states in {self.folder} are not those of this space:\n{listed}")

    def __repr__(self) -> str:
        """Name languages and size."""
        return (
            f"StateStore({str(self.folder)!r}, languages={list(self.languages)}, "
            f"sites={len(self.sites)}, width={self.width}, dtype={self.dtype!r})"
        )

    def _language(self, typed: str) -> str:
        code = canonical(typed)
        if code not in self.counts:
            raise InputError(
                f"language {typed!r} ({code}) has no states in {self.folder}; "
                f"it has: {', '.join(self.counts)}"
            )
        return code

    def _map(self, site: str) -> NDArray[Any]:
        path = self.folder / site_file(site)
        start, _ = layout(site, self.counts, self.width, self.dtype)
        shape = (sum(self.counts.values()), self.width)
        size = start + prod(shape) * self._storage.dtype.itemsize
        try:
            found = path.stat().st_size
            if found != size:
                raise InputError(
                    f"{path} has {found} bytes, expected {size}: it was cut short or is of another "
                    "probe; copy it again, or probe again"
                )
            return np.memmap(path, self._storage.dtype, "r", start, shape)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; probe again") from None


def _rows_before(counts: dict[str, int], language: str) -> int:
    """Rows of the languages before one."""
    codes = list(counts)
    return sum(counts[code] for code in codes[: codes.index(language)])


def site_file(site: str) -> str:
    """Name of the file of a site."""
    return f"{site}.safetensors"


def layout(site: str, counts: dict[str, int], width: int, dtype: StatesDtype) -> tuple[int, bytes]:
    """First byte of the numbers of a site's file, and its safetensors header."""
    row = width * STORAGE[dtype].dtype.itemsize
    content: dict[str, Any] = {"__metadata__": {"schema": SCHEMA, "site": site}}
    at = 0
    for language, n in counts.items():
        content[language] = {
            "dtype": STORAGE[dtype].tag,
            "shape": [n, width],
            "data_offsets": [at, at + n * row],
        }
        at += n * row
    text = json.dumps(content).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return 8 + len(text), len(text).to_bytes(8, "little") + text


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"'{folder}' holds no kept states: it has no {RECORD}; make them with "
            "lens probe --keep-states"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}); probe again") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path} is not of schema {SCHEMA}; probe again with this version")
    return record


SUFFIX = ".unfinished"


class StateStoreWriter:
    """Files of `lens.space.StateStore` being filled, beside the folder they become.

    A context manager: files are open inside it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sites: tuple[str, ...],
        counts: dict[str, int],
        width: int,
        dtype: StatesDtype = "float16",
        resume: bool = False,
        force: bool = False,
    ) -> None:
        self.folder = Path(folder)
        check_target(self.folder, dtype, force=force)
        self._sites, self._counts, self._width, self._dtype = sites, counts, width, dtype
        self._storage = STORAGE[dtype]
        self._row = width * self._storage.dtype.itemsize
        self._files: dict[str, IO[bytes]] = {}
        self.fresh = False  # whether a file was not there yet
        self.unfinished = self.folder.with_name(self.folder.name + SUFFIX)
        if not resume:
            shutil.rmtree(self.unfinished, ignore_errors=True)
        try:
            self.unfinished.mkdir(parents=True, exist_ok=True)
            for site in sites:
                self._open(site)
        except OSError as error:
            self.close()
            raise InputError(
                f"no room for {self._size() / 1e6:.0f} MB of states in '{self.unfinished.parent}': "
                f"{error.strerror}; free some space, keep fewer sites, or use 16 bits"
            ) from None

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the files; what is unfinished stays for a resumed run."""
        self.close()

    def write(self, language: str, site: str, start: int, values: NDArray[np.float64]) -> None:
        """Store rows (n, d), from position ``start`` of a language on, at a site."""
        largest = np.abs(values).max(axis=1, initial=0.0)
        beyond = np.flatnonzero(largest > self._storage.largest)
        if len(beyond):
            raise InputError(
                f"the state at {site} for row {start + int(beyond[0])} of {language} holds "
                f"{largest[beyond[0]]:.5g}, beyond {self._dtype} (at most "
                f"{self._storage.largest:g}); keep the states as bfloat16 or float32"
            )
        wide = np.ascontiguousarray(values, np.float32)
        stored = np.empty(wide.shape, self._storage.dtype)
        _core.dtype_store(stored.reshape(-1), wide.reshape(-1), self._storage.code)
        begin = layout(site, self._counts, self._width, self._dtype)[0]
        row = _rows_before(self._counts, language) + start
        try:
            write_at(self._files[site], begin + row * self._row, stored)
        except OSError as error:
            raise InputError(
                f"cannot write states to '{self.unfinished}': {error.strerror}; free some space "
                "and continue with --resume"
            ) from None

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def finish(self, about: Provenance) -> Path:
        """Write the record and give the folder its name."""
        self.flush()
        self.close()
        record = {
            "schema": SCHEMA,
            "languages": list(self._counts),
            "sites": list(self._sites),
            "counts": self._counts,
            "width": self._width,
            "dtype": self._dtype,
            "pooling": about.pooling,
            "about": about.to_dict(),
        }
        text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
        write_text(self.unfinished / RECORD, text)
        put_in_place(self.unfinished, self.folder)
        return self.folder

    def discard(self) -> None:
        """Remove what is unfinished."""
        self.close()
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files.clear()

    def _size(self) -> int:
        return len(self._sites) * sum(self._counts.values()) * self._row

    def _open(self, site: str) -> None:
        """Open a site's file at its full size, with its header in place."""
        path = self.unfinished / site_file(site)
        start, header = layout(site, self._counts, self._width, self._dtype)
        size = start + sum(self._counts.values()) * self._row
        old = path.exists() and path.stat().st_size == size
        if old:
            with path.open("rb") as found:
                old = found.read(start) == header
        # Unbuffered: what is written is with the system when a process is killed.
        file = path.open("r+b" if old else "w+b", buffering=0)
        self._files[site] = file
        if not old:
            self.fresh = True
            write_at(file, 0, header)
            reserve(file, start, size - start)


def check_target(folder: Path, dtype: str, *, force: bool) -> None:
    """Refuse a dtype or folder that cannot take states, before anything is computed."""
    if dtype not in STORAGE:
        raise InputError(
            f"unknown dtype of states {dtype!r}; expected one of: {', '.join(STORAGE)}"
        )
    if folder.exists() and not force:
        raise InputError(
            f"{folder} exists already; keep the states in another folder, or pass --force (in "
            "Python force=True) to replace it"
        )
