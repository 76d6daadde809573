"""Bandwidth of the kernels that have no benchmark of their own, against memcpy.

One thread; arrays well beyond the last-level cache, except those (bases, means, counts) that a
kernel reads again and again.  "bytes moved" are those a kernel must read and write once.  Where
a kernel computes more than it moves the detail gives its operations a byte: there memory is no
limit, the share of memcpy says only how far arithmetic is from it, and there is no goal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lens import _core
from tests.bench.common import Row, memcpy_of, side_by_side
from tests.helpers.reference import CODES, store

WIDTH, RANK, LANGUAGES, TOKENS = 4096, 6, 7, 32
MIB = 256  # of the states a kernel reads
GOALS = {"float32": ">= 0.85", "bfloat16": ">= 0.7"}


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel: what to call, the bytes it must move, and its operations per state element."""

    name: str
    call: Callable[[], object]
    moved: int
    operations: float


def _cases(dtype: str) -> Iterator[Case]:
    code, size = CODES[dtype], 2 if dtype == "bfloat16" else 4
    rng = np.random.default_rng(0)
    n = (MIB << 20) // (size * WIDTH)
    some = store(rng.normal(size=(64, WIDTH)), dtype)
    x = np.tile(some, (n // 64, 1))
    y, out = np.roll(x, 1, axis=0), np.zeros_like(x)
    flat, whole = x.reshape(-1), np.zeros(x.size, np.float32)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, RANK)))[0].T.astype(np.float32).copy()
    step, u = np.zeros((1, RANK), np.float32), basis[0].copy()
    means = rng.normal(size=(LANGUAGES, WIDTH)).astype(np.float32)
    tokens = x.reshape(-1, TOKENS, WIDTH)
    mask = np.ones(tokens.shape[:2], np.uint8)
    pooled = np.zeros((len(tokens), WIDTH))
    counts, label = np.zeros(WIDTH, np.uint64), np.zeros(n, np.uint64)
    once, acc = x.nbytes, whole.nbytes
    yield Case("dtype_load", lambda: _core.dtype_load(whole, flat, code), once + acc, 1)
    yield Case(
        "dtype_store", lambda: _core.dtype_store(out.reshape(-1), whole, code), once + acc, 1
    )
    for mode, name in enumerate(("last", "mean", "weighted")):
        read = once // TOKENS if name == "last" else once
        yield Case(
            f"pool {name}",
            lambda mode=mode: _core.pool(pooled, tokens, mask, code, mode, 1),
            read + pooled.nbytes,
            2,
        )
    yield Case("project, r=6", lambda: _core.project(out, x, basis, 0.5, code, 1), 2 * once, 24)
    yield Case("neuron_count", lambda: _core.neuron_count(counts, None, x, None, code, 1), once, 3)
    yield Case("unit_rows", lambda: _core.unit_rows(whole.reshape(n, WIDTH), x, code, 1),
               once + acc, 4)  # fmt: skip
    yield Case(
        "nearest_mean, 7 means", lambda: _core.nearest_mean(label, x, means, code, 1), once, 21
    )
    yield Case(
        "separate, r=6",
        lambda: _core.separate(out, x, y, basis, step, None, code, 1),
        3 * once,
        25,
    )
    yield Case(
        "align_mean", lambda: _core.align_mean(out, None, x, y, u, None, code, 1), 3 * once, 4
    )
    yield Case(
        "align_complement, r=6",
        lambda: _core.align_complement(out, None, x, y, basis, None, code, 1),
        3 * once,
        30,
    )
    one = (1, n, WIDTH)
    yield Case(
        "retain_token",
        lambda: _core.retain_token(
            out.reshape(one), x.reshape(one), y.reshape(one), np.ones((1, n), np.uint8), code, 1
        ),
        3 * once,
        4,
    )


def run() -> Iterator[Row]:
    """Yield a row for each kernel and dtype."""
    for dtype, goal in GOALS.items():
        for case in _cases(dtype):
            copy = memcpy_of(case.moved)
            mine, theirs = side_by_side(case.call, copy, turns=3, each=1, settle=0.0)
            states = (MIB << 20) // (2 if dtype == "bfloat16" else 4)
            intensity = case.operations * states / case.moved
            bound = case.operations > 5
            note = (
                f"arithmetic-bound, {intensity:.1f} operations a byte" if bound else "memory-bound"
            )
            yield Row(
                f"{case.name}, {dtype}",
                "memcpy of the bytes moved",
                theirs / mine,
                ">= 0" if bound else goal,
                f"{case.moved / mine / 1e9:.1f} GB/s against {case.moved / theirs / 1e9:.1f} GB/s;"
                f" {note}",
            )
