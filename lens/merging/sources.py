"""Inputs of a merge: checkpoints, adapters on checkpoints, extracted abilities, chunk by chunk."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lens.arrays import Array
from lens.errors import InputError
from lens.merging.tensors import SLICE, as_float32, chunks_of, is_8_bit
from lens.models.checkpoint import Checkpoint, Files, Stored, identity_of, read_header, room
from lens.training.key_neurons import KeyNeurons

if TYPE_CHECKING:
    from lens.merging.adapters import Adapter


class MergeSource(ABC):
    """Tensors by name, read slice by slice.

    Attributes
    ----------
    reference : str
        What the config calls it.
    checkpoint : Checkpoint or None
        None for what is no model, a file of changes.
    """

    reference: str
    checkpoint: Checkpoint | None

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Folders and files that it is read from, without links."""

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
        """Dtype that `read` gives, as safetensors names it: float32 for what is computed."""

    @abstractmethod
    def room_for(self, name: str, n: int) -> int:
        """Bytes of the room that `read` needs for ``n`` elements."""

    def extra_memory(self, name: str, n: int) -> int:
        """Bytes that reading ``n`` elements holds for a moment beside the room."""
        return 0

    @abstractmethod
    def read(self, name: str, start: int, stop: int, room: Array) -> Array:
        """Elements ``start`` to ``stop`` of a tensor, bfloat16 as raw bits in uint16.

        Parameters
        ----------
        room : numpy.ndarray, uint8
            Of `room_for` bytes, aligned to 8; the result is a view of it.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Sizes, times and hashes that say whether this is still the same."""


class ModelSource(MergeSource):
    """One model, with or without an adapter.

    Parameters
    ----------
    reference : str
        Folder or hub id, ``id@revision``, and ``model+adapter`` for a LoRA adapter on it.
    files : Files
        Where open files are kept.
    fetch : bool
        Whether to download what is not in the hub's cache.
    """

    def __init__(self, reference: str, files: Files, *, fetch: bool = False) -> None:
        model, adapter = _parts(reference)
        self.reference, self._files = reference, files
        self.model = self.checkpoint = Checkpoint(locate(model, fetch=fetch))
        self.adapter: Adapter | None = None
        if adapter:
            from lens.merging.adapters import Adapter

            self.adapter = Adapter(locate(adapter, fetch=fetch), self.model)

    @functools.cached_property
    def tensors(self) -> Mapping[str, Stored]:
        """Tensors by name; one that an adapter replaces is the adapter's."""
        found = dict(self.model.tensors)
        if self.adapter is not None:
            found |= self.adapter.replaced
        return found

    @property
    def files(self) -> list[Path]:
        """Folders and files that it is read from, without links."""
        folders = [self.model.folder, *([self.adapter.folder] if self.adapter else [])]
        return [path.resolve() for path in (*folders, *self.model.headers)]

    def _adapted(self, name: str) -> bool:
        return self.adapter is not None and name in self.adapter.factors

    def dtype_of(self, name: str) -> str:
        """Dtype that `read` gives, as safetensors names it: float32 for what is computed."""
        stored = self.tensors[name]
        return "F32" if self._adapted(name) or is_8_bit(stored.kind) else stored.dtype

    def room_for(self, name: str, n: int) -> int:
        """Bytes of the room that `read` needs for ``n`` elements."""
        stored = self.tensors[name]
        raw = n * stored.kind.size
        plain = not self._adapted(name) and not is_8_bit(stored.kind)
        return raw if plain else raw + _aligned(4 * n)

    def extra_memory(self, name: str, n: int) -> int:
        """Bytes that reading ``n`` elements holds for a moment beside the room."""
        if self.adapter is None or name not in self.adapter.factors:
            return 0
        return self.adapter.factors[name].bytes_held + 8 * n

    def read(self, name: str, start: int, stop: int, room: Array) -> Array:
        """Elements ``start`` to ``stop`` of a tensor, bfloat16 as raw bits in uint16.

        Parameters
        ----------
        room : numpy.ndarray, uint8
            Of `room_for` bytes, aligned to 8; the result is a view of it.
        """
        stored, n = self.tensors[name], stop - start
        if not self._adapted(name) and not is_8_bit(stored.kind):
            return self._files.read(stored, start, stop, room)
        raw = self._files.read(stored, start, stop, room[_aligned(4 * n) :])
        values = as_float32(raw, stored.kind, out=room[: 4 * n].view(np.float32))
        if self.adapter is not None and name in self.adapter.factors:
            columns = stored.shape[-1]
            rows = start // columns, stop // columns
            values += self.adapter.factors[name].rows(self._files, *rows).reshape(-1)
        return values

    def identity(self) -> dict[str, Any]:
        """Sizes, times and hashes of all its files."""
        found = self.model.identity()
        if self.adapter is not None:
            for path in self.adapter.files:
                found[path.name] = identity_of(path)
        return found


def _parts(reference: str) -> tuple[str, str]:
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
    """Folder of a model: a path, or a hub id that is in the cache or, with ``fetch``, on the hub.

    Raises
    ------
    InputError
        If it is neither.
    """
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
    """R(A) of an extracted ability, zero where it has no elements.

    Parameters
    ----------
    reference : str
        File.
    files : Files
        Where open files are kept.
    """

    checkpoint = None

    def __init__(self, reference: str, files: Files) -> None:
        self.reference, self._files = reference, files
        self._path = Path(reference).expanduser()
        header = read_header(self._path)
        self._digest = hashlib.sha256(header.raw).hexdigest()
        try:
            self.about: dict[str, Any] = json.loads(header.metadata["lens"])
            shapes = self.about["shapes"]
            known = self.about["schema"] == SCHEMA and self.about["slice_elements"] == SLICE
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
        """Tensors of the model it is of, also those that it leaves alone."""
        return self._shapes

    @property
    def files(self) -> list[Path]:
        """The file itself."""
        return [self._path.resolve()]

    def dtype_of(self, name: str) -> str:
        """Float32, always."""
        return "F32"

    def room_for(self, name: str, n: int) -> int:
        """All elements, zeros too."""
        return 4 * n

    def extra_memory(self, name: str, n: int) -> int:
        """Places and values of a slice, all of it at worst."""
        return 16 * n

    def read(self, name: str, start: int, stop: int, room: Array) -> Array:
        """Elements of one slice: changes, and zeros between them."""
        out = room[: 4 * (stop - start)].view(np.float32)
        out[:] = 0
        if f"{name}.starts" not in self._parts or stop == start:
            return out
        cuts = chunks_of(self._shapes[name].shape)
        number = start // cuts[0].stop
        if (cuts[number].start, cuts[number].stop) != (start, stop):
            raise InputError(f"{self._path}: elements {start} to {stop} of '{name}' are no slice")
        low, high = (int(n) for n in self._part(f"{name}.starts", number, number + 2))
        out[self._part(f"{name}.places", low, high)] = self._part(f"{name}.values", low, high)
        return out

    def places(self, name: str) -> NDArray[np.int64]:
        """Flat places of the elements that a tensor has, ascending."""
        if f"{name}.starts" not in self._parts:
            return np.empty(0, np.int64)
        starts = self._part(f"{name}.starts", 0, self._parts[f"{name}.starts"].shape[0])
        found = self._part(f"{name}.places", 0, int(starts[-1])).astype(np.int64)
        begins = [cut.start for cut in chunks_of(self._shapes[name].shape)]
        found += np.repeat(np.asarray(begins, np.int64), np.diff(starts))
        return found

    def _part(self, name: str, start: int, stop: int) -> Array:
        stored = self._parts[name]
        return self._files.read(stored, start, stop, room((stop - start) * stored.kind.size))

    def identity(self) -> dict[str, Any]:
        """Size, time and hashes of the file."""
        return {self._path.name: identity_of(self._path) | {"header_sha256": self._digest}}


class ExtractedKeys:
    """The places alone of an extracted ability: its key neurons; a context manager.

    Parameters
    ----------
    path : path
        File of `lens.merging.extract`.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Of all tensors of the model.
    sha256 : str
        Of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._files = Files()
        self._source = ExtractedSource(str(path), self._files)
        self.shapes = {name: stored.shape for name, stored in self._source.tensors.items()}
        self.sha256 = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()

    def __enter__(self) -> ExtractedKeys:
        return self

    def __exit__(self, *_error: object) -> None:
        self._files.close()

    def places(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Names and flat places, int64 and ascending, of tensors that have key elements."""
        for name in self.shapes:
            found = self._source.places(name)
            if found.size:
                yield name, found


def read_key_neurons(path: str | Path) -> KeyNeurons:
    """Read the places of a file of `lens.merging.extract`.

    Raises
    ------
    InputError
        If it is no such file.
    """
    with ExtractedKeys(path) as file:
        places = {name: torch.from_numpy(found) for name, found in file.places()}
        return KeyNeurons(places, dict(file.shapes), file.sha256)
