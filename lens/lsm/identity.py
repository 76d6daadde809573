"""What a run is: everything that decides its result, and how two runs differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lens.lsm.config import LensConfig
from lens.lsm.geometry import Geometry
from lens.models.fingerprint import tokenizer_sha256

if TYPE_CHECKING:
    from lens.lsm.training import LensTrainer

_SHOWN = 8
# What a run is given besides its settings and its rows.
INPUTS = ("model", "dtype", "tokenizer", "subspaces", "processes")


def identity(
    trainer: LensTrainer,
    config: LensConfig,
    *,
    strength: dict[str, float],
    seed: int,
    geometry: Mapping[str, Geometry] | None,
) -> dict[str, Any]:
    """Collect what decides a run's result, as plain JSON values.

    The model must hold the weights that training starts from. ``geometry`` is the one given in
    place of the space's own, if any.
    """
    return {
        "model": trainer.fingerprint,
        "dtype": str(trainer.model.dtype).removeprefix("torch."),
        "tokenizer": None if trainer.tokenizer is None else tokenizer_sha256(trainer.tokenizer),
        "space": trainer.space.sha256,
        **trainer.trainable.to_dict(),
        "parameters": _sha256(name.encode() for name in trainer.parameters),
        "losses": config.model_dump(mode="json"),
        "strength": strength,
        "seed": seed,
        **trainer.inputs,
        "subspaces": None if geometry is None else _geometry_sha256(geometry),
        "processes": trainer.processes.count,
    }


def rows_sha256(rows: Sequence[Sequence[int]]) -> str:
    """Hash encoded rows, borders included."""
    return _sha256(" ".join(map(str, row)).encode() for row in rows)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which values of two identities differ, one line each."""
    old, new = dict(_flat(before)), dict(_flat(now))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        is_hash = "sha256" in key or key in ("space", "tokenizer", "parameters", "subspaces")
        change = "another one" if is_hash else f"was {old.get(key)}, is now {new.get(key)}"
        lines.append(f"{key.removesuffix('.sha256').removesuffix('.weights_sha256')}: {change}")
    lines = list(dict.fromkeys(lines))
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]
    return lines


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{i}")
    else:
        yield key, value


def _geometry_sha256(geometry: Mapping[str, Geometry]) -> str:
    def parts() -> Iterator[bytes]:
        for site, at in sorted(geometry.items()):
            yield site.encode()
            for tensor in (at.basis, at.agnostic, *(at.step[lang] for lang in sorted(at.step))):
                yield _bytes(tensor)

    return _sha256(parts())


def _bytes(tensor: Tensor) -> bytes:
    content: bytes = tensor.detach().cpu().contiguous().numpy().tobytes()
    return content


def _sha256(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
