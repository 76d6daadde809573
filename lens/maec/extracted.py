"""Files of an extracted ability: its elements and their changes, sparse, in safetensors.

For each tensor ``NAME`` that has any: ``NAME.values`` (float32), ``NAME.places`` (int32, within the
slice) and ``NAME.starts`` (int64, where each slice begins among them, and the end), so that a slice
is read without the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array
from lens.errors import InputError
from lens.maec.checkpoint import Files, identity_of, room
from lens.maec.sources import Source
from lens.maec.targets import SLICE, cuts_of
from lens.stored import Stored, read_header

SCHEMA = "lens.ability/1"


class ExtractedSource(Source):
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
        cuts = cuts_of(self._shapes[name].shape)
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
        begins = [cut.start for cut in cuts_of(self._shapes[name].shape)]
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
        File of `lens.maec.extract`.

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
