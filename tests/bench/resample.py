"""1,000 bootstrap refits x 32 layers of 7 languages x 300 rows, d = 4096, against NumPy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

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


def _seconds(action: object) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    out = action()  # type: ignore[operator]
    return time.perf_counter() - started, out


def run() -> Iterator[Row]:
    """Yield the two rows; our side runs in full, NumPy on a slice of every layer, in between."""
    rng = np.random.default_rng(0)
    ours, plain, counted = [], [], []
    for _ in range(LAYERS):
        x = _layer(rng)
        fitted = _basis(x.mean(axis=1, dtype=np.float64))
        draws = np.random.default_rng(0).integers(ROWS, size=(REFITS, ROWS))
        spent, found = _seconds(
            lambda x=x: resample.bootstrap(resample.gram(x), rank=RANK, n_resamples=REFITS).angles
        )
        ours.append(spent)
        spent, one = _seconds(lambda x=x, f=fitted, d=draws: _refit(x, d[0], f))
        plain.append(spent)
        spent, some = _seconds(lambda x=x, f=fitted, d=draws: _refits_by_counts(x, d[:50], f))
        counted.append(spent / 50)
        if not (np.allclose(found[0], one, atol=1e-5) and np.allclose(found[:50], some, atol=1e-4)):
            raise RuntimeError("the two sides disagree")
    total = sum(ours)
    name = f"{REFITS} refits x {LAYERS} layers, {LANGUAGES} x {ROWS} rows, d={WIDTH}"
    for rival, times, goal in (
        ("NumPy refit from states", plain, ">= 50"),
        ("NumPy, float32 counts times states", counted, ">= 1"),
    ):
        each = statistics.median(times)
        whole = each * REFITS * LAYERS
        detail = (
            f"{total:.1f} s, all layers and their Gram matrices, against {whole:.0f} s "
            f"({each * 1e3:.1f} ms a refit, median over {LAYERS} layers, scaled)"
        )
        yield Row(name, rival, whole / total, goal, detail)
