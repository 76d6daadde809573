"""Where cached states live: in memory, in a file without a name, or in a file that is kept.

A kept file is safetensors with a SHA-256 of its numbers in the header. It appears under its name
when it is complete; until then it is a hidden ``.part`` file, locked by its writer, and one whose
writer died is removed when the folder is next used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lens.errors import InputError

Shapes: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
_ZEROS = bytes(1 << 20)


class DamagedError(InputError):
    """A cache file is not what was written."""


def in_memory(shapes: Shapes) -> dict[str, Tensor]:
    """Allocate tensors in memory."""
    return {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}


def in_unnamed_file(shapes: Shapes) -> dict[str, Tensor]:
    """Allocate tensors in a mapped temporary file that vanishes with the process."""
    size = nbytes(shapes)
    handle, name = tempfile.mkstemp(prefix="lens-prefix-")
    try:
        with os.fdopen(handle, "wb") as file:
            _reserve(file, 0, size, Path(name).parent)
        return _mapped(Path(name), 0, shapes)
    finally:
        Path(name).unlink()


@contextmanager
def new_file(path: Path, shapes: Shapes, about: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Give mapped tensors to be filled; on success the file appears under its name.

    Raises
    ------
    InputError
        If the folder cannot be written to or has no room (before anything is computed).
    """
    header = _header(shapes, {**about, "sha256": "0" * 64})
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(header)
            _reserve(file, len(header), nbytes(shapes), path.parent)
            tensors = _mapped(part, len(header), shapes)
            yield tensors
            os.fsync(file.fileno())
            file.seek(len(header))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            file.write(_header(shapes, {**about, "sha256": digest}))
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o644)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def open_file(path: Path, about: Mapping[str, str], *, verify: bool = True) -> dict[str, Tensor]:
    """Map a kept file; its tensors are read page by page, when they are used.

    Parameters
    ----------
    path : Path
        File that `new_file` wrote.
    about : mapping of str to str
        What its header must say.
    verify : bool
        Read it once and compare its SHA-256.

    Raises
    ------
    DamagedError
        If it is cut short, changed, or says something else; the message says what.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"cannot be read ({error})") from None
    wrong = [key for key, value in about.items() if found.get(key) != value]
    if wrong:
        raise DamagedError(f"was written for something else ({', '.join(wrong)} differ)")
    if verify:
        with path.open("rb") as raw:
            raw.seek(8 + struct.unpack("<Q", raw.read(8))[0])
            if hashlib.file_digest(raw, "sha256").hexdigest() != found.get("sha256"):
                raise DamagedError("has other numbers than were written (SHA-256 differs)")
    return tensors


def prepare_folder(folder: Path) -> None:
    """Make a folder for kept files, and remove what writers that died left in it.

    Raises
    ------
    InputError
        If it cannot be made, or is not a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot use '{folder}' as a cache folder: {error.strerror}; name a folder that can "
            "be written to"
        ) from None
    for part in folder.glob(".*.part"):
        with suppress(OSError), part.open("rb") as file:  # a lock held: its writer is alive
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)


def nbytes(shapes: Shapes) -> int:
    """Bytes that tensors of these shapes take."""
    return sum(prod(shape) * dtype.itemsize for dtype, shape in shapes.values())


def _header(shapes: Shapes, about: Mapping[str, str]) -> bytes:
    """Write a safetensors header for tensors that follow one another without gaps."""
    content: dict[str, object] = {"__metadata__": dict(about)}
    at = 0
    for name, (dtype, shape) in shapes.items():
        end = at + prod(shape) * dtype.itemsize
        content[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _reserve(file: IO[bytes], start: int, size: int, folder: Path) -> None:
    """Claim room on the disk now: a mapped file that runs out of it later kills the process."""
    try:
        file.flush()
        if hasattr(os, "posix_fallocate"):
            if size:
                os.posix_fallocate(file.fileno(), start, size)
            return
        file.seek(start)
        for at in range(0, size, len(_ZEROS)):
            file.write(_ZEROS[: size - at])
        file.flush()
    except OSError as error:
        raise InputError(
            f"no room for {size / 1e6:.0f} MB of cached states in '{folder}': {error.strerror}; "
            "free some space, name another folder, or cache fewer prompts"
        ) from None


def _mapped(path: Path, start: int, shapes: Shapes) -> dict[str, Tensor]:
    """Tensors over a shared mapping of a file; what is written to them goes to the file."""
    total = start + nbytes(shapes)
    if total == start:
        return in_memory(shapes)
    storage: Any = torch.UntypedStorage.from_file(str(path), True, total)
    tensors = {}
    for name, (dtype, shape) in shapes.items():
        flat = torch.empty(0, dtype=dtype)
        tensors[name] = flat.set_(storage, start // dtype.itemsize, shape, (shape[-1], 1))
        start += prod(shape) * dtype.itemsize
    return tensors
