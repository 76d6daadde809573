"""Tensors as they lie on disk, and the header of a safetensors file, read strictly.

A header is believed only if its tensors fill the data of the file from the first byte to the last,
without a gap and without sharing a byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens.errors import InputError

_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype of the safetensors format.

    Attributes
    ----------
    size : int
        Bytes of an element.
    storage : str
        NumPy dtype of the raw bits.
    name : str or None
        What the C core calls it; None when it cannot be calculated with as it is.
    """

    size: int
    storage: str
    name: str | None = None

    @property
    def floating(self) -> bool:
        """Whether elements are floating-point numbers."""
        return self.name is not None


DTYPES: dict[str, Dtype] = {
    "F64": Dtype(8, "float64", "float64"),
    "F32": Dtype(4, "float32", "float32"),
    "F16": Dtype(2, "float16", "float16"),
    "BF16": Dtype(2, "uint16", "bfloat16"),
    "F8_E4M3": Dtype(1, "uint8", "float8_e4m3"),
    "F8_E5M2": Dtype(1, "uint8", "float8_e5m2"),
    "F8_E8M0": Dtype(1, "uint8"),
    "C64": Dtype(8, "uint64"),
    **{f"{sign}{8 * n}": Dtype(n, f"{'u' * (sign == 'U')}int{8 * n}")
       for sign in "IU" for n in (1, 2, 4, 8)},
    "BOOL": Dtype(1, "uint8"),
}  # fmt: skip
"""Dtypes by the name they have in a header."""

OUTPUTS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Dtypes that results can be rounded to, and their names in a header."""


class Sized:
    """Counts that follow from a ``dtype``, as safetensors names it, and a ``shape``."""

    __slots__ = ()
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> Dtype:
        """What an element is."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.kind.size


@dataclass(frozen=True, slots=True)
class Stored(Sized):
    """Where a tensor lies.

    Attributes
    ----------
    path : Path
        File.
    dtype : str
        As safetensors names it.
    shape : tuple of int
        Row-major.
    start : int
        First byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a safetensors file: its tensors by name, its metadata, and its own bytes."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]
    raw: bytes


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; the data are not touched.

    Raises
    ------
    InputError
        If the file is truncated, or the header is not JSON, names a tensor twice, or says of a
        tensor what cannot be.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > min(total - 8, _LONGEST_HEADER):
                raise InputError(
                    f"{path}: {total} bytes, but its header claims {length}; the file is truncated "
                    "or is no safetensors file, copy it again"
                )
            raw = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a safetensors file") from None
    try:
        content = json.loads(raw, object_pairs_hook=lambda pairs: _once(pairs, path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: the header is not JSON ({error}); copy the file again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: the header holds no names of tensors; copy the file again")
    metadata = content.pop("__metadata__", None) or {}
    tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in content.items()}
    _check_places(path, tensors, 8 + length, total)
    return Header(tensors, metadata, raw)


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: the header names '{twice}' twice; the file is damaged")
    return found


def _entry(path: Path, name: str, entry: Any, data: int) -> Stored:
    where = f"{path}: tensor '{name}'"
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{where} has no dtype, shape and data_offsets in the header") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{where} is {dtype}, expected one of {', '.join(DTYPES)}")
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or type(start) is not int or type(stop) is not int:
        raise InputError(
            f"{where} has shape {shape} and offsets {[start, stop]}; not whole numbers"
        )
    stored = Stored(path, dtype, tuple(shape), data + start)
    if start < 0 or stop - start != stored.nbytes:
        raise InputError(
            f"{where} has offsets {start} to {stop}, but {dtype} of shape {shape} takes "
            f"{stored.nbytes} bytes; the header lies"
        )
    return stored


def _check_places(path: Path, tensors: dict[str, Stored], data: int, total: int) -> None:
    end, last = data, None
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if stored.start != end:
            what = "overlaps" if stored.start < end else "leaves a gap after"
            other = f"'{last}'" if last else "the header"
            raise InputError(f"{path}: tensor '{name}' {what} {other}; the header lies")
        end, last = stored.start + stored.nbytes, name
    if end != total:
        what = "is truncated" if end > total else "has bytes that no tensor owns"
        raise InputError(
            f"{path} {what}: {total} bytes, expected {end} by its header; copy it again"
        )


def check_places(
    index: Path, weight_map: Mapping[str, object], tensors: Mapping[str, Stored]
) -> None:
    """Compare the files that an index names with those that tensors are in.

    Raises
    ------
    InputError
        If a tensor is not where the index says, or the index leaves one out.
    """
    for name, file in weight_map.items():
        stored = tensors.get(name)
        if stored is None or stored.path != index.parent / str(file):
            raise InputError(
                f"{index}: tensor '{name}' should be in {file}, and is not; copy the model again"
            )
    extra = sorted(tensors.keys() - weight_map.keys())
    if extra:
        raise InputError(
            f"{index} leaves out tensor '{extra[0]}', of {len(extra)} in its files; copy the model "
            "again"
        )
