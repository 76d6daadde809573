"""``pytorch_model.bin`` files through a restricted reader: no code is run, torch is not needed.

Since torch 1.6 such a file is a zip archive: a pickle that says which storages its tensors view,
and each storage as plain bytes, not compressed. The pickle may name a handful of harmless types;
tensors are then read from their place in the file like any other.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lens.errors import InputError
from lens.stored import Stored, check_places

_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
_ADVICE = "save the model again with safetensors"
# What damaged archives and pickles raise, beside what says so.
_BROKEN = (
    zipfile.BadZipFile, StopIteration, LookupError, AttributeError, EOFError, OSError, TypeError,
    ValueError, ArithmeticError, RecursionError, MemoryError, RuntimeError, struct.error,
)  # fmt: skip
_LOCAL_HEADER = 30  # bytes of a file's header in a zip archive, before its name


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class _View:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _View:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("what it calls a tensor is none")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor has more strides than axes, or fewer")
    return _View(storage, offset, tuple(shape), tuple(strides))


def _parameter(view: Any, *_: Any) -> Any:
    return view


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 3:
            raise pickle.UnpicklingError("what it calls a storage is none")
        kind, dtype, key = pid[:3]
        if kind != "storage" or dtype not in _DTYPES.values():
            raise pickle.UnpicklingError(f"it holds a {kind} of {dtype}")
        return _Storage(dtype, str(key))


def read_bins(path: Path) -> tuple[dict[str, Stored], dict[Path, str]]:
    """Tensors of ``pytorch_model.bin``, or of the files its index names, and hashes of the pickles.

    Raises
    ------
    InputError
        If a file is none of these, names anything but tensors, or a shard is missing.
    """
    files, weight_map = [path], {}
    if path.name.endswith(".index.json"):
        try:
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            files = [path.parent / name for name in sorted(set(weight_map.values()))]
            weight_map = dict(weight_map)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} has no weight_map; expected file names by tensor") from None
    tensors: dict[str, Stored] = {}
    digests = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{file.parent}: shard {file.name} is missing; copy it again")
        found, digests[file] = _read(file)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise InputError(f"{file}: tensor '{twice[0]}' is in another file too")
        tensors |= found
    if files != [path]:
        check_places(path, weight_map, tensors)
    return tensors, digests


def _read(path: Path) -> tuple[dict[str, Stored], str]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            names = archive.namelist()
            root = next(name for name in names if name.endswith("/data.pkl")).rpartition("/")[0]
            raw = archive.read(f"{root}/data.pkl")
            with archive.open(f"{root}/data.pkl") as pickled:
                content = _Restricted(pickled).load()
            order = f"{root}/byteorder"
            if order in names and archive.read(order) != b"little":
                raise InputError(f"{path} holds big-endian numbers; {_ADVICE}")
            found = {
                str(name): _place(archive, file, root, path, str(name), view)
                for name, view in content.items()
            }
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors ({error}); {_ADVICE}") from None
    except _BROKEN as error:
        raise InputError(f"{path} is no complete file of torch.save ({error}); {_ADVICE}") from None
    return found, hashlib.sha256(raw).hexdigest()


def _place(
    archive: zipfile.ZipFile, file: IO[bytes], root: str, path: Path, name: str, view: Any
) -> Stored:
    """Where the bytes of a tensor lie in the archive."""
    if not isinstance(view, _View):
        raise InputError(f"{path}: '{name}' is a {type(view).__name__}, expected tensors only")
    stride, expected = 1, []
    for n in reversed(view.shape):
        expected.append(stride)
        stride *= n
    if any(
        n > 1 and have != want
        for n, have, want in zip(view.shape, view.strides, reversed(expected), strict=True)
    ):
        raise InputError(
            f"{path}: tensor '{name}' is not contiguous; save it again with safetensors"
        )
    entry = archive.getinfo(f"{root}/data/{view.storage.key}")
    file.seek(entry.header_offset)
    head = file.read(_LOCAL_HEADER)
    length = sum(int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
    start = entry.header_offset + _LOCAL_HEADER + length
    stored = Stored(path, view.storage.dtype, view.shape, start)
    stored = Stored(path, stored.dtype, stored.shape, start + view.offset * stored.kind.size)
    inside = view.offset >= 0 and stored.start + stored.nbytes <= start + entry.file_size
    if entry.compress_type != zipfile.ZIP_STORED or not inside:
        raise InputError(f"{path}: the bytes of tensor '{name}' are not all there; copy it again")
    return stored
