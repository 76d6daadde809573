"""Hashes of bytes in memory, of files, and of samples of files."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any

import xxhash

_BLOCKS, _BLOCK = 64, 4096  # sampled from a file


def checksum(x: Any) -> int:
    """XXH64 with seed 0 of the bytes of a C-contiguous array or another buffer.

    About 20 GB/s, a small part of the time to read or write the same bytes; other threads run
    meanwhile. It detects accidents, not forgeries.
    """
    return xxhash.xxh64_intdigest(x)


def checksum_of_file(path: Path) -> int:
    """XXH64 of a whole file."""
    if path.stat().st_size == 0:
        return checksum(b"")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return checksum(data)


def checksum_of_sample(path: Path) -> str:
    """XXH64 in hexadecimal of 64 blocks of 4 KiB spread evenly over a file; of a small file, all.

    Takes milliseconds at any size. Training changes weights everywhere, so the sample distinguishes
    two checkpoints of one architecture, whose headers are equal.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        if size <= _BLOCKS * _BLOCK:
            return f"{checksum(file.read()):016x}"
        parts = []
        for i in range(_BLOCKS):
            file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
            parts.append(file.read(_BLOCK))
    return f"{checksum(b''.join(parts)):016x}"


def hash_of_path(path: str) -> str:
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
