"""Subspace fits at d = 4096 against NumPy's thin SVD and the published procedure."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from lens import subspace
from tests.bench.common import Row, best_of, side_by_side
from tests.helpers.reference import published_subspace

WIDTH, LAYERS = 4096, 32
GOALS = {7: ">= 4", 40: ">= 2", 200: ">= 1.2"}


def _numpy_thin(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same result by NumPy: thin SVD of the centred means, then the agnostic direction."""
    centre = means.mean(0)
    _, s, vt = np.linalg.svd(means - centre, full_matrices=False)
    basis = vt[: len(means) - 1].T
    return centre - basis @ (basis.T @ centre), s


def run() -> Iterator[Row]:
    """Yield one site, then the batch of layers for each number of languages."""
    rng = np.random.default_rng(0)
    published = 0.0
    for languages, goal in GOALS.items():
        shape = (LAYERS, languages, WIDTH)
        means = rng.normal(size=shape) + 3 * rng.normal(size=(LAYERS, 1, WIDTH))
        name = f"{LAYERS} subspace fits, d={WIDTH}, {languages} languages"
        mine, thin = side_by_side(
            lambda m=means: subspace.fit_batch(m, rank="full", n_threads=2),
            lambda m=means: [_numpy_thin(x) for x in m],
            turns=3 if languages == 200 else 5,
            each=1 if languages == 200 else 3,
        )
        if languages == min(GOALS):
            yield from _one_site(means[0])
            started = time.perf_counter()
            published_subspace(means[0], languages - 1)
            published = (time.perf_counter() - started) * LAYERS
            detail = f"{mine * 1e3:.2f} ms against {published:.0f} s, scaled from one layer"
            yield Row(name, "published: two full SVDs, pinv", published / mine, ">= 3000", detail)
        detail = f"{mine * 1e3:.2f} ms against {thin * 1e3:.1f} ms, 2 threads"
        yield Row(name, "NumPy thin SVD of each layer", thin / mine, goal, detail)


def _one_site(means: np.ndarray) -> Iterator[Row]:
    ours = best_of(lambda: subspace.fit(means, rank="full"), repeat=51, warmup=5)
    thin = best_of(lambda: _numpy_thin(means), repeat=51, warmup=5)
    detail = f"{ours * 1e6:.0f} us against {thin * 1e6:.0f} us"
    name = f"subspace fit, d={WIDTH}, {len(means)} languages"
    yield Row(name, "NumPy thin SVD", thin / ours, ">= 1", detail)
