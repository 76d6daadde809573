"""Sizes in bytes as people write them: ``12GB``, ``500MiB``."""

from __future__ import annotations

import re

from lens.errors import InputError

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
