"""What has been run: one JSON line per run, written when it is finished."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lens.errors import InputError


class Journal:
    """Records by key, in a file that only grows.

    A run that was cut off leaves no line, or half a line, which is dropped when the file is opened
    again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.path}, line {number} is not a record of a run; move the file away to "
                    "start again"
                ) from None
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, record: dict[str, Any]) -> None:
        """Append a finished run; it survives a crash from here on.

        Raises
        ------
        InputError
            If the line cannot be written.
        """
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"cannot write '{self.path}': {error.strerror}; finished runs are kept, make room "
                "and start the same command again"
            ) from error
        self.records[record["key"]] = record


def identity(path: str) -> str:
    """Hash what a path holds; of files above 64 MiB only name, size and time."""
    root = Path(path)
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        if not file.exists():  # a hub id
            digest.update(path.encode())
            continue
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        digest.update(name.encode())
        facts = file.stat()
        if facts.st_size > 64 << 20:
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
        else:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
