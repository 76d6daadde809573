"""Tensors of the result, and the slices they are made in.

How a tensor is cut depends on its shape alone, never on memory or threads, and every sum over a
tensor is taken slice by slice in order: so a result does not depend on the machine's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lens.maec.parameters import Value
from lens.stored import Sized

SLICE = 1 << 20
"""Elements of a slice; part of what decides a result, so reproduce.json names it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Elements ``start`` to ``stop`` of a tensor, its slice number ``number``."""

    number: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def cuts_of(shape: tuple[int, ...]) -> list[Cut]:
    """Slices of a tensor: whole rows along its last axis, as many as make `SLICE` elements."""
    size, row = math.prod(shape), shape[-1] if len(shape) > 1 else 1
    step = max(SLICE // max(row, 1), 1) * max(row, 1)
    starts = range(0, size, step)
    return [Cut(i, start, min(start + step, size)) for i, start in enumerate(starts)]


@dataclass(frozen=True, slots=True)
class Input:
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
class Target(Sized):
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
    inputs: tuple[Input, ...]
    base: int | None
    parameters: Mapping[str, Value]
    n_blocks: int
    copied: bool = False
    transposed: bool = False

    @property
    def cuts(self) -> list[Cut]:
        """Its slices."""
        return cuts_of(self.shape)

    @property
    def others(self) -> list[int]:
        """Numbers of the inputs that are not the base."""
        return [i for i in range(len(self.inputs)) if i != self.base]

    def number_of(self, name: str, i: int) -> float:
        """Value of a number that each model has, at input ``i``."""
        return float(self.inputs[i].parameters[name])
