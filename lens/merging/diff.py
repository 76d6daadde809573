"""Weight diff: the deltas of models from their base, tensor by tensor, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.errors import InputError
from lens.merging.config import MergeConfig, ModelEntry, block_number
from lens.merging.executor import MergeExecutor
from lens.merging.methods.base import Method
from lens.merging.plan import plan_for
from lens.merging.worker import TensorTask, normal
from lens.utils.signals import stop_requests
from lens.weights import BUCKET_BITS, BUCKETS, compare, histogram, sum_of_squares

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PROBES = 64
"""Random columns by which the effective rank is estimated."""

OUTLIER = 6.0
"""An element is an outlier when it changed by more than this many root mean squares."""

_TOP = 5  # rows that are named
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class TensorDelta:
    """Delta of one model at one tensor, Δ = θ − θ_o in float32.

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
        Elements with |Δ| above six root mean squares, accurate to 1/256.
    effective_rank : float or None
        (Σσ²)² / Σσ⁴ of the singular values: the number of equal singular values with the same
        ratio; None for vectors and zero deltas. Estimated from 64 random columns, standard error
        at most 18 % (rank one), smaller for a flat spectrum; exact for up to 64 columns.
    rows : tuple of float
        Quantiles 5, 25, 50, 75 and 95 % of |Δ| / |θ_o| of single rows (output neurons).
    top_rows : tuple of (int, float)
        The rows with the largest |Δ| / |θ_o|, and its value.
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
        Their indices.
    cosine : float or None
        Of their deltas; None where one is zero.
    same_sign : float or None
        Share of equal signs among the elements that both changed; None without such.
    """

    models: tuple[int, int]
    cosine: float | None
    same_sign: float | None


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor: its delta for each model, and its pairs of models."""

    name: str
    shape: tuple[int, ...]
    norm: float
    changes: tuple[TensorDelta, ...]
    pairs: tuple[TensorPair, ...]

    @property
    def block(self) -> int | None:
        """Number of its block; None outside blocks."""
        return block_number(self.name)

    @property
    def kind(self) -> str:
        """Name without the number of the block."""
        block = self.block
        return self.name if block is None else self.name.replace(f".{block}.", ".", 1)


@dataclass(frozen=True, slots=True)
class WeightDiff:
    """Deltas of several models from one base.

    Attributes
    ----------
    base : str
    models : tuple of str
    tensors : tuple of TensorDiff
        In the order in which the base stores them.
    """

    base: str
    models: tuple[str, ...]
    tensors: tuple[TensorDiff, ...]

    def relative_by_block(self) -> dict[int | None, list[float]]:
        """|Δ| / |θ_o| over all tensors of a block, by model; None for those outside blocks."""
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


class _Diff(Method):
    """Reads base and models as a merge does, and writes nothing."""

    name = "diff"
    title = "Weight diff"
    models = (1, 15)
    whole = True

    def scratch(self, n_inputs: int) -> int:
        """Deltas of all models in float32, and products of two."""
        return 4 * n_inputs + 24

    def run(self, task: TensorTask) -> None:
        """Write nothing."""


def weight_diff(
    base: str | Path, models: Sequence[str | Path], *, max_memory: int | str = "1GiB"
) -> WeightDiff:
    """Measure the deltas of models from their base, in one pass over all of them.

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
    WeightDiff

    Raises
    ------
    InputError
        If the models are not of one kind, or hold NaN or infinity.
    """
    config = MergeConfig(
        merge_method="diff",
        base_model=str(base),
        models=tuple(ModelEntry(model=str(m)) for m in models),
    )
    if str(base) in map(str, models):
        raise InputError(f"{base} is the base; name the models that changed from it")
    with plan_for(_Diff(), config, max_memory=max_memory, fetch=True) as plan:
        plan.check()
        targets = [target for target in plan.targets if not target.copied]
        with stop_requests("tensor") as stop:
            found = MergeExecutor(plan, stop).map(_compare, targets, whole=True, label="Comparing")
            tensors = tuple(tensor for _, tensor in found)
        return WeightDiff(str(base), tuple(map(str, models)), tensors)


class _Sums:
    """Sums over the chunks of one model's delta of a tensor."""

    def __init__(self, task: TensorTask, i: int) -> None:
        shape = task.target.shape
        self.columns = shape[-1] if len(shape) > 1 else 1
        self.squares = 0.0
        self.counts = np.zeros(BUCKETS, np.uint64)
        self.largest = 0.0
        self.rows: list[Float64] = []
        self._probe: Float32 | None = None
        if len(shape) > 1:
            self._probe = probes(task.target.name, self.columns)
            self._seen = np.zeros((self.columns, self._probe.shape[1]))

    def add(self, delta: Float32) -> None:
        """Add one chunk of the delta."""
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
        first = int(bound.view(np.uint32) >> BUCKET_BITS) + 1
        return int(self.counts[first:].sum())


def probes(name: str, columns: int) -> Float32:
    """Random columns (columns, 64) of unit variance, or the identity where that is no wider."""
    if columns <= PROBES:
        return np.eye(columns, dtype=np.float32)
    return normal(f"probes {name}", columns * PROBES).reshape(columns, PROBES)


def _row_squares(rows: Float32) -> Float64:
    found: Float64 = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found


def _compare(task: TensorTask) -> TensorDiff:
    target = task.target
    sums = {i: _Sums(task, i) for i in target.others}
    pairs = {pair: np.zeros(3) for pair in combinations(range(len(target.others)), 2)}
    base_squares, base_rows = 0.0, []
    for chunk in task.chunks:
        base = task.base(chunk)
        base_squares += sum_of_squares(base)
        if len(target.shape) > 1:
            base_rows.append(_row_squares(base.reshape(-1, target.shape[-1])))
        deltas = [task.delta(i, chunk) for i in target.others]
        for i, delta in zip(target.others, deltas, strict=True):
            sums[i].add(delta)
        for (j, k), total in pairs.items():
            total += _pair_sums(deltas[j], deltas[k])
    norms = [math.sqrt(sums[i].squares) for i in target.others]
    whole = np.concatenate([np.empty(0), *base_rows])
    return TensorDiff(
        target.name,
        target.shape,
        math.sqrt(base_squares),
        tuple(_delta(sums[i], math.sqrt(base_squares), whole, target.size) for i in target.others),
        tuple(_pair(pair, total, norms) for pair, total in pairs.items()),
    )


def _pair_sums(x: Float32, y: Float32) -> Float64:
    """Dot product, elements of equal sign, and elements that both changed."""
    both = (x != 0) & (y != 0)
    same = both & ((x > 0) == (y > 0))
    dot = compare((x, None), (y, None)).dot
    return np.array([dot, np.count_nonzero(same), np.count_nonzero(both)], np.float64)


def _delta(sums: _Sums, base: float, base_rows: Float64, size: int) -> TensorDelta:
    norm = math.sqrt(sums.squares)
    quantiles: tuple[float, ...] = ()
    top: tuple[tuple[int, float], ...] = ()
    if sums.rows:
        squares = np.concatenate(sums.rows)
        ratio = np.divide(squares, base_rows, out=np.zeros_like(squares), where=base_rows > 0)
        relative = np.sqrt(ratio)
        quantiles = tuple(float(q) for q in np.quantile(relative, _QUANTILES))
        order = np.argsort(-relative, kind="stable")[:_TOP]
        top = tuple((int(k), float(relative[k])) for k in order if relative[k] > 0)
    return TensorDelta(
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
