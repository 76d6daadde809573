"""A checkpoint in the Hugging Face layout: its tensors by name, wherever they lie."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from lens.arrays import Array
from lens.checksums import checksum_of_sample
from lens.errors import InputError
from lens.stored import Header, Stored, check_places, read_header

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
            from lens.maec.pickled import read_bins

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
