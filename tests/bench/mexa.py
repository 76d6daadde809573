"""MEXA at d = 4096 against NumPy, in time and in memory, and against a loop over pairs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
from scipy.spatial.distance import cosine

from lens import metrics
from tests.bench.common import Row, best_of, side_by_side

WIDTH = 4096
PAIRS = 2000  # of the loop that are timed; the rest is scaled


def _numpy(a: np.ndarray, b: np.ndarray) -> float:
    """Normalise, multiply, compare."""
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    s = a @ b.T
    right = np.arange(len(a))
    return float(((s.argmax(1) == right) & (s.argmax(0) == right)).mean())


def _loop(a: np.ndarray, b: np.ndarray, rows: int) -> int:
    """Fill `rows` rows pair by pair and judge them, as the released code does, by SciPy."""
    n, s = len(a), np.zeros((len(a), len(a)))
    for i in range(rows):
        for k in range(n):
            s[i, k] = 1 - cosine(a[i].astype(np.float64), b[k].astype(np.float64))
    return sum(
        s[i, i] > max(np.delete(s[i], i)) and s[i, i] > max(np.delete(s[:, i], i))
        for i in range(rows)
    )


def _peak(action: Callable[[], object]) -> int:
    """Bytes that NumPy and the core held at most, the inputs left out."""
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def run() -> Iterator[Row]:
    """Yield the rows of both sizes: time and memory against NumPy, time against the loop."""
    rng = np.random.default_rng(0)
    for n, each in ((100, 30), (2000, 2)):
        a = rng.normal(size=(n, WIDTH)).astype(np.float32) + 1
        b = (a + rng.normal(size=a.shape)).astype(np.float32)
        half = [x.astype(np.float16) for x in (a, b)]

        def ours(x: np.ndarray = a, y: np.ndarray = b) -> float:
            return metrics.mexa(x, y, permutations=0, n_threads=2).score

        def rival(x: np.ndarray = a, y: np.ndarray = b) -> float:
            return _numpy(x, y)

        def ours_half(pair: list[np.ndarray] = half) -> float:
            return metrics.mexa(*pair, permutations=0, n_threads=2).score

        if ours() != rival():
            raise RuntimeError(f"mexa: {ours()} against {rival()} by NumPy")
        mine, theirs, halves = side_by_side(ours, rival, ours_half, each=each)
        name = f"MEXA, n={n}, d={WIDTH}, float32"
        detail = f"{mine * 1e3:.2f} ms with the variances against {theirs * 1e3:.2f} ms, 2 threads"
        yield Row(name, "NumPy normalise, matmul, argmax", theirs / mine, ">= 1", detail)
        detail = f"{halves * 1e3:.2f} ms against {theirs * 1e3:.2f} ms from float32"
        yield Row(f"MEXA, n={n}, d={WIDTH}, float16", "the same", theirs / halves, ">= 1", detail)
        used, needed = _peak(ours), _peak(rival)
        detail = f"{used / 1e6:.2f} MB against {needed / 1e6:.2f} MB, inputs not counted"
        yield Row(f"peak memory, n={n}", "the same", used / needed, "<= 1", detail)
        rows = max(1, PAIRS // n)
        looped = best_of(lambda a=a, b=b, m=rows: _loop(a, b, m), repeat=5) * n / rows
        detail = f"{mine * 1e3:.2f} ms against {looped:.3g} s, scaled from {rows} of {n} rows"
        yield Row(f"MEXA, n={n}", "released: loop over pairs", looped / mine, ">= 100", detail)
