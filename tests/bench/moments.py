"""Streaming moments against a copy that moves as many bytes, one thread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lens import _core
from lens.arrays import BF16, F32
from tests.bench.common import Row, against_copy

ELEMENTS, WIDTH = 1 << 26, 4096


def run() -> Iterator[Row]:
    """Yield a row for float32 and one for bfloat16; the same number of elements, read once."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(256, WIDTH)).astype(np.float32)
    mean, m2 = np.empty(WIDTH), np.empty(WIDTH)
    for code, dtype, goal in ((F32, "float32", 0.85), (BF16, "bfloat16", 0.7)):
        stored = rows if code == F32 else (rows.view(np.uint32) >> 16).astype(np.uint16)
        X = np.tile(stored, (ELEMENTS // rows.size, 1))

        def update(X: np.ndarray = X, code: int = code) -> None:
            _core.moments_update(mean, m2, None, None, X, 0, code, 1)

        yield against_copy(f"moments, {X.nbytes >> 20} MiB {dtype}", update, X.nbytes, goal)
