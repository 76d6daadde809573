"""Output files that are complete or absent, never half-written; sizes as people write them.

While it is written, output has a hidden name that ends in ``.lens-part``, and its writer holds a
lock on it. What a killed writer leaves is removed when the same output is written again.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any

from lens.errors import InputError

PART = ".lens-part"


def refuse_existing(out: Path, *, force: bool) -> None:
    """Raise InputError if ``out`` exists and may not be replaced, or is no name to write to."""
    if out.name in ("", ".."):
        raise InputError(f"'{out}' is no name of a new file or folder; choose another --out")
    if os.path.lexists(out) and not force:
        raise InputError(
            f"{out} exists already; choose another --out or pass --force to replace it"
        )


@contextmanager
def new_folder(
    out: str | Path, *, force: bool = False, inside: Path | None = None
) -> Iterator[Path]:
    """Write a folder under a temporary name and rename it when the block succeeds.

    The temporary folder is a sibling of ``out``, or in ``inside``, whose owner clears it after a
    process that was killed; both must be on one file system.

    Raises
    ------
    InputError
        If ``out`` exists and ``force`` is false (before anything is written).
    """
    out = Path(out)
    refuse_existing(out, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent, out.name)
        temporary, handle = _locked(
            lambda: tempfile.mkdtemp(PART, f".{out.name}.", inside or out.parent)
        )
    except OSError as error:
        raise InputError(
            f"cannot write '{out}': {error.strerror}; choose a place that can be written to"
        ) from None
    try:
        yield temporary
        put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def put_in_place(folder: Path, out: Path) -> None:
    """Give a finished folder its name once its content has reached the disk; replaces ``out``."""
    replaced = folder.with_name(f"{folder.name}.replaced")
    folder.chmod(0o755)
    for path in (*folder.rglob("*"), folder):
        to_disk(path)
    if os.path.lexists(out):  # moved aside: there is a moment without `out`, none without both
        out.rename(replaced)
    try:
        folder.rename(out)
    except OSError:
        if os.path.lexists(replaced):
            replaced.rename(out)
        raise
    to_disk(out.parent)
    remove(replaced)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left in a folder; what they had moved aside comes back.

    Parameters
    ----------
    folder : Path
        Where the output is, or would be.
    name : str, optional
        Name of the output; by default, what is left of any output is removed.
    """
    pattern = f".{'*' if name is None else glob.escape(name)}.*{PART}"
    for part in folder.glob(pattern):
        if _is_abandoned(part):
            aside, out = part.with_name(f"{part.name}.replaced"), _output_of(part)
            if os.path.lexists(aside) and not os.path.lexists(out):
                aside.rename(out)
            remove(part)
    for aside in folder.glob(f"{pattern}.replaced"):
        part = aside.with_suffix("")
        if os.path.lexists(_output_of(part)) and not os.path.lexists(part):
            remove(aside)


def _output_of(part: Path) -> Path:
    """Output that a temporary file or folder was to become."""
    return part.with_name(part.name.removeprefix(".").removesuffix(PART).rpartition(".")[0])


def try_lock(handle: int) -> bool:
    """Lock an open file or folder for this process; False if another one holds it.

    ``flock`` and not a library: the lock must never outlive its process, and `filelock` before
    version 4 does without ``flock`` where a file system has none.

    Raises
    ------
    OSError
        If the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _locked(make: Callable[[], str]) -> tuple[Path, int]:
    """Make a temporary file or folder and lock it; its path, and the handle that has the lock."""
    while True:
        path = Path(make())
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            if try_lock(handle) and path.exists():
                return path, handle
        except OSError:  # no locks here: nothing is ever taken for abandoned
            return path, handle
        os.close(handle)  # taken for abandoned before it was locked


def _is_abandoned(part: Path) -> bool:
    """Whether the process that wrote a temporary file or folder has ended."""
    with suppress(OSError):
        handle = os.open(part, os.O_RDONLY)
        try:
            return try_lock(handle)
        finally:
            os.close(handle)
    return False


def to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reserve(file: IO[bytes], start: int, size: int) -> None:
    """Claim room on the disk for bytes of a file now, so that none is missing later.

    Raises
    ------
    OSError
        If there is none.
    """
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, size)
        return
    zeros = bytes(1 << 20)
    for at in range(0, size, len(zeros)):
        write_at(file, start + at, zeros[: size - at])


def write_at(file: IO[bytes], start: int, content: Any) -> None:
    """Write all of a buffer at a place of an unbuffered file, past any buffer of Python's.

    What is written so is with the system, and stays when the process is killed.

    Raises
    ------
    OSError
        If it cannot be written, or only in part.
    """
    left = memoryview(content).cast("B")
    while len(left):
        done = os.pwrite(file.fileno(), left, start)
        left, start = left[done:], start + done


def read_object(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file that holds an object; None if it is not there or holds none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_text(path: str | Path, text: str) -> None:
    """Write a text file completely or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file completely or not at all; its folder is made.

    Raises
    ------
    InputError
        If it cannot be written; an older file of that name is then as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise InputError(
            f"cannot write '{path}': {error.strerror}; choose a place that can be written to and "
            "has room"
        ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, and wait until it is on the disk.

    Raises
    ------
    OSError
        If it cannot be written; an older file of that name is then as it was.
    """
    with new_file(path) as (file, _):
        file.write(content)


@contextmanager
def new_file(path: Path) -> Iterator[tuple[BufferedRandom, Path]]:
    """Write a file under a temporary name and rename it when the block succeeds.

    Gives the open file, and its path until then.

    Raises
    ------
    OSError
        If it cannot be written; an older file of that name is then as it was.
    """
    remove_leftovers(path.parent, path.name)

    def make() -> str:
        handle, name = tempfile.mkstemp(PART, f".{path.name}.", path.parent)
        os.close(handle)
        return name

    part, handle = _locked(make)
    try:
        with os.fdopen(handle, "r+b") as file:
            yield file, part
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o644)
            part.replace(path)
        to_disk(path.parent)
    finally:
        part.unlink(missing_ok=True)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


def size_in_bytes(size: str | int) -> int:
    """Read a size such as ``"12GB"``, ``"500MiB"`` or a number of bytes.

    Raises
    ------
    InputError
        If it is not a size above zero.
    """
    found = _SIZE.fullmatch(str(size))
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{size!r} is not a size; expected for instance 12GB, 500MiB or bytes")
    unit = found[2].lower()
    return int(float(found[1]) * (_BINARY[unit] if found[3] and unit else _UNITS[unit]))


def said(size: int) -> str:
    """Write a number of bytes as a person would."""
    if size < 1e6:
        return f"{size / 1e3:.3g} kB"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
