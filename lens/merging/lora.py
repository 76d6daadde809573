"""The delta of a merge as a PEFT LoRA adapter of low rank, with its measured error."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import Array, to_dict
from lens.errors import InputError
from lens.merging import output
from lens.merging.config import MergeConfig, parse_config
from lens.merging.executor import MergeExecutor
from lens.merging.methods.base import Method, write_tensor
from lens.merging.plan import PROCESS, MergePlan, plan_merge, problems_of_place
from lens.merging.tensors import Chunk, OutputTensor
from lens.merging.worker import TensorTask, normal
from lens.subspace import thin_svd
from lens.utils.files import new_folder, refuse_existing
from lens.utils.signals import stop_requests
from lens.weights import delta as subtract
from lens.weights import sum_of_squares

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_EXTRA = 8  # columns beyond the rank
_ITERATIONS = 2  # of the power method, two more passes each
_FIRST = 16  # columns tried first for an energy


@dataclass(frozen=True, slots=True)
class LowRankFit:
    """Quality of the low-rank approximation of one tensor.

    Attributes
    ----------
    rank : int
    norm : float
        |Δ|, Frobenius.
    error : float
        |Δ − B A| with the factors as they are written.
    """

    rank: int
    norm: float
    error: float


FactorPair = tuple[LowRankFit, Float32 | None, Float32 | None]  # the fit, B and A


class RowCache:
    """Memory of ``n_bytes`` per worker for the first rows of its current matrix."""

    def __init__(self, n_bytes: int) -> None:
        self._elements, self._local = max(n_bytes, 0) // 4, threading.local()

    def rows(self, n: int, d: int) -> Float32:
        """Memory for as many of n rows as fit, (…, d)."""
        size = min(n, self._elements // d) * d
        held: Float32 | None = getattr(self._local, "held", None)
        if held is None or held.size < size:
            self._local.held = None  # freed before the next is allocated
            held = self._local.held = np.empty(size, np.float32)
        return held[:size].reshape(-1, d)


@dataclass(frozen=True, slots=True)
class DeltaSink:
    """Sink that turns chunks of a merge into their deltas from the base and passes them on."""

    task: TensorTask
    wanted: Callable[[Chunk], bool]
    place: Callable[[Chunk], Float32]
    then: Callable[[Chunk, Float32], None]

    def missing(self, target: OutputTensor, chunk: Chunk) -> bool:
        """Whether a chunk must be computed."""
        return self.wanted(chunk)

    def write(self, target: OutputTensor, chunk: Chunk, content: Array) -> None:
        """Pass on the chunk minus the base."""
        base, out = target.base_input, self.place(chunk)
        plain = self.task.dtype(base) == "F32"
        before = self.task.read(base, chunk) if plain else self.task.base(chunk)
        subtract(content, before.reshape(-1), out=out)
        self.then(chunk, out.reshape(-1, target.shape[-1]))


class MatrixDelta:
    """Delta of one matrix (n, d), in chunks of rows.

    Chunks that fit into the cache are computed once, the others again in each pass, with the same
    result. ``squares``, |Δ|², is known after the first pass.
    """

    def __init__(self, method: Method, task: TensorTask, cache: RowCache) -> None:
        self._method, self._task = method, task
        self.d = task.target.shape[-1]
        self.n = task.target.size // self.d
        self.name, self.squares = task.target.name, 0.0
        self._rows = cache.rows(self.n, self.d).reshape(-1)
        self._cached = [chunk for chunk in task.chunks if chunk.stop <= self._rows.size]
        self._computed = False
        self._spare = np.empty(max((c.size for c in task.chunks), default=0), np.float32)

    def each(self, use: Callable[[slice, Float32], None]) -> None:
        """Pass rows and their delta to ``use``, in order; it may neither keep nor change them."""

        def then(chunk: Chunk, delta: Float32) -> None:
            if not self._computed:
                self.squares += sum_of_squares(delta)
            use(slice(chunk.start // self.d, chunk.stop // self.d), delta)

        def place(chunk: Chunk) -> Float32:
            cached = chunk.number < len(self._cached)
            return self._rows[chunk.start : chunk.stop] if cached else self._spare[: chunk.size]

        first = len(self._cached) if self._computed else 0
        for chunk in self._cached[:first]:
            then(chunk, place(chunk).reshape(-1, self.d))
        if first < len(self._task.chunks):
            sink = DeltaSink(self._task, lambda chunk: chunk.number >= first, place, then)
            write_tensor(self._method, self._task.into(sink))
        self._computed = True

    def times(self, right: Float32) -> Float32:
        """Δ rightᵀ, (n, k), of right (k, d)."""
        out = np.empty((self.n, len(right)), np.float32)
        self.each(lambda rows, delta: _core.matmul_nt(out[rows], delta, right))
        return out

    def transposed_times(self, left: Float32) -> Float64:
        """Leftᵀ Δ, (k, d), of left (n, k)."""
        out, part = np.zeros((left.shape[1], self.d)), np.empty((left.shape[1], self.d), np.float32)

        def use(rows: slice, delta: Float32) -> None:
            nonlocal out
            _core.matmul_tn(part, left[rows], delta)
            out += part

        self.each(use)
        return out

    def error(self, b: Float32, a: Float32) -> float:
        """|Δ − B A|."""
        across, spare = np.ascontiguousarray(a.T), np.empty_like(self._spare)
        squares: list[float] = []

        def use(rows: slice, delta: Float32) -> None:
            product = spare[: delta.size].reshape(delta.shape)
            _core.matmul_nt(product, b[rows], across)
            squares.append(sum_of_squares(delta, product))

        self.each(use)
        return math.sqrt(math.fsum(squares))

    def whole(self) -> Float64:
        """All of it, (n, d)."""
        out = np.empty((self.n, self.d))

        def use(rows: slice, delta: Float32) -> None:
            out[rows] = delta

        self.each(use)
        return out


def factors(delta: MatrixDelta, *, rank: int | None, energy: float | None) -> FactorPair:
    """LowRankFit, B (n, r) and A (r, d) of one matrix; no factors for a zero delta."""
    most = min(delta.n, delta.d)
    k = _FIRST if rank is None else rank + _EXTRA
    while True:
        exact = 4 * k >= most  # the exact SVD is as fast then
        u, s, vt = _exact(delta) if exact else _leading(delta, k)
        if delta.squares == 0:
            return LowRankFit(0, 0.0, 0.0), None, None
        if rank is not None:
            r = min(rank, s.size)
            break
        enough = np.flatnonzero(np.cumsum(s**2) >= (float(energy or 1.0) - 1e-7) * delta.squares)
        r = int(enough[0]) + 1 if enough.size else s.size
        if exact or r + _EXTRA <= k:
            break
        k *= 2
    root = np.sqrt(s[:r])
    b = np.ascontiguousarray(u[:, :r] * root, np.float32)
    a = np.ascontiguousarray(root[:, None] * vt[:r], np.float32)
    return LowRankFit(r, math.sqrt(delta.squares), delta.error(b, a)), b, a


def _exact(delta: MatrixDelta) -> tuple[Array, Float64, Float64]:
    whole = delta.whole()
    if delta.squares == 0:
        return _nothing(delta)
    found = thin_svd(whole)
    return found.left, found.singular_values, found.right.T


def _leading(delta: MatrixDelta, k: int) -> tuple[Array, Float64, Float64]:
    """Leading singular vectors and values: a random sketch of k columns and its block Krylov space.

    The columns of every iteration are used, not of the last alone: the last product has three times
    as many, and the error is much closer to the best where the spectrum is flat.
    """
    probe = normal(f"range {delta.name}", delta.d * k).reshape(k, delta.d)
    columns = delta.times(probe)
    if delta.squares == 0:
        return _nothing(delta)
    seen = [_orthonormal(columns.T)]
    for _ in range(_ITERATIONS):
        across = _orthonormal(delta.transposed_times(_columns(seen[-1])))
        seen.append(_orthonormal(delta.times(across).T))
    q = _columns(_orthonormal(np.concatenate(seen)))
    found = thin_svd(delta.transposed_times(q))
    left, turn = np.empty_like(q), np.ascontiguousarray(found.left.T, np.float32)
    _core.matmul_nt(left, q, turn)
    return left, found.singular_values, found.right.T


def _nothing(delta: MatrixDelta) -> tuple[Array, Float64, Float64]:
    return np.zeros((delta.n, 0)), np.zeros(0), np.zeros((0, delta.d))


def _orthonormal(rows: Array) -> Float32:
    """Orthonormal rows that span at least the rows (k, n), in float32."""
    rows = np.ascontiguousarray(rows, np.float64)
    q, triangle = np.empty_like(rows), np.empty((len(rows), len(rows)))
    _core.thin_qr(q, triangle, rows)
    return q.astype(np.float32)


def _columns(rows: Float32) -> Float32:
    return np.ascontiguousarray(rows.T)


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """Summary of a written adapter.

    Attributes
    ----------
    out : str
    fits : dict of str to LowRankFit
        By tensor; vectors, which cannot be adapted, have rank 0 and their norm as error.
    error : float
        |Δ − B A| / |Δ| over the whole model.
    """

    out: str
    fits: dict[str, LowRankFit]
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self) | {"fits": {name: to_dict(fit) for name, fit in self.fits.items()}}


def to_adapter(
    config: MergeConfig | Mapping[str, Any],
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_memory: int | str = "1GiB",
    force: bool = False,
) -> AdapterResult:
    """Write the delta of a merge from its base as a LoRA adapter, and measure the error.

    Parameters
    ----------
    config : MergeConfig or mapping
        The merge; it must have a base model.
    out : path
        Folder of the adapter, in the layout of PEFT.
    rank : int, optional
        Rank at every matrix.
    energy : float in (0, 1], optional
        Instead: the smallest rank at each matrix that keeps this share of |Δ|².
    max_memory : int or str
        Bytes of memory; what the workers leave caches rows of their matrices. A fit takes about
        72 (n + d) k bytes more per worker, k = rank + 8, for a matrix (n, d).
    force : bool
        Replace ``out``.

    Returns
    -------
    AdapterResult

    Raises
    ------
    InputError
        If the merge cannot be done, has no base, or stores matrices transposed (GPT-2).

    Notes
    -----
    Randomised SVD (Halko, Martinsson and Tropp, arXiv 0909.4061) from rank + 8 random columns and
    two power iterations, all of whose columns are used (Musco and Musco, arXiv 1504.05477); where
    four times as many columns reach min(n, d), the SVD of the whole matrix in float64 (up to 64 n d
    bytes). An energy starts with 16 columns and doubles them. The delta is computed chunk by chunk;
    rows that do not fit into memory are computed again for each product. The error is measured on
    the factors as stored, with alpha = rank, so that their scale is 1. The bytes depend neither on
    memory nor on the number of cores.
    """
    if (rank is None) == (energy is None):
        raise InputError("expected exactly one of rank and energy")
    if rank is not None and rank < 1:
        raise InputError(f"rank: got {rank}, expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy: got {energy}, expected a share above 0 and up to 1")
    out = Path(out)
    refuse_existing(out, force=force)
    config = parse_config(config)
    config = config.model_copy(update={"out_dtype": "float32"})
    with plan_merge(config, max_memory=max_memory, fetch=True) as plan:
        plan.check()
        if config.base_model is None or config.slices:
            raise InputError("an adapter needs a base_model, and blocks in their places")
        if any(target.transposed for target in plan.targets):
            raise InputError("matrices of this model are stored transposed; merge it instead")
        if problems := problems_of_place(out, plan.sources, _size(plan, rank or 1)):
            raise InputError("\n".join(problems))
        with stop_requests("tensor") as stop:
            found = _factorise(plan, MergeExecutor(plan, stop), rank, energy)
        return _write(plan, found, out, force=force)


def _size(plan: MergePlan, rank: int) -> int:
    """Bytes of the factors of all matrices."""
    matrices = [target.shape for target in plan.targets if len(target.shape) == 2]
    return sum(4 * min(rank, n, d) * (n + d) for n, d in matrices)


def _factorise(
    plan: MergePlan, executor: MergeExecutor, rank: int | None, energy: float | None
) -> dict[str, FactorPair]:
    targets = [target for target in plan.targets if not target.copied]
    facts = plan.method.prepare(executor, plan.targets)
    cache = RowCache((plan.max_memory - PROCESS) // plan.workers - plan.worker_memory.total)

    def fit(task: TensorTask) -> FactorPair:
        if not task.target.size:
            return LowRankFit(0, 0.0, 0.0), None, None
        delta = MatrixDelta(plan.method, task, cache)
        if len(task.target.shape) == 2:
            return factors(delta, rank=rank, energy=energy)
        delta.each(lambda rows, delta: None)  # computes the norm of a vector's delta
        norm = math.sqrt(delta.squares)
        return LowRankFit(0, norm, norm), None, None

    found = executor.map(fit, targets, whole=True, label="Factorising", facts=facts)
    return {target.name: result for target, result in found}


def _write(
    plan: MergePlan, found: Mapping[str, FactorPair], out: Path, *, force: bool
) -> AdapterResult:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    fits = {name: fit for name, (fit, _, _) in found.items()}
    total = math.fsum(fit.norm**2 for fit in fits.values())
    error = math.sqrt(math.fsum(fit.error**2 for fit in fits.values()) / total) if total else 0.0
    tensors: dict[str, Float32] = {}
    ranks: dict[str, int] = {}
    for name, (fit, b, a) in found.items():
        if a is None or b is None:
            continue
        module = name.removesuffix(".weight")
        ranks[module] = fit.rank
        key = f"base_model.model.{module}"
        if "embed" in module.rpartition(".")[2]:  # stored as (vocabulary, width): (A, B) transposed
            tensors[f"{key}.lora_embedding_A"] = np.ascontiguousarray(b.T)
            tensors[f"{key}.lora_embedding_B"] = np.ascontiguousarray(a.T)
        else:
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
    if not ranks:
        raise InputError("this merge changes no matrix of its base; there is nothing to adapt")
    result = AdapterResult(str(out), fits, error)
    most = max(ranks.values())
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": plan.config.base_model,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "fan_in_fan_out": False,
    }
    with new_folder(out, force=force) as folder:
        try:
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise InputError(f"cannot write {out}: {error}; make room") from None
        (folder / "adapter_config.json").write_text(json.dumps(content, indent=2))
        about = output.identity(plan, 0) | {"fit": result.to_dict() | {"out": out.name}}
        (folder / output.REPRODUCE).write_text(json.dumps(about, indent=1))
    return result
