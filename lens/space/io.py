"""Read and write the file of a language space: safetensors, schema ``lens.space/1``."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lens.errors import InputError
from lens.pooling import table_from_arrays, table_to_arrays
from lens.space.provenance import Provenance
from lens.space.statistics import MomentsTable
from lens.utils.files import write_bytes, write_text

if TYPE_CHECKING:
    from lens.subspace import SubspaceResult

SCHEMA = "lens.space/1"
NAME = "space.safetensors"
"""What the file is called in a folder or a repository."""

Arrays = dict[str, NDArray[Any]]


def write_space(
    path: Path,
    table: MomentsTable,
    record: dict[str, Any],
    fits: "Mapping[str, SubspaceResult | str]",
) -> None:
    """Write a space: its statistics, and its fits for other readers."""
    arrays = _arrays(table)
    described: dict[str, Any] = {}
    for site, result in fits.items():
        if isinstance(result, str):
            described[site] = {"rank": None, "rank_reason": result}
            continue
        arrays[f"fit/{site}/basis"] = result.basis
        arrays[f"fit/{site}/singular_values"] = result.singular_values
        arrays[f"fit/{site}/agnostic"] = result.agnostic
        described[site] = {
            "rank": int(result.rank),
            "rank_reason": result.rank_reason,
            "singular_values": [float(value) for value in result.singular_values],
        }
    sha256 = content_sha256(table, record["about"])
    write(path, arrays, {**record, "sha256": sha256, "fits": described})


def read_space(path: Path) -> tuple[MomentsTable, Provenance]:
    """Read what `write_space` wrote, without the fits, which follow from the statistics."""
    if path.is_dir():
        path = path / NAME
    arrays, content = read(path)
    moments = {name: array for name, array in arrays.items() if name.startswith("moments/")}
    try:
        found = table_from_arrays({k.removeprefix("moments/"): v for k, v in moments.items()})
        codes = content["languages"]
        table = {site: {code: found[site][code] for code in codes} for site in content["sites"]}
        # The content of the file is hashed, not what this version reads from it.
        if "sha256" in content and content["sha256"] != _digest(content["about"], moments):
            raise InputError(
                f"the content of '{path}' does not have the hash it was saved with: it was changed "
                "or damaged; copy or probe it again"
            )
        return table, Provenance.from_dict(content["about"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' is not a complete language space ({error} is missing); probe it again"
        ) from error


def content_sha256(table: MomentsTable, about: dict[str, Any]) -> str:
    """Hash of statistics and record: the same content gives the same hash."""
    return _digest(about, _arrays(table))


def _digest(about: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    text = json.dumps(about, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write(path: Path, arrays: Mapping[str, NDArray[Any]], about: dict[str, Any]) -> None:
    """Write arrays and their record, and a readable JSON twin, each in one atomic step."""
    if path.suffix == ".json":
        raise InputError(f"'{path}' would be overwritten by its JSON twin; use .safetensors")
    metadata = {"schema": SCHEMA, "about": json.dumps(about, ensure_ascii=False)}
    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=metadata)
    twin = json.dumps({"schema": SCHEMA, **about}, ensure_ascii=False, indent=2) + "\n"
    write_text(path.with_suffix(".json"), twin)
    write_bytes(path, content)


def read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read arrays and their record."""
    if not path.is_file():
        raise InputError(f"space '{path}' does not exist; make one with lens probe")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA:
                raise InputError(
                    f"'{path}' is not a language space: its schema is "
                    f"{metadata.get('schema')!r}; expected '{SCHEMA}'"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        return arrays, json.loads(metadata["about"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"'{path}' cannot be read as a language space (truncated or damaged: {error}); "
            "copy or probe it again"
        ) from error


def _arrays(table: MomentsTable) -> Arrays:
    # A slash separates: a site has a dot in its name and a language an underscore.
    return {f"moments/{key}": array for key, array in table_to_arrays(table).items()}
