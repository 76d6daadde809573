"""1,000 bootstrap refits x 32 layers of 7 languages x 300 rows, d = 4096, against NumPy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from lens import resample
from tests.bench.common import Row

LAYERS, LANGUAGES, ROWS, WIDTH, REFITS, RANK = 32, 7, 300, 4096, 1000, 5


def _layer(rng: np.random.Generator) -> np.ndarray:
    """Pooled float32 states of one layer, (L, n, d): rows and languages differ."""
    x = rng.standard_normal((LANGUAGES, ROWS, WIDTH), dtype=np.float32)
    return x + rng.standard_normal((LANGUAGES, 1, WIDTH), dtype=np.float32)


def _basis(means: np.ndarray) -> np.ndarray:
    return np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:RANK]


def _from_means(means: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Thin SVD of resampled means and principal angles with the fit."""
    cosines = np.linalg.svd(_basis(means) @ fitted.T, compute_uv=False)
    return np.arccos(np.minimum(cosines, 1.0))


def _refit(x: np.ndarray, rows: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """One refit from the states: draw rows, take means, fit, compare."""
    return _from_means(x[:, rows].mean(axis=1, dtype=np.float64), fitted)


def _refits_by_counts(x: np.ndarray, draws: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Several at once: counts times states in float32, the fastest plain NumPy we know of."""
    counts = np.stack([np.bincount(rows, minlength=ROWS) for rows in draws]).astype(np.float32)
    means = (counts / ROWS) @ x  # (L, R, d)
    return np.stack(
        [_from_means(means[:, r].astype(np.float64), fitted) for r in range(len(draws))]
    )


def _seconds(action: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    out = action()
    return time.perf_counter() - started, out


def _ours(x: np.ndarray) -> np.ndarray:
    """Gram matrix and all refits."""
    return resample.bootstrap(resample.gram(x), rank=RANK, n_resamples=REFITS).angles


def run() -> Iterator[Row]:
    """Yield three rows; our side runs in full, NumPy on a slice of every layer, in between."""
    rng = np.random.default_rng(0)
    draws = np.random.default_rng(0).integers(ROWS, size=(REFITS, ROWS))
    keys = ("f8", "f4", "gather f8", "gather f4", "counts")
    times: dict[str, list[float]] = {key: [] for key in keys}
    for _ in range(LAYERS):
        single = _layer(rng)
        fitted = _basis(single.mean(axis=1, dtype=np.float64))
        for key, x in (("f8", single.astype(np.float64)), ("f4", single)):
            spent, found = _seconds(partial(_ours, x))
            times[key].append(spent)
            for r in range(3):
                spent, one = _seconds(partial(_refit, x, draws[r], fitted))
                times[f"gather {key}"].append(spent)
                if not np.allclose(found[r], one, atol=1e-5):
                    raise RuntimeError("the two sides disagree")
        spent, some = _seconds(partial(_refits_by_counts, single, draws[:50], fitted))
        times["counts"].append(spent / 50)
        if not np.allclose(found[:50], some, atol=1e-4):
            raise RuntimeError("the two sides disagree")
    name = f"{REFITS} refits x {LAYERS} layers, {LANGUAGES} x {ROWS} rows, d={WIDTH}"
    for rival, ours, theirs, goal in (
        ("NumPy refit from float64 states", "f8", "gather f8", ">= 50"),
        ("NumPy refit from float32 states", "f4", "gather f4", ">= 50"),
        ("NumPy, float32 counts times states", "f4", "counts", ">= 1"),
    ):
        total, each = sum(times[ours]), statistics.median(times[theirs])
        detail = (
            f"{total:.1f} s, all layers and their Gram matrices, against "
            f"{each * REFITS * LAYERS:.0f} s ({each * 1e3:.2f} ms a refit, median, scaled)"
        )
        yield Row(name, rival, each * REFITS * LAYERS / total, goal, detail)
