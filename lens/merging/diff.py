"""What models changed from their base, tensor by tensor, in one pass over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lens.errors import InputError
from lens.merging.config import MergeConfig, ModelEntry, block_number
from lens.merging.executor import MergeExecutor
from lens.merging.methods.base import Method
from lens.merging.plan import plan_for
from lens.merging.worker import TensorTask, normal
from lens.utils.signals import stop_requests
from lens.weights import compare, histogram, sum_of_squares

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PROBES = 64
"""Random columns by which the effective rank is estimated."""

OUTLIER = 6.0
"""An element is an outlier when it changed by more than this many root mean squares."""

_TOP = 5  # rows that are named
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BUCKET_BITS = 15


@dataclass(frozen=True, slots=True)
class TensorChange:
    """What one model changed at one tensor, Δ = θ − θ_o in float32.

    Attributes
    ----------
    relative : float or None
        |Δ| / |θ_o|, Frobenius norms; None where θ_o is zero.
    norm : float
        |Δ|.
    share : float
        Elements that changed at all.
    largest : float
        The largest |Δ| of one element.
    outliers : int
        Elements with |Δ| above six root mean squares, to a part in 256.
    effective_rank : float or None
        (Σσ²)² / Σσ⁴ of the singular values: how many directions of equal size would spread as
        much; None for vectors and for no change. Estimated from 64 random columns, standard error
        at most 18 % (rank one), smaller for spread changes; exact for up to 64 columns.
    rows : tuple of float
        Quantiles 5, 25, 50, 75 and 95 % of |Δ| / |θ_o| of single rows (output neurons).
    top_rows : tuple of (int, float)
        The rows that changed most, and their |Δ| / |θ_o|.
    """

    relative: float | None
    norm: float
    share: float
    largest: float
    outliers: int
    effective_rank: float | None
    rows: tuple[float, ...]
    top_rows: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TensorPair:
    """Two models at one tensor.

    Attributes
    ----------
    models : tuple of two int
        Which.
    cosine : float or None
        Of their changes; None where one changed nothing.
    same_sign : float or None
        Of the elements that both changed, the share they moved the same way; None without such.
    """

    models: tuple[int, int]
    cosine: float | None
    same_sign: float | None


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor: its changes by model, and its pairs of models."""

    name: str
    shape: tuple[int, ...]
    norm: float
    changes: tuple[TensorChange, ...]
    pairs: tuple[TensorPair, ...]

    @property
    def block(self) -> int | None:
        """Block it is of."""
        return block_number(self.name)

    @property
    def kind(self) -> str:
        """Name without the number of the block."""
        block = self.block
        return self.name if block is None else self.name.replace(f".{block}.", ".", 1)


@dataclass(frozen=True, slots=True)
class WeightDiff:
    """The changes of several models from one base.

    Attributes
    ----------
    base : str
    models : tuple of str
    tensors : tuple of TensorAtlas
        In the order in which the base stores them.
    """

    base: str
    models: tuple[str, ...]
    tensors: tuple[TensorDiff, ...]

    def relative_by_block(self) -> dict[int | None, list[float]]:
        """|Δ| / |θ_o| over all tensors of a block, by model; None for what is outside blocks."""
        found: dict[int | None, list[float]] = {}
        for block in sorted({t.block for t in self.tensors}, key=lambda b: (b is None, b)):
            inside = [t for t in self.tensors if t.block == block]
            base = math.sqrt(math.fsum(t.norm**2 for t in inside))
            found[block] = [
                math.sqrt(math.fsum(t.changes[i].norm ** 2 for t in inside)) / (base or 1.0)
                for i in range(len(self.models))
            ]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self)


class _Look(Method):
    """Reads base and models as a merge does, and writes nothing."""

    name: ClassVar[str] = "delta"
    title: ClassVar[str] = "Delta atlas"
    models: ClassVar[tuple[int, int]] = (1, 15)
    whole: ClassVar[bool] = True

    def scratch(self, n_inputs: int) -> int:
        """Hold changes of all models in float32, and products of two."""
        return 4 * n_inputs + 24

    def run(self, work: TensorTask) -> None:
        """Write nothing."""


def weight_diff(
    base: str | Path, models: Sequence[str | Path], *, max_memory: int | str = "1GiB"
) -> WeightDiff:
    """Measure what models changed from their base, in one pass over all of them.

    Parameters
    ----------
    base : path or hub id
        θ_o.
    models : sequence of paths or hub ids
        At most 15; ``MODEL+ADAPTER`` for a LoRA adapter.
    max_memory : int or str
        Bytes of memory for everything together.

    Returns
    -------
    Atlas

    Raises
    ------
    InputError
        If the models are not of one kind, or hold NaN or infinity.
    """
    config = MergeConfig(
        merge_method="delta",
        base_model=str(base),
        models=tuple(ModelEntry(model=str(m)) for m in models),
    )
    if str(base) in map(str, models):
        raise InputError(f"{base} is the base; name the models that changed from it")
    plan = plan_for(_Look(), config, max_memory=max_memory, fetch=True)
    try:
        plan.check()
        targets = [target for target in plan.targets if not target.copied]
        with stop_requests("tensor") as stop:
            pieces = MergeExecutor(plan, stop).map(_look, targets, whole=True, label="Comparing")
            found = tuple(made for _, made in pieces)
        return WeightDiff(str(base), tuple(map(str, models)), found)
    finally:
        plan.files.close()


class _Sums:
    """What is summed up over the slices of one model's change of a tensor."""

    def __init__(self, work: TensorTask, i: int) -> None:
        shape = work.target.shape
        self.columns = shape[-1] if len(shape) > 1 else 1
        self.squares = 0.0
        self.counts = np.zeros(1 << (31 - _BUCKET_BITS), np.uint64)
        self.largest = 0.0
        self.rows: list[Float64] = []
        self._probe: Float32 | None = None
        if len(shape) > 1:
            self._probe = probes(work.target.name, self.columns)
            self._seen = np.zeros((self.columns, self._probe.shape[1]))

    def add(self, delta: Float32) -> None:
        """Take up the change of one slice."""
        self.squares += sum_of_squares(delta)
        self.counts += histogram(delta)
        self.largest = max(self.largest, float(np.abs(delta).max(initial=0)))
        if self._probe is not None:
            rows = delta.reshape(-1, self.columns)
            self.rows.append(_row_squares(rows))
            self._seen += rows.T @ (rows @ self._probe)

    def effective_rank(self) -> float | None:
        """(Σσ²)² / Σσ⁴, with Σσ⁴ = |ΔᵀΔ|² estimated as the mean of |ΔᵀΔω|²."""
        if self._probe is None or self.squares == 0:
            return None
        fourth = float((self._seen**2).sum())
        if self._probe.shape[1] < self.columns:
            fourth /= self._probe.shape[1]
        limit = min(self.columns, sum(len(x) for x in self.rows))
        return min(max(self.squares**2 / fourth, 1.0), float(limit))

    def outliers(self, size: int) -> int:
        """Elements above `OUTLIER` root mean squares, by the buckets of the histogram."""
        bound = np.float32(OUTLIER * math.sqrt(self.squares / max(size, 1)))
        first = int(bound.view(np.uint32) >> _BUCKET_BITS) + 1
        return int(self.counts[first:].sum())


def probes(name: str, columns: int) -> Float32:
    """Random columns (columns, 64) of unit variance, or the identity where that is no wider."""
    if columns <= PROBES:
        return np.eye(columns, dtype=np.float32)
    return normal(f"probes {name}", columns * PROBES).reshape(columns, PROBES)


def _row_squares(rows: Float32) -> Float64:
    found: Float64 = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found


def _look(work: TensorTask) -> TensorDiff:
    target = work.target
    sums = {i: _Sums(work, i) for i in target.others}
    pairs = {pair: np.zeros(3) for pair in combinations(range(len(target.others)), 2)}
    base_squares, base_rows = 0.0, []
    for cut in work.cuts:
        base = work.mix({int(target.base or 0): 1.0}, cut)
        base_squares += sum_of_squares(base)
        if len(target.shape) > 1:
            base_rows.append(_row_squares(base.reshape(-1, target.shape[-1])))
        deltas = [work.delta(i, cut) for i in target.others]
        for i, delta in zip(target.others, deltas, strict=True):
            sums[i].add(delta)
        for (j, k), total in pairs.items():
            total += _alike(deltas[j], deltas[k])
    norms = [math.sqrt(sums[i].squares) for i in target.others]
    whole = np.concatenate([np.empty(0), *base_rows])
    return TensorDiff(
        target.name,
        target.shape,
        math.sqrt(base_squares),
        tuple(_change(sums[i], math.sqrt(base_squares), whole, target.size) for i in target.others),
        tuple(_pair(pair, total, norms) for pair, total in pairs.items()),
    )


def _alike(x: Float32, y: Float32) -> Float64:
    """Dot product, elements that moved the same way, and elements that both moved."""
    both = (x != 0) & (y != 0)
    same = both & ((x > 0) == (y > 0))
    dot = compare((x, None), (y, None)).dot
    return np.array([dot, np.count_nonzero(same), np.count_nonzero(both)], np.float64)


def _change(sums: _Sums, base: float, base_rows: Float64, size: int) -> TensorChange:
    norm = math.sqrt(sums.squares)
    quantiles: tuple[float, ...] = ()
    top: tuple[tuple[int, float], ...] = ()
    if sums.rows:
        squares = np.concatenate(sums.rows)
        relative = np.sqrt(np.divide(squares, base_rows, out=np.zeros_like(squares),
                                     where=base_rows > 0))  # fmt: skip
        quantiles = tuple(float(q) for q in np.quantile(relative, _QUANTILES))
        order = np.argsort(-relative, kind="stable")[:_TOP]
        top = tuple((int(k), float(relative[k])) for k in order if relative[k] > 0)
    return TensorChange(
        relative=norm / base if base > 0 else None,
        norm=norm,
        share=int(sums.counts.sum()) / max(size, 1),
        largest=sums.largest,
        outliers=sums.outliers(size),
        effective_rank=sums.effective_rank(),
        rows=quantiles,
        top_rows=top,
    )


def _pair(models: tuple[int, int], total: Float64, norms: Sequence[float]) -> TensorPair:
    dot, same, both = (float(x) for x in total)
    size = norms[models[0]] * norms[models[1]]
    cosine = max(-1.0, min(1.0, dot / size)) if size > 0 else None
    return TensorPair(models, cosine, same / both if both else None)
