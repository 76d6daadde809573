"""Deltas, cosines and combinations of weights against a copy and against torch; exact top-k.

A copy moves as many bytes as the kernel must: each source once and the result once, without what
the processor may read of a line before it writes to it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lens import _core, weights
from lens.arrays import BF16, F32
from tests.bench.common import Row, against_copy, child, side_by_side

ELEMENTS = 1 << 26
TOTAL, TENSORS, SHARE = 200_000_000, 25, 0.05
WEIGHTS = np.array([1.0, 0.5, -0.25, 0.125])


def _sources(code: int) -> list[np.ndarray]:
    """Four tensors of 256 MiB in float32, or of as many elements in bfloat16."""
    rng = np.random.default_rng(1)
    out = []
    for _ in range(4):
        block = rng.normal(size=1 << 20).astype(np.float32)
        block = block if code == F32 else (block.view(np.uint32) >> 16).astype(np.uint16)
        out.append(np.tile(block, ELEMENTS >> 20))
    return out


def _kernels(code: int, dtype: str, goal: float) -> Iterator[Row]:
    x = _sources(code)
    n, e = ELEMENTS, x[0].itemsize
    delta, out, sums = np.ones(n, np.float32), np.ones_like(x[0]), np.empty(3)
    four, two, w = tuple(x), tuple(x[:2]), WEIGHTS
    actions: list[tuple[str, Callable[[], object], int]] = [
        ("delta", lambda: _core.weights_delta(delta, x[0], x[1], code, 1), n * (2 * e + 4)),
        ("cosine of two deltas", lambda: _core.weights_dots(sums, *x, code, 1), 4 * n * e),
        ("combine 2", lambda: _core.weights_combine(out, two, w[:2], code, 1), 3 * n * e),
        ("combine 4", lambda: _core.weights_combine(out, four, w, code, 1), 5 * n * e),
    ]
    for name, action, moved in actions:
        yield against_copy(f"{name}, {n * e >> 20} MiB {dtype}", action, moved, goal)


def _against_torch() -> Iterator[Row]:
    import torch

    torch.set_num_threads(1)
    raw = _sources(BF16)
    tensors = [torch.from_numpy(x).view(torch.bfloat16) for x in raw]
    out = np.ones_like(raw[0])

    def ours() -> None:
        weights.combine(tensors, WEIGHTS, out=out)

    def in_float32() -> torch.Tensor:
        return sum(w * x.float() for w, x in zip(WEIGHTS, tensors, strict=True)).bfloat16()

    def in_bfloat16() -> torch.Tensor:
        return sum(w * x for w, x in zip(WEIGHTS, tensors, strict=True))

    name = "combine 4 bfloat16 -> bfloat16, 64 Mi elements"
    for rival, action in (
        ("torch, in float32, rounded", in_float32),
        ("torch, every step in bfloat16", in_bfloat16),
    ):
        mine, theirs = side_by_side(ours, action, turns=3, each=1, settle=0)
        detail = f"{mine * 1e3:.0f} ms against {theirs * 1e3:.0f} ms, one thread"
        yield Row(name, rival, theirs / mine, ">= 4", detail)


def _deltas() -> np.ndarray:
    rng = np.random.default_rng(2)
    x = np.empty(TOTAL, np.float32)
    for part in np.split(x, TENSORS):
        rng.standard_normal(out=part, dtype=np.float32)
    return x


def _resident() -> int:
    """Most memory that this process has held so far, in bytes.

    On Linux ru_maxrss would count what the parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return 1024 * int(next(x for x in lines if x.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _select(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """Masks and threshold; the masks are written into memory that is there before."""
    top = weights.TopK(share=SHARE)
    for name, x in tensors.items():
        top.add(name, x)
    marks = {name: top.select(name, x) for name, x in tensors.items()}
    result = top.finish()
    return {name: result.apply(name, m) for name, m in marks.items()}, result.threshold


def side(kind: str) -> dict[str, float]:
    """Peak memory of the selection beyond deltas and masks, for a child process."""
    if kind == "normal":
        x = _deltas()
    elif kind == "equal":
        x = np.full(TOTAL, -0.5, np.float32)
    else:  # few distinct sizes, as the difference of two models in bfloat16
        x = _deltas()
        np.round(x, 1, out=x)
    tensors = {f"{i:02}": part for i, part in enumerate(np.split(x, TENSORS))}
    _select({"warm": x[:1000]})
    before = _resident()
    masks, threshold = _select(tensors)
    extra = _resident() - before - TOTAL
    chosen = sum(int(np.count_nonzero(m)) for m in masks.values())
    return {"extra": extra, "threshold": threshold, "chosen": chosen}


def _by_torch(x: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    import torch

    size = torch.from_numpy(x).abs()
    cut = float(torch.kthvalue(size, x.size - k + 1).values)
    return (size >= cut).numpy(), cut  # more than k where the cut is tied


def _by_numpy(x: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    size = np.abs(x)
    cut = np.partition(size, x.size - k)[x.size - k]
    mask = size > cut
    mask[np.flatnonzero(size == cut)[: k - np.count_nonzero(mask)]] = True
    return mask, float(cut)


def _topk() -> Iterator[Row]:
    import torch

    torch.set_num_threads(1)
    x, k = _deltas(), round(SHARE * TOTAL)
    tensors = {f"{i:02}": part for i, part in enumerate(np.split(x, TENSORS))}
    masks, cut = _select(tensors)
    expected, by_numpy = _by_numpy(x, k)
    if not (cut == by_numpy and np.array_equal(np.concatenate(list(masks.values())), expected)):
        raise RuntimeError("the masks differ")
    name = "exact top 5 % of 200 M float32 deltas"
    for rival, action in (("torch.kthvalue", _by_torch), ("NumPy partition", _by_numpy)):
        mine, theirs = side_by_side(
            lambda: _select(tensors), lambda action=action: action(x, k), turns=3, each=1, settle=0
        )
        detail = f"{mine:.2f} s against {theirs:.2f} s, both with masks, one thread"
        yield Row(name, rival, theirs / mine, ">= 5", detail)
    for kind in ("normal", "rounded", "equal"):
        found = child("tests.bench.weights", kind)  # not in this process: a peak never falls
        extra = found["extra"] / 2**20
        detail = f"{extra:.1f} MiB of resident memory beyond deltas and masks, {kind} deltas"
        yield Row(f"{name}: memory", "64 MiB", extra / 64, "<= 1", detail)


def run() -> Iterator[Row]:
    """Yield all rows."""
    yield from _kernels(F32, "float32", 0.85)
    yield from _kernels(BF16, "bfloat16", 0.7)
    yield from _against_torch()
    yield from _topk()


if __name__ == "__main__":
    print(json.dumps(side(sys.argv[1])))
