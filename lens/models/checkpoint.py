"""Checkpoints on disk: one reader of a folder, its index and headers; copies with new weights."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
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
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lens.arrays import Array
from lens.errors import InputError
from lens.utils.files import read_object
from lens.utils.hashing import checksum_of_sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype of the safetensors format."""

    size: int  # bytes of an element
    storage: str  # NumPy dtype of the raw bits
    name: str | None = None  # in the C core; None if it cannot compute with it

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
    **{f"I{8 * n}": Dtype(n, f"int{8 * n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": Dtype(n, f"uint{8 * n}") for n in (1, 2, 4, 8)},
    "BOOL": Dtype(1, "uint8"),
}
"""Dtypes by their names in a header."""

OUTPUTS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Dtypes that results can be rounded to, by the names that headers use."""


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
    """Place of a tensor in a file."""

    path: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]  # row-major
    start: int  # first byte


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a safetensors file: its tensors by name, its metadata, and its own bytes."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]
    raw: bytes


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; its tensors must fill the file exactly.

    Raises InputError if the file is truncated, or the header is not JSON or contradicts itself.
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


# === weights that torch.save wrote ================================================================
# Not torch.load(weights_only=True, mmap=True), which would break three promises of a merge: torch
# takes 200 MB before it reads anything, more than some merges are allowed; a mapped file that is
# cut short while it is read ends the process with a bus error, where `Files.read` raises; and
# merging works where torch is not installed.

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_ADVICE = "save the model again with safetensors"
# Errors that damaged archives and pickles raise.
_BROKEN = (
    *(zipfile.BadZipFile, struct.error, StopIteration, LookupError, AttributeError, TypeError),
    *(EOFError, OSError, ValueError, ArithmeticError, RecursionError, MemoryError, RuntimeError),
)
_LOCAL_HEADER = 30  # bytes of a file's header in a zip archive, before its name


class _Storage(NamedTuple):
    dtype: str
    key: str


class _View(NamedTuple):
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


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda view, *_: view,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
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
        if kind != "storage" or dtype not in _STORAGES.values():
            raise pickle.UnpicklingError(f"it holds a {kind} of {dtype}")
        return _Storage(dtype, str(key))


def read_pickled(path: Path) -> Header:
    """Locate the tensors of a file of ``torch.save``; nothing in its pickle is run.

    The ``raw`` bytes of the result are the pickle. Raises InputError if it is no such file, or
    holds anything but contiguous tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            names = archive.namelist()
            root = next(name for name in names if name.endswith("/data.pkl")).rpartition("/")[0]
            raw = archive.read(f"{root}/data.pkl")
            content = _Restricted(io.BytesIO(raw)).load()
            order = f"{root}/byteorder"
            if order in names and archive.read(order) != b"little":
                raise InputError(f"{path} holds big-endian numbers; {_ADVICE}")
            tensors = {
                str(name): _place(archive, file, root, path, str(name), view)
                for name, view in content.items()
            }
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors ({error}); {_ADVICE}") from None
    except _BROKEN as error:
        raise InputError(f"{path} is no complete file of torch.save ({error}); {_ADVICE}") from None
    return Header(tensors, {}, raw)


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


# === reading tensors ==============================================================================


class Files:
    """Open files, read at any place by any thread."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, stored: Stored, start: int, stop: int, buffer: Array) -> Array:
        """Read elements ``start`` to ``stop`` of a tensor, flat and raw.

        Returns a view of ``buffer``, uint8 and large enough, in the tensor's storage dtype; raises
        InputError if the file ends early: it was complete when its header was checked.
        """
        size = stored.kind.size
        view = buffer[: (stop - start) * size]
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


def aligned_buffer(n_bytes: int) -> Array:
    """Memory to read into, aligned for every dtype."""
    return np.empty((n_bytes + 7) // 8, np.uint64).view(np.uint8)


# === a folder =====================================================================================

INDEX = "model.safetensors.index.json"
FLOATING = ("F16", "BF16", "F32", "F64")
HEADS = ("lm_head.weight", "embed_out.weight")
"""Endings of the names of output embeddings."""

_WHOLE = "model.safetensors"
_PICKLED = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_OTHER_WEIGHTS = ("pytorch_model*.bin", "*.pt", "*.gguf", "*.msgpack", "*.h5")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_CONV1D = ("c_attn.weight", "q_attn.weight", "c_proj.weight", "c_fc.weight")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


class Checkpoint:
    """Configuration, index and headers of a Hugging Face checkpoint; no weight is read.

    Parameters
    ----------
    path : Path
        Folder of safetensors files, whole or sharded, or, where strict, of ``pytorch_model.bin``;
        where not strict, also the config file alone.
    strict : bool
        Whether to raise the first problem and leave out stored copies of tied embeddings, as a
        merge needs it; otherwise `problems` lists all of them.

    Attributes
    ----------
    folder : Path
        Where the config is.
    config : dict
        Content of ``config.json``.
    tensors : dict of str to Stored
        Every tensor by name; empty for a config alone.
    headers : dict of Path to str
        SHA-256 of the header of each weight file.
    files : dict of str to int
        Bytes of each weight file.
    problems : list of str
        Everything wrong with the files, one line each.

    Raises
    ------
    InputError
        If the config cannot be read; where strict, if there is no weight, a shard is missing, or a
        header cannot be trusted.
    """

    def __init__(self, path: Path, *, strict: bool = True) -> None:
        self.path, self.folder = path, path if path.is_dir() else path.parent
        self.config = _object(path / "config.json" if path.is_dir() else path)
        self.tensors: dict[str, Stored] = {}
        self.headers: dict[Path, str] = {}
        self.files: dict[str, int] = {}
        self.problems: list[str] = []
        if path.is_dir():
            self._read_weights(pickled=strict)
        if not strict:
            return
        if self.problems:
            raise InputError(self.problems[0])
        adapted = any(".lora_" in name for name in self.tensors)
        if adapted and (path / "adapter_config.json").is_file():
            raise InputError(f"{path} is an adapter; name it with its model, MODEL+{path}")
        for name in self.tied_copies():
            del self.tensors[name]

    def _read_weights(self, *, pickled: bool) -> None:
        names = sorted(item.name for item in self.folder.glob("*.safetensors"))
        if names or (self.folder / INDEX).is_file():
            return self._read_files(INDEX, [_WHOLE] if _WHOLE in names else names)
        others = [item.name for kind in _OTHER_WEIGHTS for item in self.folder.glob(kind)]
        if pickled and any((self.folder / name).is_file() for name in _PICKLED):
            self._read_files(_PICKLED[0], [_PICKLED[1]])
        elif pickled:
            self.problems.append(f"{self.folder} holds no *.safetensors and no pytorch_model.bin")
        elif others:
            self.problems.append(
                f"weights are in {_listed(others)}, whose sizes cannot be known without reading "
                "them; convert them to safetensors"
            )

    def _read_files(self, index: str, names: list[str]) -> None:
        """Read the headers of the files that an index names, else of ``names``."""
        path, weight_map = self.folder / index, dict[str, str]()
        if path.is_file():
            try:
                weight_map = _weight_map(path)
                names = sorted(set(weight_map.values()))
            except InputError as error:
                self.problems.append(str(error))
        for name in names:
            self._add(self.folder / name, [t for t, file in weight_map.items() if file == name])
        if weight_map:
            read = {file.name for file in self.headers}
            expected = {tensor: file for tensor, file in weight_map.items() if file in read}
            self.problems += _index_problems(path, expected, self.tensors)

    def _add(self, path: Path, expected: list[str]) -> None:
        """Add the tensors of a file; ``expected`` are those the index has in it."""
        if not path.is_file():
            self.problems.append(
                f"{path.parent}: shard {path.name} is missing; the index keeps {_listed(expected)} "
                "in it, copy it again"
            )
            return
        self.files[path.name] = path.stat().st_size
        try:
            header = read_pickled(path) if path.suffix == ".bin" else read_header(path)
        except InputError as error:
            self.problems.append(str(error))
            return
        self.headers[path] = hashlib.sha256(header.raw).hexdigest()
        for name in self.tensors.keys() & header.tensors.keys():
            other = self.tensors[name].path.name
            self.problems.append(f"{path}: tensor '{name}' is in {other} too; remove one of them")
        self.tensors |= header.tensors

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the config that describes the text stack."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """Floating dtype of most bytes, or that of the config, as safetensors names it."""
        held: collections.Counter[str] = collections.Counter()
        for tensor in self.tensors.values():
            if tensor.dtype in FLOATING:
                held[tensor.dtype] += tensor.nbytes
        if held:
            return max(held, key=lambda name: held[name])
        named = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        return OUTPUTS.get(str(named), "F32")

    @functools.cached_property
    def tied(self) -> bool | None:
        """Whether output and input embedding are one matrix; None if the config does not say."""
        for config in (self.config, self.text_config):
            if isinstance(config.get("tie_word_embeddings"), bool):
                return bool(config["tie_word_embeddings"])
        return None

    def is_conv1d(self, name: str) -> bool | None:
        """Whether a weight is stored as (in, out), as Conv1D of GPT-2 does; None: unknown."""
        kind = self.config.get("model_type")
        return name.endswith(_CONV1D) if kind == "gpt2" else None

    def tied_copies(self) -> list[str]:
        """List stored tensors that the model ties to the input embedding."""
        inputs = [name for name in self.tensors if name.endswith(_EMBEDDINGS)]
        if not self.tied or not inputs:
            return []
        shapes = {self.tensors[name].shape for name in inputs}
        heads = [name for name in self.tensors if name.endswith(HEADS)]
        return [name for name in heads if self.tensors[name].shape in shapes]

    def tokenizer_files(self) -> list[str]:
        """Names of tokenizer files beside the config."""
        return [name for name in _TOKENIZERS if (self.folder / name).is_file()]

    @property
    def tokenizer_bytes(self) -> int:
        """Bytes of the tokenizer file that is loaded first; 0 without one."""
        names = self.tokenizer_files()
        return (self.folder / names[0]).stat().st_size if names else 0

    def has_template(self) -> bool:
        """Whether the tokenizer comes with a chat template."""
        if any((self.folder / name).exists() for name in _TEMPLATES):
            return True
        content = read_object(self.folder / "tokenizer_config.json") or {}
        return bool(content.get("chat_template"))

    def identity(self) -> dict[str, Any]:
        """Sizes, times and hashes of its files, which tell whether it has changed."""
        return {
            path.name: identity_of(path) | {"header_sha256": digest}
            for path, digest in sorted(self.headers.items())
        }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read config, index and headers of a checkpoint, and list everything wrong with them.

    Parameters
    ----------
    path : str or Path
        Folder of a Hugging Face checkpoint, a folder with a ``config.json`` alone, a config file
        of any name, or a hub id that is in the local cache.

    Returns
    -------
    Checkpoint
        With all problems in ``problems``.

    Raises
    ------
    InputError
        If there is no config to begin with.
    """
    place = _cached(str(path))
    if place.is_dir() and not (place / "config.json").is_file():
        raise InputError(
            f"'{path}' is not a model: it has no config.json; expected a Hugging Face checkpoint, "
            "or the path of a config file"
        )
    return Checkpoint(place, strict=False)


def _cached(name: str) -> Path:
    """Folder or file of a model; a hub id is looked up in the cache, never fetched."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    repository, _, revision = name.partition("@")
    if not name.startswith((".", "/", "~")) and name.count("/") <= 1:
        try:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
        except (ImportError, ValueError):
            found = None
        if isinstance(found, str):
            return Path(found).parent
    raise InputError(
        f"'{name}' is neither a folder nor a file here, and not in the hub's cache; give a folder, "
        "or a config.json that you have downloaded or written"
    )


def _weight_map(path: Path) -> dict[str, str]:
    """File names by tensor, from an index file."""
    weight_map = _object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path} has no weight_map; expected file names by tensor")
    if not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{path}: weight_map holds what is no name; expected file names by tensor")
    return weight_map


def _index_problems(
    index: Path, expected: Mapping[str, str], tensors: Mapping[str, Stored]
) -> list[str]:
    """Compare the files that an index names with those that hold the tensors."""
    problems = []
    absent = [name for name in expected if name not in tensors]
    if absent:
        problems.append(
            f"{index}: the index names {_listed(absent)}, which the files do not hold; "
            f"'{absent[0]}' should be in {expected[absent[0]]}, copy the model again"
        )
    for name, file in expected.items():
        if name in tensors and tensors[name].path != index.parent / file:
            problems.append(
                f"{index}: tensor '{name}' should be in {file}, and is in "
                f"{tensors[name].path.name}; copy the model again"
            )
            break
    extra = sorted(tensors.keys() - expected.keys())
    if extra:
        problems.append(
            f"{index} leaves out tensor '{extra[0]}', of {len(extra)} in its files; copy the model "
            "again"
        )
    return problems


def identity_of(path: Path) -> dict[str, Any]:
    """Size and time of a file, and a hash of 64 blocks of it."""
    about = path.stat()
    return {
        "bytes": about.st_size,
        "modified_ns": about.st_mtime_ns,
        "sample_xxh64": checksum_of_sample(path),
    }


def _object(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object; empty if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected a JSON file") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _listed(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "nothing"


# === writing a checkpoint beside the one it came from =============================================

_SAMPLE = 64  # elements of each tensor that are compared with the source
_FICLONE = 0x40049409
# Weights in any format, and files that describe the source and not the result.
_LEFT_OUT = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"),
    *(".index.json", ".md", ".jsonl", ".log", ".png", ".jpg"),
)


def copy_rest(source: Path, out: Path, *, left_out: tuple[str, ...] = ()) -> None:
    """Copy configuration, tokenizer, template and code of a checkpoint byte for byte.

    ``left_out`` are further names and suffixes that are not copied.
    """
    left_out = (*left_out, "reproduce.json")
    for item in sorted(source.iterdir()):
        if item.is_dir():
            if item.name == "additional_chat_templates":
                shutil.copytree(item, out / item.name, dirs_exist_ok=True)
            continue
        skipped = item.name.startswith(".") or item.name.endswith(_LEFT_OUT)
        skipped = skipped or item.name in left_out or item.suffix in left_out
        if item.is_file() and not skipped:
            shutil.copyfile(item, out / item.name)


class SourceCheckpoint:
    """The safetensors checkpoint that a model was loaded from, if it still agrees with it."""

    def __init__(self, folder: Path) -> None:
        found = Checkpoint(folder, strict=False)
        if found.problems:
            raise InputError(found.problems[0])
        self.folder, self.tensors, self.files = folder, found.tensors, list(found.headers)

    @classmethod
    def of(cls, model: Any, changed: Mapping[str, Tensor]) -> SourceCheckpoint | None:
        """Find the checkpoint of a model whose parameters ``changed`` were trained.

        Returns None when there is none on this machine, when it names or shapes the changed
        tensors in another way, or when it differs in any other parameter.
        """
        folder = source_folder(model)
        if folder is None:
            return None
        try:
            found = cls(folder)
        except (OSError, InputError):
            return None
        return found if found.files and found._agrees(model, changed) else None

    def name_of(self, parameter: str, prefix: str) -> str | None:
        """Name of a parameter's tensor: with or without the prefix of the base model."""
        for name in (parameter, parameter.removeprefix(f"{prefix}."), f"{prefix}.{parameter}"):
            if name in self.tensors:
                return name
        return None

    def _agrees(self, model: Any, changed: Mapping[str, Tensor]) -> bool:
        from lens.models.offload import release

        prefix = getattr(model, "base_model_prefix", "")
        for name, parameter in model.named_parameters():
            stored = self.name_of(name, prefix)
            if stored is None and name not in changed:
                continue  # renamed or joined when loaded: its file is copied unseen
            if stored is None:
                return False
            place = self.tensors[stored]
            if place.shape != tuple(parameter.shape) or place.dtype not in FLOATING:
                return False
            if name not in changed:
                same = _same(parameter, place)
                release([parameter])
                if not same:
                    return False
        return True

    def _places(self, model: Any, changed: Mapping[str, Tensor]) -> list[tuple[Stored, Tensor]]:
        prefix = getattr(model, "base_model_prefix", "")
        return [
            (self.tensors[self.name_of(name, prefix) or name], weights)
            for name, weights in changed.items()
        ]

    def stores(self, model: Any, changed: Mapping[str, Tensor]) -> bool:
        """Whether the changed tensors are stored in the dtype they have in the model."""
        return all(
            _torch_dtype(at) == weights.dtype for at, weights in self._places(model, changed)
        )

    def write(self, out: Path, model: Any, changed: Mapping[str, Tensor]) -> list[str]:
        """Write the checkpoint with the changed tensors, in the stored dtype, into a folder.

        Returns the names of the files that differ from the source's.
        """
        rewritten: dict[Path, list[tuple[Stored, Tensor]]] = {}
        for place, weights in self._places(model, changed):
            rewritten.setdefault(place.path, []).append((place, weights))
        for file in self.files:
            target = out / file.name
            if file not in rewritten:
                take_over(file, target)
                continue
            copy_file(file, target)
            with target.open("r+b") as opened:
                for place, weights in rewritten[file]:
                    opened.seek(place.start)
                    opened.write(_bytes(weights.to(_torch_dtype(place))))
                opened.flush()
                os.fsync(opened.fileno())
        if (self.folder / INDEX).is_file():
            shutil.copyfile(self.folder / INDEX, out / INDEX)
        return sorted(file.name for file in rewritten)

    def write_rest(self, out: Path) -> None:
        """Copy configuration, tokenizer, template and code byte for byte."""
        copy_rest(self.folder, out)


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
    """Give a file a second name: a clone, else a hard link, else a copy; never write in place."""
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
    import torch

    dtype = _torch_dtype(place)
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
    """Content of a tensor as a buffer that a file can write."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _torch_dtype(stored: Stored) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, str(stored.kind.name))
    return dtype
