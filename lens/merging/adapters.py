"""A PEFT LoRA adapter as a delta of weights, computed row by row (arXiv 2106.09685)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.errors import InputError
from lens.merging.tensors import as_float32
from lens.models.checkpoint import HEADS, Checkpoint, Files, Stored, read_header, read_pickled

Float32 = NDArray[np.float32]

_FILES = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))"
)
# Initialisations that leave the base as it is; PiSSA, OLoRA, LoftQ and others subtract from it.
_HARMLESS = ("true", "false", "gaussian", "eva", "orthogonal")
# Settings that change what the adapter computes beyond B A.
_REFUSED = (
    *("use_dora", "lora_bias", "target_parameters", "megatron_config", "use_qalora"),
    *("arrow_config", "layer_replication", "trainable_token_indices"),
)


@dataclass(frozen=True, slots=True)
class Factors:
    """One adapted weight: scale B A, transposed for embeddings and Conv1D."""

    a: Stored  # (r, in)
    b: Stored  # (out, r)
    scale: float  # alpha / r, or alpha / √r
    transposed: bool  # the weight is stored as (in, out)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that this is added to."""
        n, d = self.b.shape[0], self.a.shape[1]
        return (d, n) if self.transposed else (n, d)

    @property
    def bytes_held(self) -> int:
        """Bytes held while rows are computed: factors as stored, in float32, and transposed."""
        return 12 * (self.a.size + self.b.size)

    def rows(self, files: Files, first: int, last: int) -> Float32:
        """Rows ``first`` to ``last`` of the delta."""
        a = _matrix(files, self.a)
        if self.transposed:
            left, across = a.T[first:last], _matrix(files, self.b)
        else:
            left, across = _matrix(files, self.b, first, last), a.T
        rows = np.empty((len(left), len(across)), np.float32)
        # The bits of NumPy's product depend on the number of cores.
        _core.matmul_nt(rows, np.ascontiguousarray(left), np.ascontiguousarray(across))
        rows *= np.float32(self.scale)
        return rows


class Adapter:
    """Low-rank deltas by the name of their weight, and the weights it replaces.

    Raises InputError if the folder is no LoRA adapter, changes weights that the base lacks, or is
    more than a low-rank delta, such as DoRA.
    """

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        self.folder, self._base = folder, base
        self._settings = self._read_settings()
        self.files = folder / "adapter_config.json", _weights(folder)
        self.factors: dict[str, Factors] = {}
        self.replaced: dict[str, Stored] = {}
        pairs: dict[str, dict[str, tuple[Stored, bool]]] = {}
        for name, stored in _tensors(self.files[1]).items():
            match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
            if match is None:
                self._replace(name.removeprefix(_PREFIX), stored)
                continue
            side = match["linear"] or match["embedding"]
            pairs.setdefault(match["module"], {})[side] = (stored, match["embedding"] is not None)
        for module, sides in pairs.items():
            self._pair(module, sides)

    def _read_settings(self) -> dict[str, Any]:
        path = self.folder / "adapter_config.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); expected a PEFT adapter") from None
        if settings.get("peft_type") != "LORA":
            raise InputError(f"{path}: peft_type {settings.get('peft_type')}, expected LORA")
        used = [key for key in _REFUSED if settings.get(key)]
        if used or settings.get("bias", "none") != "none":
            raise InputError(
                f"{path}: {', '.join(used) or 'bias'} is more than a low-rank difference; "
                "merge the adapter into its model with peft first"
            )
        begun = str(settings.get("init_lora_weights", True))
        if begun.lower() not in _HARMLESS:
            raise InputError(
                f"{path}: init_lora_weights {begun} changed the base model too; save the adapter "
                "with path_initial_model_for_weight_conversion, or merge it with peft first"
            )
        return dict(settings)

    def _replace(self, name: str, stored: Stored) -> None:
        plain = name
        for wrapping in (".modules_to_save.default.", ".modules_to_save.", ".base_layer."):
            plain = plain.replace(wrapping, ".")
        self._refuse_tied(plain)
        found = self._base.tensors.get(plain)
        if found is None or found.shape != stored.shape:
            raise InputError(
                f"{self.folder}: '{name}' is no LoRA factor and no weight of {self._base.folder}; "
                "is this the model it was trained on?"
            )
        self.replaced[plain] = stored

    def _refuse_tied(self, name: str) -> None:
        if self._base.tied and name.endswith(HEADS) and name not in self._base.tensors:
            raise InputError(
                f"{self.folder}: changes '{name}', which {self._base.folder} ties to its input "
                "embedding; merge the adapter with peft into an untied model first"
            )

    def _pair(self, module: str, sides: dict[str, tuple[Stored, bool]]) -> None:
        name = f"{module}.weight"
        self._refuse_tied(name)
        weight = self._base.tensors.get(name)
        if len(sides) < 2 or weight is None:
            what = f"one factor of '{name}'" if len(sides) < 2 else f"'{name}', which is not"
            where = "only" if len(sides) < 2 else f"in {self._base.folder}"
            raise InputError(f"{self.folder}: adapts {what} {where}; is this the right base model?")
        (a, embedding), (b, _) = sides["A"], sides["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise InputError(
                f"{self.folder}: factors {a.shape} and {b.shape} of '{name}' do not fit"
            )
        # peft has one fan_in_fan_out for all layers, although Conv1D and Linear are mixed.
        conv1d = self._base.is_conv1d(name)
        by_setting = bool(self._settings.get("fan_in_fan_out")) if conv1d is None else conv1d
        transposed = embedding or by_setting
        made = Factors(a, b, self._scale(module, a.shape[0]), transposed)
        if made.shape != weight.shape:
            raise InputError(
                f"{self.folder}: adapts '{name}' as {made.shape}, but it is {weight.shape} in "
                f"{self._base.folder}; is this the right base model?"
            )
        self.factors[name] = made

    def _scale(self, module: str, rank: int) -> float:
        def by_pattern(kind: str, default: Any) -> float:
            for pattern, value in (self._settings.get(kind) or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return float(value)
            return float(default)

        r = by_pattern("rank_pattern", self._settings.get("r", rank))
        if int(r) != rank:
            raise InputError(f"{self.folder}: '{module}' has rank {rank}, its config says {int(r)}")
        alpha = by_pattern("alpha_pattern", self._settings.get("lora_alpha", rank))
        return alpha / (math.sqrt(r) if self._settings.get("use_rslora") else r)


def _weights(folder: Path) -> Path:
    return next((path for name in _FILES if (path := folder / name).is_file()), folder / _FILES[0])


def _tensors(path: Path) -> dict[str, Stored]:
    return (read_pickled if path.suffix == ".bin" else read_header)(path).tensors


def _matrix(files: Files, stored: Stored, first: int = 0, last: int | None = None) -> Float32:
    """Rows ``first`` to ``last`` of a matrix, all by default."""
    n, d = stored.shape
    start, stop = first * d, (n if last is None else last) * d
    raw = files.read(stored, start, stop, np.empty((stop - start) * stored.kind.size, np.uint8))
    return as_float32(raw, stored.kind).reshape(-1, d)
