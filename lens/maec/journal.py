"""What of an unfinished merge is done: one line per slice, written after its bytes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

from lens.arrays import Array
from lens.checksums import checksum
from lens.errors import InputError
from lens.io import read_object, write_text
from lens.maec.shards import ShardFiles
from lens.maec.targets import Cut, Target

_LINE = re.compile(rb"(\d+) (\d+) ([0-9a-f]{16})\n")
SUFFIX = ".unfinished"


class Unfinished:
    """Working folder of a merge, beside its output.

    ``model/`` holds the files of the result in their final form, ``merge.json`` says which merge
    it is, ``facts.json`` what was found out before the first slice, and ``journal`` the slices that
    are written, each with its checksum. Killed at any moment, the merge goes on from there.

    Parameters
    ----------
    out : Path
        Where the result will be.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, Path(f"{out}{SUFFIX}")
        self.model, self._journal = self.path / "model", self.path / "journal"
        self._handle: int | None = None

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self.path.exists()

    def begin(self, identity: dict[str, Any]) -> None:
        """Make the folder; what an earlier merge left is removed.

        Raises
        ------
        InputError
            If it cannot be written, or another process is at work in it.
        """
        if self._journal.exists():
            self._lock()
            self.close()
        try:
            self.discard()
            self.model.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; choose another --out"
            ) from None
        self._lock()
        write_text(self.path / "merge.json", json.dumps(identity, indent=1))

    def resume(self, identity: dict[str, Any]) -> bool:
        """Go on with the same merge; False if there is nothing to go on from.

        Raises
        ------
        InputError
            If another merge is there: the message names what differs.
        """
        path = self.path / "merge.json"
        if not path.is_file() or not self._journal.is_file():
            return False
        found = read_object(path)
        if found is None:
            return False
        changed = [key for key in identity if found.get(key) != identity[key]]
        if changed:
            raise InputError(
                f"cannot go on with the merge in {self.path}: {', '.join(changed)} changed since "
                "it was interrupted; undo that, or start anew with --force"
            )
        self._lock()
        return True

    def _lock(self) -> None:
        self._handle = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise InputError(f"another process is merging in {self.path}") from None

    def facts(self) -> dict[str, Any] | None:
        """Read what was found out before; None if that had not been finished."""
        return read_object(self.path / "facts.json")

    def keep_facts(self, facts: dict[str, Any]) -> None:
        """Write what was found out."""
        write_text(self.path / "facts.json", json.dumps(facts))

    def lines(self) -> dict[tuple[int, int], int]:
        """Checksums by tensor and slice number; a torn last line is left out."""
        return {
            (int(tensor), int(cut)): int(digest, 16)
            for tensor, cut, digest in _LINE.findall(self._journal.read_bytes())
        }

    def note(self, target: Target, cut: Cut, digest: int) -> None:
        """Write that a slice is done; its bytes have been written before."""
        if self._handle is not None:
            os.write(self._handle, f"\n{target.number} {cut.number} {digest:016x}\n".encode())

    def close(self) -> None:
        """Let others have it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def discard(self) -> None:
        """Remove all of it."""
        self.close()
        if self.path.is_dir():
            shutil.rmtree(self.path)


class Checking:
    """Compares slices with those in the files of a result, instead of writing them.

    Attributes
    ----------
    slices : int
        How many were compared.
    differing : dict of str to list of int
        Numbers of the slices that differ, by tensor.
    """

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self.slices = 0
        self.differing: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def missing(self, target: Target, cut: Cut) -> bool:
        """Make every slice again."""
        return True

    def write(self, target: Target, cut: Cut, content: Array) -> None:
        """Compare a slice."""
        same = self._files.read(target, cut) == content.tobytes()
        with self._lock:
            self.slices += 1
            if not same:
                self.differing.setdefault(target.name, []).append(cut.number)


class Writing:
    """Writes slices into the files of a result and notes them in the journal.

    Parameters
    ----------
    files : ShardFiles
    unfinished : Unfinished
    done : dict
        Checksums of the slices that were written before; those whose bytes do not have it are
        written again.
    """

    def __init__(
        self, files: ShardFiles, unfinished: Unfinished, done: dict[tuple[int, int], int]
    ) -> None:
        self._files, self._unfinished, self._before = files, unfinished, done
        self.checksums: dict[tuple[int, int], int] = {}

    def missing(self, target: Target, cut: Cut) -> bool:
        """Whether the slice is not in the file yet."""
        key = target.number, cut.number
        if key not in self._before:
            return True
        if checksum(self._files.read(target, cut)) != self._before[key]:
            return True
        self.checksums[key] = self._before[key]
        return False

    def write(self, target: Target, cut: Cut, content: Array) -> None:
        """Write a slice, then note it."""
        self._files.write(target, cut, content)
        digest = checksum(content)
        self._unfinished.note(target, cut, digest)
        self.checksums[target.number, cut.number] = digest
