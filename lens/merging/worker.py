"""One output tensor in the hands of one worker: read chunks, compute, write chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array
from lens.errors import InputError
from lens.merging.sources import MergeSource
from lens.merging.tensors import Chunk, OutputTensor
from lens.models.checkpoint import DTYPES, aligned_buffer
from lens.weights import Comparison, combine, compare, count_nonfinite, delta

Float32 = NDArray[np.float32]
R = TypeVar("R")


def _generator(text: str, *, number: int = 0) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, number]))


def uniform(seed: int, name: str, model: int, number: int, n: int) -> Float32:
    """Draw n numbers in [0, 1) for chunk ``number`` of a tensor of one model."""
    return _generator(f"{seed}\0{name}\0{model}", number=number).random(n, dtype=np.float32)


def signs(seed: int, name: str, number: int, n: int) -> Float32:
    """Draw n signs, 1 or −1, for chunk ``number`` of a tensor."""
    drawn = uniform(seed, f"signs {name}", -1, number, n)
    return np.where(drawn < 0.5, np.float32(-1), np.float32(1))


def normal(name: str, n: int) -> Float32:
    """Draw n standard normal numbers, seeded by the name alone."""
    return _generator(name).standard_normal(n, dtype=np.float32)


class NonFiniteError(InputError):
    """A source holds NaN or infinity, or a result would."""


class Sink(Protocol):
    """Where results go."""

    def missing(self, target: OutputTensor, chunk: Chunk) -> bool:
        """Whether a chunk is still to be computed."""

    def write(self, target: OutputTensor, chunk: Chunk, content: Array) -> None:
        """Take a chunk of a tensor in its final dtype."""


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Bytes that one worker holds: a buffer for each input, one for output, and scratch."""

    buffers: tuple[int, ...]
    out: int
    scratch: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.buffers) + self.out + self.scratch


class Workspace:
    """Buffers of one worker, reused for every piece."""

    def __init__(self, memory: WorkerMemory) -> None:
        self.buffers = [aligned_buffer(n) for n in memory.buffers]
        self.out = aligned_buffer(memory.out)


@dataclass(eq=False)
class TensorTask:
    """One tensor of the result, or one chunk of it, for one worker.

    Attributes
    ----------
    target : OutputTensor
        Name, shape, inputs and parameters.
    chunks : list of Chunk
        Chunks of it in reach: all, or one.
    sources : sequence of MergeSource
        Indexed by ``SourceTensor.source``.
    workspace : Workspace
    sink : Sink or None
        None while results are only being prepared.
    facts : mapping
        What the method's ``prepare`` returned.
    """

    target: OutputTensor
    chunks: list[Chunk]
    sources: Sequence[MergeSource]
    workspace: Workspace
    sink: Sink | None
    facts: Mapping[str, Any]
    _cached: dict[int, tuple[int, Array]] = field(default_factory=dict, init=False, repr=False)

    def into(self, sink: Sink) -> TensorTask:
        """Return the same task with another destination for its results."""
        return replace(self, sink=sink)

    @property
    def missing(self) -> list[Chunk]:
        """Chunks still to be written."""
        if self.sink is None:
            return []
        return [chunk for chunk in self.chunks if self.sink.missing(self.target, chunk)]

    def dtype(self, i: int) -> str:
        """Dtype that `read` returns for input ``i``, as safetensors names it."""
        taken = self.target.inputs[i]
        return self.sources[taken.source].dtype_of(taken.name)

    def read(self, i: int, chunk: Chunk) -> Array:
        """Elements of input ``i``, flat and read-only; bfloat16 as raw bits in uint16."""
        cached = self._cached.get(i)
        if cached is None or cached[0] != chunk.number:
            taken, buffer = self.target.inputs[i], self.workspace.buffers[i]
            source = self.sources[taken.source]
            content = source.read(taken.name, chunk.start, chunk.stop, buffer)
            cached = self._cached[i] = chunk.number, content
        return cached[1]

    def delta(self, i: int, chunk: Chunk) -> Float32:
        """Input ``i`` minus the base in float32, every element finite.

        Raises
        ------
        NonFiniteError
            If one is not: the message names tensor and source.
        """
        base = self.target.base_input
        if self.dtype(i) == self.dtype(base):
            result = delta(self.read(i, chunk), self.read(base, chunk), dtype=self._raw(i))
        else:
            result = self.mix({i: 1.0, base: -1.0}, chunk)
        if not _finite(result):
            raise self.find_nonfinite(chunk)
        return result

    def base(self, chunk: Chunk) -> Float32:
        """Return the base in float32."""
        result: Float32 = self.mix({self.target.base_input: 1.0}, chunk)
        return result

    def compare(self, i: int, j: int, chunk: Chunk) -> Comparison:
        """Norms and dot product of two inputs in a chunk; every element is finite."""
        try:
            if self.dtype(i) != self.dtype(j):
                return compare((self.mix({i: 1.0}, chunk), None), (self.mix({j: 1.0}, chunk), None))
            pair = (self.read(i, chunk), None), (self.read(j, chunk), None)
            return compare(*pair, dtype=self._raw(i))
        except InputError:
            raise self.find_nonfinite(chunk) from None

    def _raw(self, i: int) -> str | None:
        return "bfloat16" if self.dtype(i) == "BF16" else None

    def mix(
        self,
        weights: Mapping[int, float],
        chunk: Chunk,
        *,
        plus: tuple[float, Float32] | None = None,
        out: Array | None = None,
    ) -> Any:
        """Σ weights[i] × input i, in float32 or in the dtype of ``out``; rounded once.

        Inputs of weight 0 are not read. ``plus`` is one more weight with its array.
        """
        used = {i: w for i, w in weights.items() if w != 0.0}
        if not used and plus is None:
            used = {next(iter(weights)): 0.0}
        arrays, factors = [self.read(i, chunk) for i in used], list(used.values())
        if plus is not None:
            arrays, factors = [*arrays, plus[1]], [*factors, plus[0]]
        kind = "float32" if out is None else self.target.kind.name
        return combine(arrays, factors, out=out, out_dtype=kind, dtype="bfloat16")

    def copy(self, i: int, chunk: Chunk) -> None:
        """Write input ``i`` byte by byte."""
        self._write(chunk, self.read(i, chunk))

    def write_mix(
        self,
        weights: Mapping[int, float],
        chunk: Chunk,
        *,
        plus: tuple[float, Float32] | None = None,
    ) -> None:
        """Write what `mix` returns in the dtype of the result.

        A single input of weight 1 in that dtype is copied byte by byte.
        """
        self._write(chunk, self.mix(weights, chunk, plus=plus, out=self._out(chunk)))

    def write(self, chunk: Chunk, values: Float32) -> None:
        """Write float32 values, rounded to the dtype of the result."""
        out = self._out(chunk)
        combine([values], [1.0], out=out, out_dtype=self.target.kind.name)
        self._write(chunk, out)

    def _out(self, chunk: Chunk) -> Array:
        kind = self.target.kind
        return self.workspace.out[: chunk.size * kind.size].view(kind.storage)

    def _write(self, chunk: Chunk, content: Array) -> None:
        if self.target.kind.floating and not _finite(content):
            raise self.find_nonfinite(chunk)
        if self.sink is not None:
            self.sink.write(self.target, chunk, content)

    def find_nonfinite(self, chunk: Chunk) -> NonFiniteError:
        """Find the input behind a chunk that is not finite; returns the error to raise."""
        for i, taken in enumerate(self.target.inputs):
            if not DTYPES[self.dtype(i)].floating:
                continue
            values = self.mix({i: 1.0}, chunk)
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                at = np.unravel_index(chunk.start + int(bad[0]), self.target.shape)
                return NonFiniteError(
                    f"tensor '{taken.name}' of {self.sources[taken.source].reference} holds "
                    f"{values[bad[0]]} at [{', '.join(str(int(k)) for k in at)}], one of "
                    f"{bad.size} in this chunk; expected finite numbers, repair or leave out this "
                    "model"
                )
        return NonFiniteError(
            f"tensor '{self.target.name}': the result passes the range of {self.target.kind.name}; "
            "choose smaller weights or another out_dtype"
        )


class Executor(Protocol):
    """Applies a function to every piece of some tensors, in order; see `MergeExecutor`."""

    def map(
        self,
        function: Callable[[TensorTask], R],
        targets: Sequence[OutputTensor],
        *,
        whole: bool,
        label: str,
        sink: Sink | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[OutputTensor, R]]:
        """Yield each tensor (``whole``) or the tensor of each chunk, with its result."""


def _finite(x: Array) -> bool:
    if x.dtype == np.uint8:  # 8-bit floats, copied: only their header tells E4M3 from E5M2
        return True
    found = count_nonfinite(x, dtype="bfloat16" if x.dtype == np.uint16 else None)
    return found.nan == 0 and found.infinite == 0
