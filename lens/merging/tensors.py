"""Data of a merge: output tensors, the chunks they are computed in, and their sources."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array
from lens.merging.config import Value
from lens.models.checkpoint import Dtype, Sized
from lens.weights import delta

Float32 = NDArray[np.float32]


@functools.cache
def _table(name: str) -> Float32:
    """Values of the 256 bit patterns of an 8-bit float (arXiv 2209.05433).

    E4M3 has no infinity: only S.1111.111 is NaN. E5M2 is half of an IEEE float16.
    """
    bits = np.arange(256, dtype=np.uint16)
    if name == "float8_e5m2":
        return (bits << 8).view(np.float16).astype(np.float32)
    exponent, fraction = (bits >> 3 & 15).astype(np.int32), (bits & 7).astype(np.float32)
    size = np.where(
        exponent > 0, np.ldexp(1 + fraction / 8, exponent - 7), np.ldexp(fraction / 8, -6)
    )
    size[(bits & 0x7F) == 0x7F] = np.nan
    return np.where(bits & 0x80, -size, size).astype(np.float32)


def is_8_bit(kind: Dtype) -> bool:
    """Whether elements are 8-bit floats, which NumPy and the C core do not know."""
    return kind.floating and kind.size == 1


def as_float32(raw: Array, kind: Dtype, *, out: Float32 | None = None) -> Float32:
    """Decode raw elements to float32, exactly but for float64.

    Parameters
    ----------
    raw : numpy.ndarray
        In the storage dtype.
    out : numpy.ndarray, float32, same shape, optional
        Where to write.
    """
    if is_8_bit(kind):
        found: Float32 = np.take(_table(kind.name or ""), raw, out=out, mode="clip")
        return found
    return delta(raw, out=out, dtype="bfloat16" if kind.name == "bfloat16" else None)


SLICE = 1 << 20
"""Elements of a slice; part of what decides a result, so reproduce.json names it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements ``start`` to ``stop`` of a tensor, its slice number ``number``."""

    number: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def chunks_of(shape: tuple[int, ...]) -> list[Chunk]:
    """Slices of a tensor: whole rows along its last axis, as many as make `SLICE` elements."""
    size, row = math.prod(shape), shape[-1] if len(shape) > 1 else 1
    step = max(SLICE // max(row, 1), 1) * max(row, 1)
    starts = range(0, size, step)
    return [Chunk(i, start, min(start + step, size)) for i, start in enumerate(starts)]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """What a tensor of the result is read from.

    Attributes
    ----------
    source : int
        Number of the source.
    name : str
        Name of the tensor there.
    parameters : mapping of str to value
        Of the method, for this model.
    """

    source: int
    name: str
    parameters: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class OutputTensor(Sized):
    """One tensor of the result.

    Attributes
    ----------
    number : int
        Place in the order of writing.
    name, shape : str, tuple of int
        As in the result.
    dtype : str
        What is written, as safetensors names it.
    inputs : tuple of Input
        In the order of the config.
    base : int or None
        Which of the inputs is the base.
    parameters : mapping of str to value
        Of the method, for this tensor.
    n_blocks : int
        Blocks of the result.
    copied : bool
        Whether the first input is taken as it is: integers, which cannot be merged.
    transposed : bool
        Whether the columns of a matrix are output neurons and not its rows.
    """

    number: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[SourceTensor, ...]
    base: int | None
    parameters: Mapping[str, Value]
    n_blocks: int
    copied: bool = False
    transposed: bool = False

    @property
    def cuts(self) -> list[Chunk]:
        """Its slices."""
        return chunks_of(self.shape)

    @property
    def others(self) -> list[int]:
        """Numbers of the inputs that are not the base."""
        return [i for i in range(len(self.inputs)) if i != self.base]

    def number_of(self, name: str, i: int) -> float:
        """Value of a number that each model has, at input ``i``."""
        return float(self.inputs[i].parameters[name])


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One model that a method reads.

    Attributes
    ----------
    reference : str
        As in the config.
    settings : tuple of mapping
        Parameters that hold for it, in falling precedence.
    base : bool
        Whether it is the base.
    first : int
        Its block that becomes block ``start`` of the result; see `Part`.
    fixed : mapping
        Values that come from its place in the config, beside its parameters.
    extracted : bool
        Whether it is a file of `lens.merging.extract` and no model.
    """

    reference: str
    settings: tuple[Mapping[str, Any], ...] = ()
    base: bool = False
    first: int = 0
    fixed: Mapping[str, Value] = field(default_factory=dict)
    extracted: bool = False
