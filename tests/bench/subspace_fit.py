"""Subspace fit at d = 4096, 7 languages, against the published procedure and NumPy's thin SVD."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from lens import subspace
from tests.bench.common import Row, best_of
from tests.reference import published_subspace

WIDTH, LANGUAGES = 4096, 7


def _numpy_thin(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same result by NumPy: thin SVD of the centred means, then the agnostic direction."""
    centre = means.mean(0)
    _, s, vt = np.linalg.svd(means - centre, full_matrices=False)
    basis = vt[: LANGUAGES - 1].T
    return centre - basis @ (basis.T @ centre), s


def run() -> Iterator[Row]:
    """Yield the two rows."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(LANGUAGES, WIDTH)) + 3 * rng.normal(size=WIDTH)
    ours = best_of(lambda: subspace.fit(means, rank="full"), repeat=51, warmup=5)
    thin = best_of(lambda: _numpy_thin(means), repeat=51, warmup=5)
    started = time.perf_counter()
    published_subspace(means, LANGUAGES - 1)
    published = time.perf_counter() - started
    name = f"subspace fit, d={WIDTH}, {LANGUAGES} languages"
    detail = f"{ours * 1e6:.0f} us against {published:.1f} s (once)"
    yield Row(name, "published: two full SVDs, pinv", published / ours, ">= 1000", detail)
    detail = f"{ours * 1e6:.0f} us against {thin * 1e6:.0f} us"
    yield Row(name, "NumPy thin SVD", thin / ours, ">= 1", detail)
