"""Write the pooled states of a probe while it runs: room first, then rows in any order."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.errors import InputError
from lens.io import reserve, to_disk, write_at, write_text
from lens.space.about import About
from lens.space.states import RECORD, SCHEMA, STORAGE, StatesDtype, layout, site_file

SUFFIX = ".unfinished"


class StatesWriter:
    """Files of `lens.space.KeptStates` being filled, beside the folder they become.

    A context manager: files are open inside it.

    Parameters
    ----------
    folder : str or Path
        What `finish` makes; until then the files are in a folder of that name with
        ``.unfinished`` behind it.
    sites : sequence of str
        Canonical site names.
    counts : dict
        Canonical language to rows.
    width : int
        Width of a state.
    dtype : str
        ``"float16"``, ``"bfloat16"`` or ``"float32"``.
    resume : bool
        Go on in files that a killed run left.
    force : bool
        Replace ``folder`` in the end.

    Raises
    ------
    InputError
        If the dtype is unknown, the folder exists, or there is no room on the disk; nothing has
        been computed then.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files; what is unfinished stays for a resumed run."""
        self.close()

    def write(self, language: str, site: str, start: int, values: NDArray[np.float64]) -> None:
        """Store consecutive rows of a language.

        Parameters
        ----------
        language, site : str
            Canonical names.
        start : int
            Position of the first row among the rows of the language.
        values : ndarray
            (n, d) float64, finite.

        Raises
        ------
        InputError
            If a value is beyond the dtype, or the disk is full.
        """
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
        before = 0
        for code, n in self._counts.items():
            if code == language:
                break
            before += n
        file = self._files[site]
        begin = layout(site, self._counts, self._width, self._dtype)[0]
        try:
            write_at(file, begin + (before + start) * self._row, stored)
        except OSError as error:
            raise InputError(
                f"cannot write states to '{self.unfinished}': {error.strerror}; free some space "
                "and go on with --resume"
            ) from None

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def finish(self, about: About) -> Path:
        """Write the record and give the folder its name.

        Parameters
        ----------
        about : About
            Record of the space that the states belong to.

        Returns
        -------
        Path
            The folder.
        """
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
        replaced = self.folder.with_name(f".{self.folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if self.folder.exists():  # --force: moved aside, so that it is never half replaced
            self.folder.rename(replaced)
        self.unfinished.rename(self.folder)
        to_disk(self.folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
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
