"""A merge's change as an adapter of rank 16: against the SVD itself, and torch's randomised one.

Two matrices of each shape, as a model has many: ours takes one a core, the rivals all cores for
one after the other.

``python -m tests.bench.lora N D`` measures matrices of that shape; ``spectra`` instead of N D
prints how near the error is to the best for spectra and ranks.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lens.merging.lora import to_adapter
from tests.bench.common import Row
from tests.bench.merge import CONFIG

Array = NDArray[Any]

RANK, TURNS = 16, 3
NAMES = ("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight")
SHAPES = ((4096, 4096), (4096, 11008))
K = np.arange(1.0, 129.0)
SPECTRA = {
    "k^-0.7 and noise": (K**-0.7, 0.01),
    "0.7^k and noise": (0.7**K, 1e-5),
    "noise": (0 * K, 1.0),
}


def checkpoints(at: Path, n: int, d: int, spectrum: str = "k^-0.7 and noise") -> dict[str, object]:
    """Write a base and a model in float32, and return their merge."""
    rng, (scale, noise) = np.random.default_rng(0), SPECTRA[spectrum]
    k, scale = len(scale), scale.astype(np.float32)
    tensors: dict[str, dict[str, Array]] = {"base": {}, "model": {}}
    for name in NAMES:
        change = rng.standard_normal((n, k), np.float32) * scale @ rng.standard_normal((k, d), "f")
        change /= np.float32(np.sqrt(n * d))
        change += np.float32(noise / np.sqrt(max(n, d))) * rng.standard_normal((n, d), np.float32)
        tensors["base"][name] = np.float32(0.02) * rng.standard_normal((n, d), np.float32)
        tensors["model"][name] = tensors["base"][name] + change
    for folder, content in tensors.items():
        (at / folder).mkdir()
        (at / folder / "config.json").write_text(json.dumps(CONFIG | {"dtype": "float32"}))
        (at / folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
        save_file(content, at / folder / "model.safetensors", metadata={"format": "pt"})
    return {"merge_method": "task_arithmetic", "base_model": str(at / "base"),
            "models": [{"model": str(at / "model"), "parameters": {"weight": 1.0}}]}  # fmt: skip


def by_hand(at: Path, leading: Callable[[Array], tuple[Array, ...]], names: Sequence[str]) -> float:
    """Read, factorise the differences, measure the errors, write the factors; the first error."""
    errors, factors = [], {}
    with (
        safe_open(at / "base" / "model.safetensors", "numpy") as base,
        safe_open(at / "model" / "model.safetensors", "numpy") as model,
    ):
        for name in names:
            delta = model.get_tensor(name) - base.get_tensor(name)
            u, s, vt = leading(delta)
            root = np.sqrt(s[:RANK])
            b, a = np.ascontiguousarray(u[:, :RANK] * root), root[:, None] * vt[:RANK]
            errors.append(float(np.linalg.norm(delta - b @ a)))
            factors |= {f"{name}.B": b, f"{name}.A": a}
    save_file(factors, at / "factors.safetensors")
    return errors[0]


def exact(delta: Array) -> tuple[Array, ...]:
    """All singular vectors."""
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    return u, s, vt


def randomised(delta: Array) -> tuple[Array, ...]:
    """As many columns and power iterations as ours has."""
    import torch

    u, s, v = torch.svd_lowrank(torch.from_numpy(delta), q=RANK + 8, niter=2)
    return u.numpy(), s.numpy(), v.numpy().T


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came back."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def rows(n: int, d: int) -> Iterator[Row]:
    """Yield the rows of one shape; the SVD itself is taken of one of the matrices."""
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        config = checkpoints(at, n, d)

        def ours() -> float:
            fits = to_adapter(config, at / "adapter", rank=RANK, force=True).fits
            return fits[NAMES[0]].error

        sides: tuple[list[float], list[float]] = ([], [])
        errors: list[float] = []
        for turn in range(TURNS + 1):  # the first is not counted
            mine, error = timed(ours)
            theirs, rival = timed(lambda: by_hand(at, randomised, NAMES))
            errors.append(rival)
            if turn:
                sides[0].append(mine)
                sides[1].append(theirs)
        slow, best = timed(lambda: by_hand(at, exact, NAMES[:1]))
        slow *= len(NAMES)
        mine, theirs = (float(np.median(x)) for x in sides)
        rival = max(errors)
        what = f"adapter of rank {RANK}, 2 × ({n}, {d}) float32"
        yield Row(
            what,
            "numpy.linalg.svd of one, doubled",
            slow / mine,
            ">= 10",
            f"{mine:.2f} s against {slow:.1f} s",
        )
        yield Row(what, "torch.svd_lowrank, q = 24, niter = 2", theirs / mine, ">= 1",
                  f"{mine:.2f} s against {theirs:.2f} s")  # fmt: skip
        yield Row(f"{what}, error", "best of its rank", error / best, "<= 1.001",
                  f"torch.svd_lowrank {rival / best:.5f} at worst of {TURNS + 1}")  # fmt: skip


def run() -> Iterator[Row]:
    """Yield all rows."""
    for n, d in SHAPES:
        yield from rows(n, d)


def spectra(n: int = 2048) -> None:
    """Print the error over the best of its rank, and the smallest ranks that keep an energy."""
    for spectrum in SPECTRA:
        with tempfile.TemporaryDirectory() as name:
            at = Path(name)
            config = checkpoints(at, n, n, spectrum)
            base, model = (
                load_file(at / f / "model.safetensors")[NAMES[0]] for f in ("base", "model")
            )
            squares = np.linalg.svd((model - base).astype(np.float64), compute_uv=False) ** 2
            kept = np.cumsum(squares) / squares.sum()
            print(spectrum)
            for rank in (4, 16, 64, 256):
                fit = to_adapter(config, at / "out", rank=rank, force=True).fits[NAMES[0]]
                print(f"  rank {rank}: {fit.error / np.sqrt(squares[rank:].sum()):.5f}", flush=True)
            for energy in (0.5, 0.9, 0.99):
                fit = to_adapter(config, at / "out", energy=energy, force=True).fits[NAMES[0]]
                print(f"  energy {energy}: rank {fit.rank}, smallest {1 + (kept < energy).sum()}")


if __name__ == "__main__":
    if sys.argv[1:] == ["spectra"]:
        spectra()
        sys.exit()
    for row in rows(int(sys.argv[1]), int(sys.argv[2])):
        print(f"{row.name:<46} {row.rival:<44} {row.ratio:>9.6g} {row.goal:>9}  {row.detail}")
