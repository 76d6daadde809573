"""One output tensor in the hands of one worker: read chunks, compute, write chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array
from lens.errors import InputError
from lens.merging.sources import MergeSource
from lens.merging.tensors import Chunk, OutputTensor
from lens.models.checkpoint import DTYPES, room
from lens.weights import Comparison, combine, compare, count_nonfinite, delta


def uniform(seed: int, name: str, model: int, number: int, n: int) -> NDArray[np.float32]:
    """N numbers in [0, 1) for slice ``number`` of a tensor of one model."""
    text = f"{seed}\0{name}\0{model}".encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    bits = np.random.Philox(key=key, counter=[0, 0, 0, number])
    return np.random.Generator(bits).random(n, dtype=np.float32)


def signs(seed: int, name: str, number: int, n: int) -> NDArray[np.float32]:
    """N signs, 1 or −1, for slice ``number`` of a tensor."""
    drawn = uniform(seed, f"signs {name}", -1, number, n)
    return np.where(drawn < 0.5, np.float32(-1), np.float32(1))


def normal(name: str, n: int) -> NDArray[np.float32]:
    """N numbers of a normal distribution that the name alone decides."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    drawn = np.random.Generator(np.random.Philox(key=key))
    return drawn.standard_normal(n, dtype=np.float32)


Float32 = NDArray[np.float32]


class NonFiniteError(InputError):
    """A source holds NaN or infinity, or a result would."""


class Sink(Protocol):
    """Where results go."""

    def missing(self, target: OutputTensor, cut: Chunk) -> bool:
        """Whether a slice is still to be made."""

    def write(self, target: OutputTensor, cut: Chunk, content: Array) -> None:
        """Take a slice of a tensor in its final dtype."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that one worker holds: a room for each input, one for output, and scratch."""

    rooms: tuple[int, ...]
    out: int
    scratch: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.rooms) + self.out + self.scratch


class Workspace:
    """Memory of one worker, used again for every piece."""

    def __init__(self, needs: Needs) -> None:
        self.rooms = [room(n) for n in needs.rooms]
        self.out = room(needs.out)


class TensorTask:
    """One tensor of the result, or one slice of it.

    Parameters
    ----------
    target : Target
    cuts : list of Cut
        Slices of it that are in reach: all, or one.
    sources : sequence of Source
        By number.
    space : Workspace
    sink : Sink or None
        None while results are only being prepared.
    facts : dict
        What the method found out before, see `lens.merging.methods.base.Method.prepare`.
    """

    def __init__(
        self,
        target: OutputTensor,
        cuts: list[Chunk],
        *,
        sources: Sequence[MergeSource],
        space: Workspace,
        sink: Sink | None,
        facts: dict[str, Any],
    ) -> None:
        self.target, self.cuts, self.facts = target, cuts, facts
        self._sources, self._space, self._sink = sources, space, sink
        self._held: dict[int, tuple[int, Array]] = {}  # input -> slice number, what was read

    def into(self, sink: Sink) -> TensorTask:
        """Give the same work with another place for its results."""
        return TensorTask(
            self.target, self.cuts, sources=self._sources, space=self._space, sink=sink,
            facts=self.facts,
        )  # fmt: skip

    @property
    def missing(self) -> list[Chunk]:
        """Slices that are still to be written."""
        if self._sink is None:
            return []
        return [cut for cut in self.cuts if self._sink.missing(self.target, cut)]

    def dtype(self, i: int) -> str:
        """Dtype of what `read` gives for input ``i``, as safetensors names it."""
        taken = self.target.inputs[i]
        return self._sources[taken.source].dtype_of(taken.name)

    def read(self, i: int, cut: Chunk) -> Array:
        """Elements of input ``i``, flat; bfloat16 as raw bits in uint16. Not to be changed."""
        held = self._held.get(i)
        if held is None or held[0] != cut.number:
            taken = self.target.inputs[i]
            source = self._sources[taken.source]
            held = (
                cut.number,
                source.read(taken.name, cut.start, cut.stop, self._space.rooms[i]),
            )
            self._held[i] = held
        return held[1]

    def delta(self, i: int, cut: Chunk) -> Float32:
        """Input ``i`` less the base, in float32; every element is finite.

        Raises
        ------
        InputError
            If one is not: the message names tensor and source.
        """
        if self.target.base is None:
            raise InputError("a difference needs a base_model")
        if self.dtype(i) == self.dtype(self.target.base):
            raw = "bfloat16" if self.dtype(i) == "BF16" else None
            made = delta(self.read(i, cut), self.read(self.target.base, cut), dtype=raw)
        else:
            made = self.mix({i: 1.0, self.target.base: -1.0}, cut)
        if not _finite(made):
            raise self.blame(cut)
        return made

    def compare(self, i: int, j: int, cut: Chunk) -> Comparison:
        """Norms and dot product of two inputs in a slice; every element is finite."""
        try:
            if self.dtype(i) != self.dtype(j):
                return compare((self.mix({i: 1.0}, cut), None), (self.mix({j: 1.0}, cut), None))
            raw = "bfloat16" if self.dtype(i) == "BF16" else None
            return compare((self.read(i, cut), None), (self.read(j, cut), None), dtype=raw)
        except InputError:
            raise self.blame(cut) from None

    def mix(
        self,
        weights: Mapping[int, float],
        cut: Chunk,
        *,
        plus: tuple[float, Float32] | None = None,
        out: Array | None = None,
    ) -> Any:
        """Σ weights[i] × input i, in float32 or in the dtype of ``out``; rounded once.

        What has weight 0 is not read. ``plus`` is one more weight, and the array it is of.
        """
        used = {i: w for i, w in weights.items() if w != 0.0}
        if not used and plus is None:
            used = {next(iter(weights)): 0.0}
        arrays, factors = [self.read(i, cut) for i in used], list(used.values())
        if plus is not None:
            arrays, factors = [*arrays, plus[1]], [*factors, plus[0]]
        kind = "float32" if out is None else self.target.kind.name
        return combine(arrays, factors, out=out, out_dtype=kind, dtype="bfloat16")

    def copy(self, i: int, cut: Chunk) -> None:
        """Write input ``i`` byte by byte."""
        self._write(cut, self.read(i, cut))

    def write_mix(
        self, weights: Mapping[int, float], cut: Chunk, *, plus: tuple[float, Float32] | None = None
    ) -> None:
        """Write what `mix` gives in the dtype of the result.

        A lone input of weight 1 in that dtype is copied byte by byte.
        """
        self._write(cut, self.mix(weights, cut, plus=plus, out=self._out(cut)))

    def write(self, cut: Chunk, values: Float32) -> None:
        """Write float32 values, rounded to the dtype of the result."""
        out = self._out(cut)
        combine([values], [1.0], out=out, out_dtype=self.target.kind.name)
        self._write(cut, out)

    def _out(self, cut: Chunk) -> Array:
        kind = self.target.kind
        return self._space.out[: cut.size * kind.size].view(kind.storage)

    def _write(self, cut: Chunk, content: Array) -> None:
        if self.target.kind.floating and not _finite(content):
            raise self.blame(cut)
        if self._sink is not None:
            self._sink.write(self.target, cut, content)

    def blame(self, cut: Chunk) -> NonFiniteError:
        """Find out which input is not finite in a slice of which the result is not."""
        for i, taken in enumerate(self.target.inputs):
            source = self._sources[taken.source]
            if not DTYPES[self.dtype(i)].floating:
                continue
            values = self.mix({i: 1.0}, cut)
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                at = np.unravel_index(cut.start + int(bad[0]), self.target.shape)
                place = ", ".join(str(int(k)) for k in at)
                return NonFiniteError(
                    f"tensor '{taken.name}' of {source.reference} holds {values[bad[0]]} at "
                    f"[{place}], {bad.size} such in this slice; expected finite numbers, repair or "
                    "leave out this model"
                )
        return NonFiniteError(
            f"tensor '{self.target.name}': the result passes the range of {self.target.kind.name}; "
            "choose smaller weights or another out_dtype"
        )


def _finite(x: Array) -> bool:
    if x.dtype == np.uint8:  # 8-bit floats, copied: E4M3 and E5M2 are told apart by their header
        return True
    found = count_nonfinite(x, dtype="bfloat16" if x.dtype == np.uint16 else None)
    return found.nan == 0 and found.infinite == 0
