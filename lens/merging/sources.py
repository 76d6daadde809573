"""Inputs of a merge: checkpoints, adapters on checkpoints, extracted abilities, chunk by chunk."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array
from lens.errors import InputError
from lens.merging.adapters import Adapter
from lens.merging.tensors import SLICE, as_float32, chunks_of, is_8_bit
from lens.models.checkpoint import (
    Checkpoint,
    Files,
    Stored,
    aligned_buffer,
    identity_of,
    read_header,
)

if TYPE_CHECKING:
    from lens.training.key_neurons import KeyNeurons


class MergeSource(ABC):
    """Tensors by name, read chunk by chunk."""

    reference: str  # its name in the config
    checkpoint: Checkpoint | None  # None for a file of deltas, which is no model

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Folders and files that it is read from, links resolved."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Stored]:
        """Tensors by name."""

    def in_order(self) -> list[str]:
        """Names in the order in which the tensors are stored."""
        return sorted(
            self.tensors, key=lambda n: (str(self.tensors[n].path), self.tensors[n].start)
        )

    @abstractmethod
    def dtype_of(self, name: str) -> str:
        """Dtype that `read` returns, as safetensors names it: float32 for computed tensors."""

    @abstractmethod
    def buffer_bytes(self, name: str, n: int) -> int:
        """Bytes of the buffer that `read` needs for ``n`` elements."""

    def extra_memory(self, name: str, n: int) -> int:
        """Bytes that reading ``n`` elements holds temporarily, besides the buffer."""
        return 0

    @abstractmethod
    def read(self, name: str, start: int, stop: int, buffer: Array) -> Array:
        """Elements ``start`` to ``stop`` of a tensor, flat, bfloat16 as raw bits in uint16.

        The result is a view of ``buffer``: `buffer_bytes` of uint8, aligned to 8.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Sizes, times and hashes that tell whether it has changed."""


class ModelSource(MergeSource):
    """One model: a folder, a hub id, ``id@revision``, or ``model+adapter`` with a LoRA adapter.

    ``fetch`` says whether to download what is not in the hub's cache.
    """

    def __init__(self, reference: str, files: Files, *, fetch: bool = False) -> None:
        model, adapter = _split(reference)
        self.reference, self._files = reference, files
        self.model = self.checkpoint = Checkpoint(locate(model, fetch=fetch))
        self.adapter = Adapter(locate(adapter, fetch=fetch), self.model) if adapter else None
        self._factors = {} if self.adapter is None else self.adapter.factors

    @functools.cached_property
    def tensors(self) -> Mapping[str, Stored]:
        """Tensors by name; those that an adapter replaces are the adapter's."""
        return self.model.tensors | ({} if self.adapter is None else self.adapter.replaced)

    @property
    def files(self) -> list[Path]:
        """Folders and files that it is read from, links resolved."""
        folders = [self.model.folder, *([self.adapter.folder] if self.adapter else [])]
        return [path.resolve() for path in (*folders, *self.model.headers)]

    def _is_computed(self, name: str) -> bool:
        return name in self._factors or is_8_bit(self.tensors[name].kind)

    def dtype_of(self, name: str) -> str:
        """Dtype that `read` returns, as safetensors names it: float32 for computed tensors."""
        return "F32" if self._is_computed(name) else self.tensors[name].dtype

    def buffer_bytes(self, name: str, n: int) -> int:
        """Bytes of the buffer that `read` needs for ``n`` elements."""
        raw = n * self.tensors[name].kind.size
        return raw + _aligned(4 * n) if self._is_computed(name) else raw

    def extra_memory(self, name: str, n: int) -> int:
        """Bytes that reading ``n`` elements holds temporarily, besides the buffer."""
        return self._factors[name].bytes_held + 8 * n if name in self._factors else 0

    def read(self, name: str, start: int, stop: int, buffer: Array) -> Array:
        """Elements ``start`` to ``stop`` of a tensor; see `MergeSource.read`."""
        stored, n = self.tensors[name], stop - start
        if not self._is_computed(name):
            return self._files.read(stored, start, stop, buffer)
        raw = self._files.read(stored, start, stop, buffer[_aligned(4 * n) :])
        values = as_float32(raw, stored.kind, out=buffer[: 4 * n].view(np.float32))
        if name in self._factors:
            columns = stored.shape[-1]
            rows = start // columns, stop // columns
            values += self._factors[name].rows(self._files, *rows).reshape(-1)
        return values

    def identity(self) -> dict[str, Any]:
        """Sizes, times and hashes of all its files."""
        more = () if self.adapter is None else self.adapter.files
        return self.model.identity() | {path.name: identity_of(path) for path in more}


def _split(reference: str) -> tuple[str, str]:
    """Model and adapter; a plus sign may be part of the name of a folder."""
    words = reference.split("+")
    for i in range(len(words), 1, -1):
        model = "+".join(words[:i])
        if Path(model).expanduser().is_dir():
            return model, "+".join(words[i:])
    return words[0], "+".join(words[1:])


def _aligned(n: int) -> int:
    return (n + 7) // 8 * 8


def locate(model: str, *, fetch: bool) -> Path:
    """Folder of a model: a path, or a hub id in the cache or, with ``fetch``, on the hub."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    name, _, revision = model.partition("@")
    if model.count("/") != 1 or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"no model '{model}'; expected the folder of a checkpoint or a hub id")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"no folder '{model}', and hub ids need the package huggingface_hub"
        ) from None
    if not fetch:
        try:
            return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        except (OSError, ValueError):
            raise InputError(
                f"no folder '{model}', and it is not in the hub's cache; a merge would fetch it, a "
                f"plan does not: hf download {name}"
            ) from None
    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt", "*.py"]
    old = ["pytorch_model*.bin", "adapter_model.bin"]
    try:
        found = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
        if not any(found.glob("*.safetensors")):
            found = Path(snapshot_download(name, revision=revision or None, allow_patterns=old))
        return found
    except (OSError, ValueError) as error:
        raise InputError(f"no model '{model}', here or on the hub: {error}") from None


SCHEMA = "lens.ability/1"


class ExtractedSource(MergeSource):
    """R(A) of an extracted ability in a file, zero where it has no elements."""

    checkpoint = None

    def __init__(self, reference: str, files: Files) -> None:
        self.reference, self._files = reference, files
        self._path = Path(reference).expanduser()
        header = read_header(self._path)
        self._digest = hashlib.sha256(header.raw).hexdigest()
        try:
            about = json.loads(header.metadata["lens"])
            shapes = about["shapes"]
            known = about["schema"] == SCHEMA and about["slice_elements"] == SLICE
        except (KeyError, TypeError, ValueError):
            known, shapes = False, {}
        if not known:
            raise InputError(f"{self._path} is no file of this version's `lens extract`")
        self._parts = header.tensors
        self._shapes = {
            name: Stored(self._path, "F32", tuple(shape), 0) for name, shape in shapes.items()
        }

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Tensors of the model it was extracted from, including unchanged ones."""
        return self._shapes

    @property
    def files(self) -> list[Path]:
        """The file itself."""
        return [self._path.resolve()]

    def dtype_of(self, name: str) -> str:
        """Return F32, always."""
        return "F32"

    def buffer_bytes(self, name: str, n: int) -> int:
        """All elements, including zeros."""
        return 4 * n

    def extra_memory(self, name: str, n: int) -> int:
        """Places and values of a chunk, all of it at worst."""
        return 16 * n

    def read(self, name: str, start: int, stop: int, buffer: Array) -> Array:
        """Elements of one chunk: deltas, and zeros between them."""
        out = buffer[: 4 * (stop - start)].view(np.float32)
        out[:] = 0
        if f"{name}.starts" not in self._parts or stop == start:
            return out
        chunks = chunks_of(self._shapes[name].shape)
        number = start // chunks[0].stop
        if (chunks[number].start, chunks[number].stop) != (start, stop):
            raise InputError(f"{self._path}: elements {start} to {stop} of '{name}' are no chunk")
        low, high = (int(n) for n in self._part(f"{name}.starts", number, number + 2))
        out[self._part(f"{name}.places", low, high)] = self._part(f"{name}.values", low, high)
        return out

    def places(self, name: str) -> NDArray[np.int64]:
        """Flat places of the elements that a tensor has, ascending."""
        if f"{name}.starts" not in self._parts:
            return np.empty(0, np.int64)
        starts = self._part(f"{name}.starts", 0, self._parts[f"{name}.starts"].shape[0])
        found = self._part(f"{name}.places", 0, int(starts[-1])).astype(np.int64)
        begins = [chunk.start for chunk in chunks_of(self._shapes[name].shape)]
        found += np.repeat(np.asarray(begins, np.int64), np.diff(starts))
        return found

    def _part(self, name: str, start: int, stop: int) -> Array:
        stored = self._parts[name]
        buffer = aligned_buffer((stop - start) * stored.kind.size)
        return self._files.read(stored, start, stop, buffer)

    def identity(self) -> dict[str, Any]:
        """Size, time and hashes of the file."""
        return {self._path.name: identity_of(self._path) | {"header_sha256": self._digest}}


def read_key_neurons(path: str | Path) -> KeyNeurons:
    """Read the places of the key neurons in a file of `lens.merging.extract`.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    KeyNeurons

    Raises
    ------
    InputError
        If it is no such file.
    """
    import torch

    from lens.training.key_neurons import KeyNeurons

    files = Files()
    try:
        source = ExtractedSource(str(path), files)
        found = {name: source.places(name) for name in source.tensors}
    finally:
        files.close()
    return KeyNeurons(
        {name: torch.from_numpy(at) for name, at in found.items() if at.size},
        {name: stored.shape for name, stored in source.tensors.items()},
        hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest(),
    )
