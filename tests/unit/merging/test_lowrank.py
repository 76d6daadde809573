"""How good the factors of an adapter are, and that nothing but the merge decides their bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lens.merging import lora
from lens.merging import tensors as cutting
from lens.merging.lora import to_adapter
from tests.helpers import maec_files as files

N, D = 150, 210
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPES = {NAME: (N, D), "model.layers.0.mlp.down_proj.weight": (D, N), "model.norm.weight": (N,)}
SPECTRA = {
    "flat": lambda k: np.ones(k),
    "slow": lambda k: np.arange(1.0, k + 1) ** -0.5,
    "fast": lambda k: 0.7 ** np.arange(k),
    "rank 5": lambda k: (np.arange(k) < 5) + 0.0,
}


def models(at, spectrum, shapes=SHAPES):
    """A base, a model that differs by matrices of this spectrum, and the merge of the two."""
    rng = np.random.default_rng(0)
    base = files.read(files.checkpoint(at / "base", shapes=shapes, dtype="F32"))
    other = {}
    for name, x in base.items():
        change = rng.normal(size=x.shape)
        if x.ndim == 2:
            u, _, vt = np.linalg.svd(change, full_matrices=False)
            change = (u * spectrum(min(x.shape))) @ vt
        other[name] = (x + 0.05 * change).astype(np.float32)
    files.checkpoint(at / "other", shapes=shapes, dtype="F32")
    files.write_file(at / "other" / "model.safetensors",
                     {name: ("F32", x) for name, x in other.items()})  # fmt: skip
    config = {"merge_method": "task_arithmetic", "base_model": str(at / "base"),
              "models": [{"model": str(at / "other"), "parameters": {"weight": 1.0}}]}  # fmt: skip
    return config, {n: other[n].astype(float) - base[n] for n in base if base[n].ndim == 2}


def product(folder, name):
    """B A of one matrix, as the files have them."""
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model." + name.removesuffix(".weight")
    b, a = tensors[f"{key}.lora_B.weight"], tensors[f"{key}.lora_A.weight"]
    return b.astype(float) @ a.astype(float), b.shape[1]


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("rank", [1, 5, 20, 60, N, 2 * N])
def test_the_error_is_the_true_one_and_near_the_best(tmp_path, monkeypatch, kind, rank):
    """Of ranks 1, 5 and 20 by sketches, above by the SVD itself: there nothing is left to gain."""
    monkeypatch.setattr(cutting, "SLICE", 20 * D)
    config, deltas = models(tmp_path, SPECTRA[kind])
    result = to_adapter(config, tmp_path / "out", rank=rank)
    for name, delta in deltas.items():
        fit, (made, r) = result.fits[name], product(tmp_path / "out", name)
        assert fit.rank == r == min(rank, N)
        true = np.linalg.norm(delta - made)
        noise = 2e-7 * np.linalg.norm(delta) + 1e-6  # Δ of float32 weights is no exact number
        assert fit.error == pytest.approx(true, rel=1e-4, abs=noise)
        assert fit.norm == pytest.approx(np.linalg.norm(delta), rel=1e-4)
        s = np.linalg.svd(delta, compute_uv=False)
        best = np.sqrt((s[rank:] ** 2).sum())
        assert best - noise <= fit.error <= best * (1.01 if rank <= 20 else 1 + 1e-5) + noise


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("energy", [0.3, 0.8, 0.97, 0.9999])
def test_energy_takes_the_smallest_rank(tmp_path, kind, energy):
    config, deltas = models(tmp_path, SPECTRA[kind])
    result = to_adapter(config, tmp_path / "out", energy=energy)
    for name, delta in deltas.items():
        s = np.linalg.svd(delta, compute_uv=False)
        fit, kept = result.fits[name], np.cumsum(s**2) / (s**2).sum()
        least, most = (1 + int((kept < energy + e).sum()) for e in (-1e-5, 1e-5))
        assert least <= fit.rank <= most
        assert 1 - (fit.error / fit.norm) ** 2 >= energy - 1e-5


def content(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("rows", [0, 60, N + D])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "della"])
def test_memory_decides_no_byte(tmp_path, monkeypatch, rows, method):
    """Slices kept, made anew, or some of each; also where a method needs all of a tensor."""
    monkeypatch.setattr(cutting, "SLICE", 20 * D)
    config, _ = models(tmp_path, SPECTRA["slow"])
    config["merge_method"] = method
    if method != "task_arithmetic":
        config["models"][0]["parameters"]["density"] = 0.6
    first = to_adapter(config, tmp_path / "plenty", rank=4)
    made = []
    cache, plain = lora.RowCache, lora.DeltaSink.write
    monkeypatch.setattr(lora, "RowCache", lambda n: cache(4 * rows * D))
    monkeypatch.setattr(lora.DeltaSink, "write", lambda *a: (made.append(1), plain(*a)))
    again = to_adapter(config, tmp_path / "little", rank=4)
    assert content(tmp_path / "little") == content(tmp_path / "plenty")
    assert again.fits == first.fits
    slices = sum(len(cutting.chunks_of(shape)) for shape in SHAPES.values())
    passes = 2 + 2 * lora._ITERATIONS + 1  # sketch, powers, projection, error
    vectors = len(cutting.chunks_of(SHAPES["model.norm.weight"]))
    every = passes * (slices - vectors) + vectors
    assert len(made) == {0: every, N + D: slices}.get(rows, len(made))
    assert slices < len(made) < every or rows != 60


def test_cores_decide_no_byte(tmp_path):
    """Of a matrix so large that NumPy's own products would be shared out among cores."""
    config, _ = models(tmp_path, SPECTRA["slow"], {NAME: (800, 900)})
    code = (
        "import json, sys; from lens.merging.lora import to_adapter; "
        "to_adapter(json.loads(sys.argv[1]), sys.argv[2], rank=20)"
    )
    seen = set()
    for n in ("1", "2", "5"):
        env = os.environ | {"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n}
        env["PYTHONPATH"] = str(Path(__file__).parents[3])
        out = tmp_path / n
        subprocess.run([sys.executable, "-c", code, json.dumps(config), out], check=True, env=env)
        seen.add(content(out))
    assert len(seen) == 1


def test_nothing_changed_costs_one_pass(tmp_path, monkeypatch):
    config, _ = models(tmp_path, SPECTRA["slow"])
    both = files.read(tmp_path / "base")
    both[NAME] = files.read(tmp_path / "other")[NAME]
    files.write_file(tmp_path / "other" / "model.safetensors",
                     {name: ("F32", x) for name, x in both.items()})  # fmt: skip
    seen = []
    plain = lora.MatrixDelta.each
    monkeypatch.setattr(lora.MatrixDelta, "each",
                        lambda self, use: (seen.append(self.name), plain(self, use)))  # fmt: skip
    result = to_adapter(config, tmp_path / "out", rank=3)
    assert {n for n, fit in result.fits.items() if fit.rank} == {NAME}
    assert seen.count("model.layers.0.mlp.down_proj.weight") == 1
    assert seen.count(NAME) == 2 + 2 * lora._ITERATIONS + 1
