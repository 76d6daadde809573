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
from lens.errors import InputError
from lens.merging.config import Value
from lens.models.checkpoint import Dtype, Sized
from lens.weights import delta

Float32 = NDArray[np.float32]

SLICE = 1 << 20
"""Elements of a chunk; it affects the bytes of a result, so reproduce.json records it."""


@functools.cache
def _values_of_8_bits(name: str) -> Float32:
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
    """Decode elements in their storage dtype to float32, exactly except for float64."""
    if is_8_bit(kind):
        decoded: Float32 = np.take(_values_of_8_bits(kind.name or ""), raw, out=out, mode="clip")
        return decoded
    return delta(raw, out=out, dtype="bfloat16" if kind.name == "bfloat16" else None)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements ``start`` to ``stop`` of a tensor, its chunk number ``number``."""

    number: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def chunks_of(shape: tuple[int, ...]) -> list[Chunk]:
    """Chunks of a tensor: whole rows along its last axis, about `SLICE` elements each."""
    size, row = math.prod(shape), shape[-1] if len(shape) > 1 else 1
    step = max(SLICE // max(row, 1), 1) * max(row, 1)
    starts = range(0, size, step)
    return [Chunk(i, start, min(start + step, size)) for i, start in enumerate(starts)]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor that an output tensor is computed from."""

    source: int  # index of its source
    name: str  # there
    parameters: Mapping[str, Value]  # of the method, for this model


@dataclass(frozen=True, slots=True)
class OutputTensor(Sized):
    """One tensor of the result.

    Attributes
    ----------
    number : int
        Position in the order of writing.
    name, shape : str, tuple of int
        In the result.
    dtype : str
        As written, by its name in safetensors.
    inputs : tuple of SourceTensor
        In the order of the config.
    base : int or None
        Index of the input that is the base.
    parameters : mapping of str to value
        The method's parameters for this tensor.
    n_blocks : int
        Blocks of the result.
    copied : bool
        Whether the first input is copied as it is: integers, which cannot be merged.
    transposed : bool
        Whether the columns of a matrix are output neurons, not its rows.
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
    def chunks(self) -> list[Chunk]:
        """Its chunks."""
        return chunks_of(self.shape)

    @property
    def base_input(self) -> int:
        """Index of the input that is the base; InputError without one."""
        if self.base is None:
            raise InputError("a difference needs a base_model")
        return self.base

    @property
    def others(self) -> list[int]:
        """Indices of the inputs that are not the base."""
        return [i for i in range(len(self.inputs)) if i != self.base]

    def value(self, name: str, i: int) -> float:
        """Value of a parameter of each model, a number, at input ``i``."""
        return float(self.inputs[i].parameters[name])


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One model that a method reads."""

    reference: str  # as in the config
    settings: tuple[Mapping[str, Any], ...] = ()  # parameters for it, in order of precedence
    base: bool = False
    first: int = 0  # its first block, where a slice of the result begins
    fixed: Mapping[str, Value] = field(default_factory=dict)  # given by its place in the config
    extracted: bool = False  # a file of `lens.merging.extract`, not a model
