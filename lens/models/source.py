"""Write a checkpoint as the difference from the one it was loaded from.

Training a band changes a few tensors. Every other file of the source checkpoint is taken over as
it is, by a link where the file system can; of the files that hold changed tensors a copy is made
and the changed bytes are overwritten in it, so order, metadata and layout stay the same and memory
never holds more than one tensor.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens.errors import InputError
from lens.models.residence import release
from lens.stored import Stored, read_header

_SAMPLE = 64  # elements of each tensor that are compared with the source
_DTYPES = {
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
            if place.shape != tuple(parameter.shape) or place.dtype not in _DTYPES:
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
        return all(_DTYPES[place.dtype] == band[name].dtype for name, place in places.items())

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
                    opened.write(_bytes(weights.to(_DTYPES[place.dtype])))
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
    dtype = _DTYPES[place.dtype]
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
