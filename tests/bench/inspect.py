"""A whole `lens inspect`, from kept states to the page, against its limit and naive refits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lens.analysis.inspect import inspect_space
from lens.pooling import StreamingMoments
from lens.report.inspection import save_inspection
from lens.space.provenance import Provenance, SpaceShard
from lens.space.space import Space
from lens.space.state_store import StateStore as KeptStates
from lens.space.state_store import StateStoreWriter
from tests.bench.common import Row

LAYERS, LANGUAGES, ROWS, WIDTH, REFITS, LIMIT = 32, 7, 300, 4096, 1000, 60.0
CODES = ("eng_Latn", "spa_Latn", "swh_Latn", "tur_Latn", "rus_Cyrl", "zho_Hans", "ind_Latn")
NAIVE = 3  # refits timed in each of four layers; the rest is scaled


def _layer(rng: np.random.Generator) -> np.ndarray:
    """States (L, n, d) of one layer: what rows, languages and chance add, of equal size."""
    size = (LANGUAGES, ROWS, WIDTH)
    x = rng.standard_normal(size, dtype=np.float32)
    x += rng.standard_normal((1, *size[1:]), dtype=np.float32)
    return x + rng.standard_normal((LANGUAGES, 1, WIDTH), dtype=np.float32)


def make(folder: Path) -> tuple[Space, KeptStates]:
    """Write a space and its states, as a probe would leave them, in float16."""
    rng = np.random.default_rng(0)
    sites = tuple(f"block.{i}" for i in range(LAYERS))
    about = Provenance(
        pivot=CODES[0], pooling="weighted",
        data={code: [SpaceShard(0, ROWS, "synthetic")] for code in CODES},
    )  # fmt: skip
    counts = dict.fromkeys(CODES, ROWS)
    moments: dict[str, dict[str, StreamingMoments]] = {}
    writer = StateStoreWriter(folder / "states", sites=sites, counts=counts, width=WIDTH)
    with writer:
        for site in sites:
            moments[site] = {}
            for code, x in zip(CODES, _layer(rng), strict=True):
                writer.write(code, site, 0, x.astype(np.float64))
                moments[site][code] = StreamingMoments(WIDTH)
                moments[site][code].update(x, 0)
    return Space(moments, about), KeptStates(writer.finish(about))


def _naive(states: KeptStates, site: str, refits: int) -> float:
    """Seconds of one refit in NumPy: draw rows, take means, thin SVD, principal angles."""
    x = np.stack([states.values(site, code) for code in CODES])

    def basis(means: np.ndarray) -> np.ndarray:
        return np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:5]

    fitted = basis(x.mean(axis=1, dtype=np.float64))
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(refits):
        drawn = basis(x[:, rng.integers(ROWS, size=ROWS)].mean(axis=1, dtype=np.float64))
        np.arccos(np.minimum(np.linalg.svd(drawn @ fitted.T, compute_uv=False), 1.0))
    return (time.perf_counter() - started) / refits


def run() -> Iterator[Row]:
    """Yield two rows: against the limit in seconds, and against the bootstrap alone in NumPy."""
    with tempfile.TemporaryDirectory(prefix="lens-bench-") as place:
        folder = Path(place)
        space, states = make(folder)
        before = [_naive(states, f"block.{i}", NAIVE) for i in (0, 10)]
        started = time.perf_counter()
        found = inspect_space(space, states, n_resamples=REFITS)
        measured = time.perf_counter() - started
        save_inspection(found, folder / "out")
        total = time.perf_counter() - started
        after = [_naive(states, f"block.{i}", NAIVE) for i in (20, 31)]
        each = float(np.median([*before, *after]))
    what = f"inspect, {LAYERS} layers, {LANGUAGES} x {ROWS} rows, d={WIDTH}"
    detail = f"{total:.1f} s, of which page and figures {total - measured:.1f}; {REFITS} refits"
    yield Row(what, f"{LIMIT:.0f} s", total / LIMIT, "<= 1", detail)
    naive = each * REFITS * LAYERS
    detail = (
        f"{total:.1f} s against {naive:.0f} s for the bootstrap alone ({each * 1e3:.1f} ms a "
        f"refit, median of {4 * NAIVE} in four layers, scaled)"
    )
    yield Row(what, "NumPy refit from float32 states", naive / total, ">= 1", detail)
