"""The change of a merge as a PEFT LoRA adapter of low rank, with its measured error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array, to_dict
from lens.errors import InputError
from lens.interrupting import stop_requests
from lens.io import new_folder, refuse_existing
from lens.maec import record
from lens.maec.config import MergeConfig, parse_config
from lens.maec.drawing import normal
from lens.maec.planning import MergePlan, plan_merge
from lens.maec.stream import Stream
from lens.maec.targets import Cut, Target
from lens.maec.work import Work

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_EXTRA = 8  # columns beyond the rank that is sought
_ITERATIONS = 2  # of the power method: each is two more passes
_FIRST = 16  # columns tried first when an energy is asked for


@dataclass(frozen=True, slots=True)
class Fit:
    """How well low rank does at one tensor.

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


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """An adapter that was written.

    Attributes
    ----------
    out : str
    fits : dict of str to Fit
        By tensor; vectors, which cannot be adapted, have rank 0 and their whole norm as error.
    error : float
        |Δ − B A| / |Δ| over the whole model.
    """

    out: str
    fits: dict[str, Fit]
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self) | {"fits": {name: to_dict(fit) for name, fit in self.fits.items()}}


class _Catch:
    """Takes slices of a merge and passes on what they changed."""

    def __init__(self, work: Work, use: Callable[[Cut, Float32], None]) -> None:
        self._work, self._use = work, use

    def missing(self, target: Target, cut: Cut) -> bool:
        """Make every slice."""
        return True

    def write(self, target: Target, cut: Cut, content: Array) -> None:
        """Pass on the slice less the base."""
        base = self._work.mix({int(target.base or 0): 1.0}, cut)
        self._use(cut, (content - base).reshape(-1, target.shape[-1]))


class _Delta:
    """The change of one matrix, never in memory as a whole: products with it, slice by slice."""

    def __init__(self, plan: MergePlan, work: Work) -> None:
        self._plan, self._work = plan, work
        self.d = work.target.shape[-1]
        self.n = work.target.size // self.d

    def each(self, use: Callable[[slice, Float32], None]) -> None:
        """Give rows and their change, in order."""

        def rows(cut: Cut, delta: Float32) -> None:
            use(slice(cut.start // self.d, cut.stop // self.d), delta)

        self._plan.method.make(self._work.into(_Catch(self._work, rows)))

    def times(self, right: Float32) -> tuple[Float32, float]:
        """Δ right, (n, k), and |Δ|²."""
        out = np.empty((self.n, right.shape[1]), np.float32)
        squares = [0.0]

        def use(rows: slice, delta: Float32) -> None:
            np.matmul(delta, right, out=out[rows])
            squares[0] += float(np.einsum("ij,ij->", delta, delta, dtype=np.float64))

        self.each(use)
        return out, squares[0]

    def transposed_times(self, left: Float32) -> Float32:
        """Δᵀ left, (d, k)."""
        out = np.zeros((self.d, left.shape[1]))

        def use(rows: slice, delta: Float32) -> None:
            nonlocal out
            out += delta.T @ left[rows]

        self.each(use)
        return out.astype(np.float32)

    def error(self, b: Float32, a: Float32) -> float:
        """|Δ − B A|."""
        squares = [0.0]

        def use(rows: slice, delta: Float32) -> None:
            rest = delta - b[rows] @ a
            squares[0] += float(np.einsum("ij,ij->", rest, rest, dtype=np.float64))

        self.each(use)
        return math.sqrt(squares[0])


def to_adapter(
    config: MergeConfig | Mapping[str, Any],
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_memory: int | str = "1GiB",
    force: bool = False,
) -> AdapterResult:
    """Write what a merge changes of its base as a LoRA adapter, and measure what is lost.

    Parameters
    ----------
    config : MergeConfig or mapping
        The merge; it must have a base model.
    out : path
        Folder of the adapter, in the layout of PEFT.
    rank : int, optional
        Rank at every matrix.
    energy : float in (0, 1], optional
        Instead: at each matrix the smallest rank that keeps this share of |Δ|².
    max_memory : int or str
        Bytes of memory for a worker; factors come on top, 8 (n + d) k bytes of a matrix (n, d).
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
    Randomised SVD with two power iterations (Halko, Martinsson and Tropp, arXiv 0909.4061); the
    change is made anew, slice by slice, for each product. The error is measured on the factors as
    they are stored, alpha = rank, so that their scale is 1.
    """
    if (rank is None) == (energy is None):
        raise InputError("expected exactly one of rank and energy")
    if rank is not None and rank < 1:
        raise InputError(f"rank: got {rank}, expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy: got {energy}, expected a share above 0 and up to 1")
    out = Path(out)
    refuse_existing(out, force=force)
    config = parse_config(dict(config) if isinstance(config, Mapping) else config)
    config = config.model_copy(update={"out_dtype": "float32"})
    plan = plan_merge(config, max_memory=max_memory)
    try:
        plan.check()
        if config.base_model is None or config.slices:
            raise InputError("an adapter needs a base_model, and blocks in their places")
        if any(target.transposed for target in plan.targets):
            raise InputError("matrices of this model are stored transposed; merge it instead")
        with stop_requests("tensor") as stop:
            made = _factorise(plan, Stream(plan, stop), rank, energy)
        return _write(plan, made, out, force=force)
    finally:
        plan.files.close()


def _factorise(
    plan: MergePlan, stream: Stream, rank: int | None, energy: float | None
) -> dict[str, tuple[Fit, Float32 | None, Float32 | None]]:
    targets = [target for target in plan.targets if not target.copied]
    facts = plan.method.prepare(stream, plan.targets)

    def fit(work: Work) -> tuple[Fit, Float32 | None, Float32 | None]:
        delta = _Delta(plan, work) if work.target.size else None
        if delta is None or len(work.target.shape) != 2:
            norm = 0.0 if delta is None else math.sqrt(delta.times(np.zeros((delta.d, 0), "f"))[1])
            return Fit(0, norm, norm), None, None
        return _one(delta, work.target.name, rank, energy)

    found = stream.map(fit, targets, whole=True, label="Factorising", facts=facts)
    return {piece.target.name: made for piece, made in found}


def _one(
    delta: _Delta, name: str, rank: int | None, energy: float | None
) -> tuple[Fit, Float32 | None, Float32 | None]:
    """Factors of one matrix: B (n, r) and A (r, d)."""
    most = min(delta.n, delta.d)
    k = min(_FIRST if rank is None else rank + _EXTRA, most)
    while True:
        u, s, vt, squares = _leading(delta, name, k)
        if squares == 0:
            return Fit(0, 0.0, 0.0), None, None
        kept = np.cumsum(s**2) / squares
        if rank is not None:
            r = min(rank, s.size)
            break
        enough = np.flatnonzero(kept >= float(energy or 1.0) - 1e-7)
        if enough.size or k == most:
            r = int(enough[0]) + 1 if enough.size else s.size
            break
        k = min(2 * k, most)
    root = np.sqrt(s[:r])
    b = np.ascontiguousarray(u[:, :r] * root, np.float32)
    a = np.ascontiguousarray(root[:, None] * vt[:r], np.float32)
    return Fit(r, math.sqrt(squares), delta.error(b, a)), b, a


def _leading(delta: _Delta, name: str, k: int) -> tuple[Float64, Float64, Float64, float]:
    """Find the k leading singular vectors and values, and |Δ|²."""
    probe = normal(f"range {name}", delta.d * k).reshape(delta.d, k)
    y, squares = delta.times(probe)
    q = np.linalg.qr(y)[0]
    for _ in range(_ITERATIONS):
        q = np.linalg.qr(delta.transposed_times(q))[0]
        q = np.linalg.qr(delta.times(q)[0])[0]
    u, s, vt = np.linalg.svd(delta.transposed_times(q).T.astype(np.float64), full_matrices=False)
    return q @ u, s, vt, squares


def _write(
    plan: MergePlan,
    made: Mapping[str, tuple[Fit, Float32 | None, Float32 | None]],
    out: Path,
    *,
    force: bool,
) -> AdapterResult:
    from safetensors.numpy import save_file

    fits = {name: fit for name, (fit, _, _) in made.items()}
    total = math.fsum(fit.norm**2 for fit in fits.values())
    error = math.sqrt(math.fsum(fit.error**2 for fit in fits.values()) / total) if total else 0.0
    tensors: dict[str, Float32] = {}
    ranks: dict[str, int] = {}
    for name, (fit, b, a) in made.items():
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
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path":
        plan.config.base_model, "r": max(ranks.values()), "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks, "alpha_pattern": ranks, "target_modules": sorted(ranks),
        "bias": "none", "lora_dropout": 0.0, "inference_mode": True, "fan_in_fan_out": False,
    }  # fmt: skip
    with new_folder(out, force=force) as folder:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(content, indent=2))
        about = record.identity(plan, 0) | {"fit": result.to_dict() | {"out": out.name}}
        (folder / record.REPRODUCE).write_text(json.dumps(about, indent=1))
    return result
