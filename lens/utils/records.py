"""Sealed records: the format of everything that an interrupted job must find intact.

A record is a line of JSON that ends in a *seal*, an XXH64 of a seed and of the line before it. The
seed stands for what the record belongs to. Binary data may follow the line, which then holds their
size and XXH64. So a record that was torn, damaged or copied from elsewhere is recognised, and a
file of records without binary data is JSON Lines.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lens.utils.files import to_disk, write_at
from lens.utils.hashing import checksum

Fields = dict[str, Any]
_SEAL = b'"seal": "'


class Record(NamedTuple):
    """Plain values, and the binary data that belong to them."""

    fields: Fields
    data: bytes = b""


def seed_of(*parts: Any) -> int:
    """Seed of the records that belong to plain values, such as an identity and a file name."""
    return checksum(json.dumps(parts, sort_keys=True).encode())


def encode(seed: int, fields: Mapping[str, Any], data: bytes = b"") -> bytes:
    """Encode the line of a record; its data follow it as they are.

    The names ``data`` and ``seal`` are taken.
    """
    content = dict(fields)
    if data:
        content["data"] = {"bytes": len(data), "xxh64": f"{checksum(data):016x}"}
    line = json.dumps(content, ensure_ascii=False).encode()
    body = line[:-1] + (b", " if content else b"")
    return body + _sealed(seed, body)


def read(file: BinaryIO, seed: int) -> Record | None:
    """Read the next record; None at the end of the file, or where one is torn or damaged."""
    line = file.readline()
    at = line.rfind(_SEAL)
    if at < 0 or line[at:] != _sealed(seed, line[:at]):
        return None
    fields: Fields = json.loads(line)
    del fields["seal"]
    expected = fields.pop("data", None)
    if expected is None:
        return Record(fields)
    data = file.read(expected["bytes"])
    whole = len(data) == expected["bytes"] and f"{checksum(data):016x}" == expected["xxh64"]
    return Record(fields, data) if whole else None


class Log:
    """Append-only file of records.

    Parameters
    ----------
    path : Path
        The file; made if it is not there. What follows the last intact record is removed.
    seed : int
        Of its records; a log of another seed is begun anew.
    writing : callable
        Gives a context that turns errors of the disk into messages; takes what is written.
    sync : bool
        Wait until each record is on the disk. Without, a record survives the end of the process,
        but not always a power failure.
    """

    def __init__(
        self,
        path: Path,
        seed: int,
        *,
        writing: Callable[[str], AbstractContextManager[None]],
        sync: bool,
    ) -> None:
        self.path = path
        self._seed, self._writing, self._sync = seed, writing, sync
        self._mutex = threading.Lock()
        self._found = self._end = intact_bytes(path, seed)
        with self._writing(f"'{path}'"):
            self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
            self._file.truncate(self._end)
            if sync:
                to_disk(path.parent)

    @property
    def empty(self) -> bool:
        """Whether there are no records."""
        return not self._end

    def records(self) -> Iterator[Record]:
        """Yield the records that were there when the log was opened, read one by one."""
        with self.path.open("rb") as file:
            while file.tell() < self._found and (record := read(file, self._seed)):
                yield record

    def append(self, fields: Mapping[str, Any], data: bytes = b"") -> None:
        """Add a record; threads may do so at once.

        Raises
        ------
        InputError
            If it cannot be written; the records before it are intact.
        """
        line = encode(self._seed, fields, data)
        with self._mutex, self._writing(f"'{self.path}'"):
            at = self._end
            try:
                write_at(self._file, at, line)
                if data:
                    write_at(self._file, at + len(line), data)
                if self._sync:
                    os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):
                    self._file.truncate(at)
                raise
            self._end = at + len(line) + len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def intact_bytes(path: Path, seed: int) -> int:
    """Bytes that the records of a file take, up to the first one that is torn or damaged."""
    end = 0
    if path.exists():
        with path.open("rb") as file:
            while read(file, seed) is not None:
                end = file.tell()
    return end


def _sealed(seed: int, body: bytes) -> bytes:
    return _SEAL + f'{checksum(seed.to_bytes(8, "little") + body):016x}"}}\n'.encode()
