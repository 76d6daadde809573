"""What a probe has finished, on disk, so that one that was killed goes on where it was.

Work comes in *units* in a fixed order (a window of rows of one language; in layer-by-layer mode a
block). The finished batches of the unit at hand are appended to one file, each with its check sum;
when the unit is done its statistics are written in one step, and the file starts anew.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lens.errors import InputError
from lens.io import write_at, write_bytes, write_text

SCHEMA = "lens.journal/1"
ABOUT, BATCHES, DONE = "about.json", "batches", "done"
_BOOT = Path("/proc/sys/kernel/random/boot_id")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch that was finished before: which rows, their pooled states, and the size after it."""

    label: str
    rows: list[int]
    pooled: dict[str, NDArray[np.float64]]
    size: int


class Journal:
    """Finished work of one probe in a folder.

    Parameters
    ----------
    folder : Path
        Working folder; made when the probe begins, removed by `remove`.
    resume : bool
        Go on with what is in it, if it is of the same probe.
    force : bool
        Without ``resume``, discard what is in it.

    Raises
    ------
    InputError
        If there is an unfinished probe in the folder and neither was said.
    """

    def __init__(self, folder: Path, *, resume: bool = False, force: bool = False) -> None:
        self.folder, self.resume = folder, resume
        if (folder / ABOUT).exists() and not resume and not force:
            raise InputError(
                f"an unfinished probe is in {folder}; go on with it by --resume (in Python "
                "resume=True), or discard it with --force"
            )
        self._file: IO[bytes] | None = None
        self._end = 0

    @property
    def unfinished(self) -> bool:
        """Whether there is finished work of an earlier run."""
        return (self.folder / ABOUT).exists()

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file of batches; what was finished stays."""
        self.close()

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Start, or go on; True when finished work was found.

        Parameters
        ----------
        identity : mapping
            Everything that decides the result, as plain data.

        Raises
        ------
        InputError
            If the folder holds another probe (every difference is named), or cannot be written.
        """
        path = self.folder / ABOUT
        text = json.dumps({"schema": SCHEMA, **identity}, indent=1, sort_keys=True, default=str)
        if self.resume and path.exists():
            found, wanted = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
            keys = sorted(found.keys() | wanted.keys())
            other = [k for k in keys if found.get(k) != wanted.get(k)]
            if other:
                listed = "\n".join(f"  {k}: {found.get(k)} and {wanted.get(k)}" for k in other)
                raise InputError(
                    f"the unfinished probe in {self.folder} is another one (its values, then "
                    f"yours):\n{listed}\nrepeat its command with --resume, or discard it with "
                    "--force"
                )
            return True
        shutil.rmtree(self.folder, ignore_errors=True)
        write_text(path, text + "\n")
        return False

    def finished(self, name: str) -> tuple[Arrays, dict[str, Any]] | None:
        """Statistics written under a name, with what was noted beside them; None if there are none.

        Raises
        ------
        InputError
            If the file is damaged.
        """
        path = self.folder / DONE / f"{name}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["about"])
                return {key: file.get_tensor(key) for key in file.keys()}, about
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} is damaged ({error}); discard the unfinished probe with --force"
            ) from None

    def open_unit(self, unit: str) -> Iterator[Finished]:
        """Begin a unit; give the batches of it that were finished before, in their order."""
        self.close()
        path = self.folder / BATCHES
        end = 0
        if path.exists():
            end = max((place for _, place in _records(path, unit)), default=0)
        try:
            self._file = path.open("r+b" if end else "w+b", buffering=0)
            self._file.truncate(end)
            self._end = end
            if not end:
                self._append({"unit": unit, "boot": _boot()}, b"")
        except OSError as error:
            raise self._full(error) from None
        return (record for record, _ in _records(path, unit, end))

    def note(
        self, label: str, rows: Sequence[int], pooled: Mapping[str, NDArray[np.float64]], size: int
    ) -> None:
        """Record a finished batch of the unit at hand.

        Raises
        ------
        InputError
            If the disk is full; what was recorded before stays good.
        """
        payload = b"".join(np.ascontiguousarray(values).tobytes() for values in pooled.values())
        widths = {site: values.shape[1] for site, values in pooled.items()}
        about = {"label": label, "rows": list(rows), "widths": widths, "size": size}
        try:
            self._append(about, payload)
        except OSError as error:
            raise self._full(error) from None

    def finish(self, name: str, arrays: Arrays, about: Mapping[str, Any]) -> None:
        """Write the statistics of a finished unit in one step."""
        content = save(arrays, metadata={"about": json.dumps(dict(about))})
        try:
            write_bytes(self.folder / DONE / f"{name}.safetensors", content)
        except InputError as error:
            raise InputError(f"{error}; finished batches are kept: go on with --resume") from None

    def close(self) -> None:
        """Close the file of batches."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Discard everything: the probe is complete."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, about: Mapping[str, Any], payload: bytes) -> None:
        if self._file is None:
            raise InputError("a batch was noted outside a unit")
        content = {**about, "bytes": len(payload), "crc": zlib.crc32(payload)}
        head = json.dumps(content).encode()
        sealed = head + b"\n" + payload
        write_at(self._file, self._end, len(head).to_bytes(8, "little") + sealed)
        self._end += 8 + len(sealed)

    def _full(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write to '{self.folder}': {error.strerror}; free some space and go on with "
            "--resume: finished batches are kept"
        )


def _records(path: Path, unit: str, end: int | None = None) -> Iterator[tuple[Finished, int]]:
    """Whole records of a file of batches up to a place, each with the place behind it.

    Nothing, if they are of another unit, or the system was started anew since: then what they
    speak of may not have reached the disk.
    """
    with path.open("rb") as file:
        first = _record(file)
        if first is None or first[0].get("unit") != unit or first[0].get("boot") != _boot():
            return
        while file.tell() != end and (found := _record(file)) is not None:
            about, payload = found
            values = np.frombuffer(payload, np.float64)
            pooled, at, n = {}, 0, len(about["rows"])
            for site, width in about["widths"].items():
                pooled[site] = values[at : at + n * width].reshape(n, width)
                at += n * width
            yield Finished(about["label"], about["rows"], pooled, about["size"]), file.tell()


def _record(file: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read the next record; None at the end, or where a killed process left one cut short."""
    length = int.from_bytes(file.read(8), "little")
    head = file.read(length + 1)
    if not length or len(head) != length + 1:
        return None
    try:
        about = json.loads(head)
    except ValueError:
        return None
    payload = file.read(about["bytes"])
    whole = len(payload) == about["bytes"] and zlib.crc32(payload) == about["crc"]
    return (about, payload) if whole else None


def _boot() -> str:
    """Name of this start of the system, or another one every time where there is none."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return np.random.default_rng().bytes(8).hex()
