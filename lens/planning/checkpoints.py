"""What a checkpoint holds, from its config, index and safetensors headers; no weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens.errors import InputError
from lens.models.checkpoint import Stored, read_header

INDEX = "model.safetensors.index.json"
FLOATING = ("F16", "BF16", "F32", "F64")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_OTHER_WEIGHTS = ("pytorch_model*.bin", "*.pt", "*.gguf", "*.msgpack", "*.h5")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(slots=True)
class CheckpointInfo:
    """A model folder, or a config alone, as far as it can be known without its weights.

    Attributes
    ----------
    path : Path
        The folder, or the config file.
    config : dict
        Content of ``config.json``.
    tensors : dict of str to Stored
        Every tensor in the safetensors files; empty for a config alone.
    files : dict of str to int
        Bytes of each weight file.
    problems : list of str
        Everything that is wrong with the files, in no more than a line each.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Stored] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the config lies."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the config that describes the text stack."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def dtype(self) -> str:
        """Floating dtype that holds most bytes, or the config's, as safetensors names it."""
        held: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype in FLOATING:
                held[tensor.dtype] = held.get(tensor.dtype, 0) + tensor.nbytes
        if held:
            return max(held, key=lambda name: held[name])
        said = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        return {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}.get(str(said), "F32")

    def tokenizer_files(self) -> list[str]:
        """Names of tokenizer files beside the config."""
        return [name for name in _TOKENIZERS if (self.folder / name).is_file()]

    @property
    def tokenizer_bytes(self) -> int:
        """Bytes of the tokenizer's file that loading it prefers; 0 without one."""
        names = self.tokenizer_files()
        return (self.folder / names[0]).stat().st_size if names else 0

    def has_template(self) -> bool:
        """Whether the tokenizer comes with a chat template."""
        if any((self.folder / name).exists() for name in _TEMPLATES):
            return True
        try:
            text = (self.folder / "tokenizer_config.json").read_text(encoding="utf-8")
            return bool(json.loads(text).get("chat_template"))
        except (OSError, ValueError, AttributeError):
            return False


def read_checkpoint(path: str | Path) -> CheckpointInfo:
    """Read config, index and headers of a checkpoint.

    Parameters
    ----------
    path : str or Path
        Folder of a Hugging Face checkpoint, a folder with a ``config.json`` alone, a config file
        of any name, or a hub id that is in the local cache.

    Returns
    -------
    Checkpoint
        With everything that is wrong in ``problems``.

    Raises
    ------
    InputError
        If there is no config to begin with.
    """
    place = _place(str(path))
    file = place / "config.json" if place.is_dir() else place
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"'{path}' is not a model: it has no config.json; expected a Hugging Face checkpoint, "
            "or the path of a config file"
        ) from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}; expected a model's config") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} holds a {type(config).__name__}; expected an object")
    found = CheckpointInfo(place, config)
    if place.is_dir():
        _read_weights(found)
    return found


def _place(name: str) -> Path:
    """Folder or file that a name means; a hub id is looked up in the cache, never fetched."""
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


def _read_weights(found: CheckpointInfo) -> None:
    folder = found.folder
    names = sorted(item.name for item in folder.glob("*.safetensors"))
    index = _index(found)
    if index is not None:
        names = sorted(set(index.values()))
    elif "model.safetensors" in names:
        names = ["model.safetensors"]
    damaged: set[str] = set()
    for name in names:
        file = folder / name
        if not file.is_file():
            lost = [t for t, f in (index or {}).items() if f == name]
            found.problems.append(f"{name} is missing; the index keeps {_listed(lost)} in it")
            continue
        found.files[name] = file.stat().st_size
        try:
            header = read_header(file)
        except InputError as error:
            found.problems.append(str(error))
            damaged.add(name)
            continue
        for tensor, stored in header.tensors.items():
            if tensor in found.tensors:
                other = found.tensors[tensor].path.name
                found.problems.append(f"{tensor} is in two files, {other} and {name}")
            found.tensors[tensor] = stored
    if index is not None:
        _check_index(found, {k: file for k, file in index.items() if file not in damaged})
    if not names:
        others = [item.name for kind in _OTHER_WEIGHTS for item in folder.glob(kind)]
        if others:
            found.problems.append(
                f"weights are in {_listed(others)}, whose sizes cannot be told without reading "
                "them; convert them to safetensors"
            )


def _index(found: CheckpointInfo) -> dict[str, str] | None:
    file = found.folder / INDEX
    if not file.is_file():
        return None
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found.problems.append(f"{INDEX} cannot be read: {error!r}; expected a weight_map in it")
        return None


def _check_index(found: CheckpointInfo, index: dict[str, str]) -> None:
    there = {name: shard for name, shard in index.items() if shard in found.files}
    absent = [name for name in there if name not in found.tensors]
    if absent:
        found.problems.append(f"the index names {_listed(absent)}, which the files do not hold")
    unknown = [name for name in found.tensors if name not in index]
    if unknown:
        found.problems.append(f"the files hold {_listed(unknown)}, which the index does not name")
    moved = [
        n
        for n, shard in there.items()
        if n in found.tensors and found.tensors[n].path.name != shard
    ]
    if moved:
        found.problems.append(f"the index looks for {_listed(moved)} in another file than holds it")


def _listed(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "nothing"
