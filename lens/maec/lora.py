"""The change of a merge as a PEFT LoRA adapter of low rank, with its measured error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.arrays import to_dict
from lens.errors import InputError
from lens.interrupting import stop_requests
from lens.io import new_folder, refuse_existing
from lens.maec import record
from lens.maec.config import MergeConfig, parse_config
from lens.maec.lowrank import Delta, Fit, Shelf, factors
from lens.maec.planning import PROCESS, MergePlan, plan_merge, problems_of_place
from lens.maec.stream import Stream
from lens.maec.work import Work

Float32 = NDArray[np.float32]


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
        Bytes of memory; what is left beside the workers holds rows of the matrices in their hands.
        What a fit takes comes on top: for each worker about 72 (n + d) k bytes, k = rank + 8, of a
        matrix (n, d).
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
    two power iterations, all of whose columns are kept (Musco and Musco, arXiv 1504.05477); where
    four times as many columns reach min(n, d), the SVD itself, of the whole matrix in float64 (up
    to 64 n d bytes). An energy starts with 16 columns and doubles them. The change is made slice
    by slice; rows for which there is no memory are made anew for each product. The error is
    measured on the factors as they are stored, alpha = rank, so that their scale is 1. The bytes
    depend neither on memory nor on the number of cores.
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
    plan = plan_merge(config, max_memory=max_memory, fetch=True)
    try:
        plan.check()
        if config.base_model is None or config.slices:
            raise InputError("an adapter needs a base_model, and blocks in their places")
        if any(target.transposed for target in plan.targets):
            raise InputError("matrices of this model are stored transposed; merge it instead")
        if problems := problems_of_place(out, plan.sources, _size(plan, rank or 1)):
            raise InputError("\n".join(problems))
        with stop_requests("tensor") as stop:
            made = _factorise(plan, Stream(plan, stop), rank, energy)
        return _write(plan, made, out, force=force)
    finally:
        plan.files.close()


def _size(plan: MergePlan, rank: int) -> int:
    """Bytes of the factors of all matrices."""
    matrices = [target.shape for target in plan.targets if len(target.shape) == 2]
    return sum(4 * min(rank, n, d) * (n + d) for n, d in matrices)


def _factorise(
    plan: MergePlan, stream: Stream, rank: int | None, energy: float | None
) -> dict[str, tuple[Fit, Float32 | None, Float32 | None]]:
    targets = [target for target in plan.targets if not target.copied]
    facts = plan.method.prepare(stream, plan.targets)

    shelf = Shelf((plan.max_memory - PROCESS) // plan.workers - plan.needs.total)

    def fit(work: Work) -> tuple[Fit, Float32 | None, Float32 | None]:
        if not work.target.size:
            return Fit(0, 0.0, 0.0), None, None
        delta = Delta(plan, work, shelf)
        if len(work.target.shape) == 2:
            return factors(delta, rank=rank, energy=energy)
        delta.each(lambda rows, change: None)  # known after it: how much a vector changed
        norm = math.sqrt(delta.squares)
        return Fit(0, norm, norm), None, None

    found = stream.map(fit, targets, whole=True, label="Factorising", facts=facts)
    return {piece.target.name: made for piece, made in found}


def _write(
    plan: MergePlan,
    made: Mapping[str, tuple[Fit, Float32 | None, Float32 | None]],
    out: Path,
    *,
    force: bool,
) -> AdapterResult:
    from safetensors import SafetensorError
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
        try:
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise InputError(f"cannot write {out}: {error}; make room") from None
        (folder / "adapter_config.json").write_text(json.dumps(content, indent=2))
        about = record.identity(plan, 0) | {"fit": result.to_dict() | {"out": out.name}}
        (folder / record.REPRODUCE).write_text(json.dumps(about, indent=1))
    return result
