"""Checkpoints on disk: folder, index and headers read strictly, tensors by name, copies written."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import math
import os
import pickle
import shutil
import struct
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from lens.arrays import Array
from lens.errors import InputError
from lens.models.offload import release
from lens.utils.hashing import checksum_of_sample

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


_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
HEADS = ("lm_head.weight", "embed_out.weight")
"""How the names of output embeddings end."""

_CONV1D = ("c_attn.weight", "q_attn.weight", "c_proj.weight", "c_fc.weight")
_OLD = ("pytorch_model.bin.index.json", "pytorch_model.bin")


class Files:
    """Open files, read at any place by any thread."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, stored: Stored, start: int, stop: int, room: Array) -> Array:
        """Read elements ``start`` to ``stop`` of a tensor into ``room``, raw.

        Parameters
        ----------
        room : numpy.ndarray, uint8
            At least as many bytes as are read.

        Returns
        -------
        numpy.ndarray
            A view of the room in the storage dtype of the tensor.

        Raises
        ------
        InputError
            If the file ends before; it was complete when its header was checked.
        """
        size = stored.kind.size
        view = room[: (stop - start) * size]
        at, left = stored.start + start * size, view.data
        while left.nbytes:
            count = os.preadv(self._handle(stored.path), [left], at)
            if count == 0:
                raise InputError(f"{stored.path} became shorter while it was read; copy it again")
            at, left = at + count, left[count:]
        return view.view(stored.kind.storage)

    def _handle(self, path: Path) -> int:
        handle = self._handles.get(path)
        if handle is None:
            with self._lock:
                if path not in self._handles:
                    self._handles[path] = _opened(path)
                handle = self._handles[path]
        return handle

    def close(self) -> None:
        """Close all of them."""
        while self._handles:
            os.close(self._handles.popitem()[1])


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; it was there when its header was read"
        ) from None


class Checkpoint:
    """Tensors and configuration of a folder; nothing but headers is read until `Files.read`.

    Parameters
    ----------
    folder : Path
        Hugging Face checkpoint: safetensors files, whole or sharded, or ``pytorch_model.bin``.

    Raises
    ------
    InputError
        If there is no checkpoint, a shard is missing, or a header cannot be believed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _json(folder / "config.json")
        self.headers: dict[Path, str] = {}  # file -> SHA-256 of its header
        self.tensors: dict[str, Stored] = {}
        old = next((folder / name for name in _OLD if (folder / name).is_file()), None)
        if (folder / _INDEX).is_file():
            self._read_index(folder / _INDEX)
        elif (folder / _WHOLE).is_file():
            self._add([folder / _WHOLE])
        elif found := sorted(folder.glob("*.safetensors")):
            self._add(found)
        elif old is not None:
            self.tensors, self.headers = read_bins(old)
        else:
            raise InputError(f"{folder} holds no *.safetensors and no pytorch_model.bin")
        if (folder / "adapter_config.json").is_file() and any(".lora_" in n for n in self.tensors):
            raise InputError(f"{folder} is an adapter; name it with its model, MODEL+{folder}")
        for name in self.tied_copies():
            del self.tensors[name]

    def _add(self, paths: list[Path]) -> None:
        for path in paths:
            header: Header = read_header(path)
            self.headers[path] = hashlib.sha256(header.raw).hexdigest()
            for name, stored in header.tensors.items():
                if name in self.tensors:
                    other = self.tensors[name].path.name
                    raise InputError(
                        f"{path}: tensor '{name}' is in {other} too; remove one of them"
                    )
                self.tensors[name] = stored

    def _read_index(self, path: Path) -> None:
        weight_map = _json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{path} has no weight_map; expected file names by tensor")
        files = sorted({str(name) for name in weight_map.values()})
        missing = [name for name in files if not (path.parent / name).is_file()]
        if missing:
            raise InputError(f"{path.parent}: shard {', '.join(missing)} is missing; copy it again")
        self._add([path.parent / name for name in files])
        check_places(path, weight_map, self.tensors)

    @functools.cached_property
    def tied(self) -> bool | None:
        """Whether output and input embedding are one matrix; None if the config does not say."""
        text = self.config.get("text_config")
        for config in (self.config, text if isinstance(text, dict) else {}):
            if isinstance(config.get("tie_word_embeddings"), bool):
                return bool(config["tie_word_embeddings"])
        return None

    def is_conv1d(self, name: str) -> bool | None:
        """Whether a weight is stored as (in, out), as Conv1D of GPT-2 does; None: not known."""
        kind = self.config.get("model_type")
        return name.endswith(_CONV1D) if kind == "gpt2" else None

    def tied_copies(self) -> list[str]:
        """Tensors that are stored although the model ties them to the input embedding."""
        inputs = [name for name in self.tensors if _is_input_embedding(name)]
        if not self.tied or not inputs:
            return []
        shapes = {self.tensors[name].shape for name in inputs}
        return [
            name for name in self.tensors
            if name.endswith(HEADS) and self.tensors[name].shape in shapes
        ]  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Sizes, times and hashes of its files: they say whether it is still the same."""
        return {
            path.name: identity_of(path) | {"header_sha256": digest}
            for path, digest in sorted(self.headers.items())
        }


def identity_of(path: Path) -> dict[str, Any]:
    """Size and time of a file, and a hash of 64 blocks of it."""
    about = path.stat()
    return {
        "bytes": about.st_size,
        "modified_ns": about.st_mtime_ns,
        "sample_xxh64": checksum_of_sample(path),
    }


def _is_input_embedding(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight",
                          "word_embeddings.weight"))  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def room(n_bytes: int) -> Array:
    """Memory to read into, aligned for every dtype."""
    return np.empty((n_bytes + 7) // 8, np.uint64).view(np.uint8)


_SAMPLE = 64  # elements of each tensor that are compared with the source
_SAVED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Weights in other formats, and files that tell of the source and not of the result.
_LEFT_OUT = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf",
    ".index.json", ".md", ".jsonl", ".log", ".png", ".jpg",
)  # fmt: skip
_LEFT_OUT_NAMES = ("reproduce.json",)
_FICLONE = 0x40049409


class SourceCheckpoint:
    """The safetensors checkpoint that a model was loaded from, if the model still agrees with it.

    Parameters
    ----------
    folder : Path
        Hugging Face checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = sorted(folder.glob("*.safetensors"))
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self.files = sorted({folder / name for name in weight_map.values()})
        elif (folder / "model.safetensors").is_file():
            self.files = [folder / "model.safetensors"]
        self.tensors = {
            name: stored
            for file in self.files
            for name, stored in read_header(file).tensors.items()
        }

    @classmethod
    def of(cls, model: Any, band: Mapping[str, Tensor]) -> SourceCheckpoint | None:
        """Find the checkpoint of a model whose parameters ``band`` were changed.

        Returns None when there is none on this machine, when it names or shapes the changed
        tensors in another way, or when any other parameter is not what it holds.
        """
        folder = source_folder(model)
        if folder is None:
            return None
        try:
            found = cls(folder)
        except (OSError, ValueError, KeyError, InputError):
            return None
        return found if found.files and found._agrees(model, band) else None

    def name_of(self, parameter: str, prefix: str) -> str | None:
        """Name of a parameter's tensor: with or without the prefix of the base model."""
        for name in (parameter, parameter.removeprefix(f"{prefix}."), f"{prefix}.{parameter}"):
            if name in self.tensors:
                return name
        return None

    def _agrees(self, model: Any, band: Mapping[str, Tensor]) -> bool:
        prefix = getattr(model, "base_model_prefix", "")
        for name, parameter in model.named_parameters():
            stored = self.name_of(name, prefix)
            if stored is None and name not in band:
                continue  # renamed or put together when it is loaded: taken over unseen
            if stored is None:
                return False
            place = self.tensors[stored]
            if place.shape != tuple(parameter.shape) or place.dtype not in _SAVED_DTYPES:
                return False
            if name not in band:
                same = _same(parameter, place)
                release([parameter])
                if not same:
                    return False
        return True

    def stores(self, model: Any, band: Mapping[str, Tensor]) -> bool:
        """Whether the tensors of ``band`` are stored in the dtype they have in the model."""
        prefix = getattr(model, "base_model_prefix", "")
        places = {name: self.tensors[self.name_of(name, prefix) or name] for name in band}
        return all(_SAVED_DTYPES[place.dtype] == band[name].dtype for name, place in places.items())

    def write(self, out: Path, model: Any, band: Mapping[str, Tensor]) -> list[str]:
        """Write the checkpoint with ``band`` in place into the folder ``out``.

        Tensors keep the dtype that the source stores them in.

        Returns
        -------
        list of str
            Names of the files that are not the source's own.
        """
        prefix = getattr(model, "base_model_prefix", "")
        changed: dict[Path, list[tuple[Stored, Tensor]]] = {}
        for name, weights in band.items():
            place = self.tensors[self.name_of(name, prefix) or name]
            changed.setdefault(place.path, []).append((place, weights))
        for file in self.files:
            target = out / file.name
            if file not in changed:
                take_over(file, target)
                continue
            copy_file(file, target)
            with target.open("r+b") as opened:
                for place, weights in changed[file]:
                    opened.seek(place.start)
                    opened.write(_bytes(weights.to(_SAVED_DTYPES[place.dtype])))
                opened.flush()
                os.fsync(opened.fileno())
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            shutil.copyfile(index, out / index.name)
        return sorted(file.name for file in changed)

    def write_rest(self, out: Path) -> None:
        """Copy configuration, tokenizer, template and code byte for byte."""
        for item in sorted(self.folder.iterdir()):
            if item.is_dir():
                if item.name == "additional_chat_templates":
                    shutil.copytree(item, out / item.name)
                continue
            left_out = item.name.endswith(_LEFT_OUT) or item.name in _LEFT_OUT_NAMES
            if not left_out and not item.name.startswith("."):
                shutil.copyfile(item, out / item.name)


def source_folder(model: Any) -> Path | None:
    """Folder of the checkpoint a model was loaded from, local or in the hub's cache."""
    name = str(getattr(model, "name_or_path", "") or "")
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name).resolve()
    from transformers.utils.hub import cached_file

    revision = getattr(model.config, "_commit_hash", None)
    if revision is None:
        return None
    try:
        found = cached_file(name, "config.json", revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def take_over(source: Path, target: Path) -> None:
    """Give a file a second name: a clone, else a hard link, else a copy.

    A clone shares its content until one of the two is written; a hard link is the same file, so
    neither may be written in place.
    """
    source = source.resolve()
    if _cloned(source, target):
        return
    try:
        os.link(source, target)
    except OSError:  # another device, or a file system without links
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file, sharing its blocks where the file system can."""
    source = source.resolve()
    if not _cloned(source, target):
        shutil.copyfile(source, target)


def _cloned(source: Path, target: Path) -> bool:
    """Clone a file where the system and the file system can (Linux: btrfs, xfs, …)."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


def _same(parameter: Tensor, place: Stored) -> bool:
    """Whether evenly spread elements of a parameter are those the file holds."""
    dtype = _SAVED_DTYPES[place.dtype]
    stored = torch.from_file(
        str(place.path),
        shared=False,
        size=(place.start + parameter.numel() * dtype.itemsize),
        dtype=torch.uint8,
    )[place.start :]
    flat = parameter.detach().reshape(-1)
    step = max(flat.numel() // _SAMPLE, 1)
    at = torch.arange(0, flat.numel(), step)[:, None] * dtype.itemsize
    found = stored[(at + torch.arange(dtype.itemsize)).reshape(-1)].view(dtype)
    mine = flat[::step].to("cpu")
    return bool((found.to(mine.dtype) == mine).all())


def _bytes(tensor: Tensor) -> Any:
    """Content of a tensor, as something a file can write."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
