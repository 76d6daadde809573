"""What is merged: checkpoints, and checkpoints with an adapter on them, by slices of tensors."""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens.arrays import Array
from lens.errors import InputError
from lens.maec.checkpoint import Checkpoint, Files, identity_of
from lens.maec.decoding import as_float32, is_8_bit
from lens.stored import Stored

if TYPE_CHECKING:
    from lens.maec.adapter import Adapter


class Source(ABC):
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


class ModelSource(Source):
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
            from lens.maec.adapter import Adapter

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
