"""Merges written as LoRA adapters: what peft makes of them, and the error that is measured."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from lens.cli.app import main
from lens.errors import InputError
from lens.merging import tensors as cutting
from lens.merging.lora import to_adapter
from lens.merging.operations import merge
from tests.helpers import maec_files as files
from tests.helpers import tiny


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A merge whose change has rank 3 at every matrix."""
    monkeypatch.setattr(cutting, "SLICE", 512)
    base, other = tmp_path / "base", tmp_path / "other"
    for folder in (base, other):
        tiny.model("llama").save_pretrained(folder)
    rng = np.random.default_rng(0)
    tensors = files.read(base)
    for name, x in tensors.items():
        if x.ndim == 2:
            left, right = rng.standard_normal((x.shape[0], 3)), rng.standard_normal((3, x.shape[1]))
            tensors[name] = (x + 0.1 * left @ right).astype(np.float32)
    files.write_file(other / "model.safetensors", {n: ("F32", x) for n, x in tensors.items()})
    return {"merge_method": "task_arithmetic", "base_model": str(base),
            "models": [{"model": str(other), "parameters": {"weight": 0.5}}]}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_peft_merges_the_adapter_to_the_same_model(values, tmp_path):
    import peft

    result = to_adapter(values, tmp_path / "adapter", rank=3)
    assert result.error < 1e-5
    net = peft.PeftModel.from_pretrained(tiny.model("llama"), tmp_path / "adapter")
    got = {n: x.float().numpy() for n, x in net.merge_and_unload().state_dict().items()}
    merge({**values, "out_dtype": "float32"}, tmp_path / "whole")
    for name, want in files.read(tmp_path / "whole").items():
        np.testing.assert_allclose(got[name], want, rtol=0, atol=2e-5, err_msg=name)
    again = {"merge_method": "passthrough", "out_dtype": "float32",
             "models": [{"model": f"{values['base_model']}+{tmp_path / 'adapter'}"}]}  # fmt: skip
    merge(again, tmp_path / "again")
    for name, want in files.read(tmp_path / "whole").items():
        np.testing.assert_allclose(files.read(tmp_path / "again")[name], want, rtol=0, atol=2e-5)


def test_the_error_is_that_of_the_best_of_its_rank(values, tmp_path):
    result = to_adapter(values, tmp_path / "adapter", rank=2)
    base, other = (files.read(tmp_path / n) for n in ("base", "other"))
    for name, fit in result.fits.items():
        delta = 0.5 * (other[name] - base[name]).astype(np.float64)
        assert fit.norm == pytest.approx(np.linalg.norm(delta), rel=1e-4, abs=1e-6)
        if delta.ndim == 2:
            best = np.sqrt((np.linalg.svd(delta, compute_uv=False)[2:] ** 2).sum())
            assert best * 0.999 <= fit.error <= best * 1.01
            assert fit.rank == 2


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_energy_chooses_the_smallest_rank(values, tmp_path, energy):
    result = to_adapter(values, tmp_path / "adapter", energy=energy)
    base, other = (files.read(tmp_path / n) for n in ("base", "other"))
    for name, fit in result.fits.items():
        if base[name].ndim == 2:
            s = np.linalg.svd((other[name] - base[name]).astype(np.float64), compute_uv=False)
            kept = np.cumsum(s**2) / (s**2).sum()
            assert fit.rank == 1 + int((kept < energy - 1e-6).sum())
            assert 1 - (fit.error / fit.norm) ** 2 >= energy - 1e-5
    ranks = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert set(ranks.values()) == {f.rank for f in result.fits.values() if f.rank}


def test_vectors_count_as_lost(values, tmp_path):
    base = files.read(tmp_path / "base")
    tensors = files.read(tmp_path / "other")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    files.write_file(tmp_path / "other" / "model.safetensors",
                     {n: ("F32", x) for n, x in tensors.items()})  # fmt: skip
    result = to_adapter(values, tmp_path / "adapter", rank=3)
    lost = result.fits["model.norm.weight"]
    assert lost.rank == 0 and lost.error == lost.norm == pytest.approx(0.5 * np.sqrt(32))
    total = np.sqrt(sum(np.sum((0.5 * (tensors[n] - base[n])) ** 2) for n in base))
    assert result.error == pytest.approx(lost.error / total, rel=1e-3)


def test_refusals(values, tmp_path):
    for given, said in (({}, "exactly one"), ({"rank": 0}, "at least 1"), ({"energy": 2}, "share")):
        with pytest.raises(InputError, match=said):
            to_adapter(values, tmp_path / "x", **given)
    nothing = {
        **values,
        "models": [{"model": str(tmp_path / "other"), "parameters": {"weight": 0}}],
    }
    with pytest.raises(InputError, match="nothing to adapt"):
        to_adapter(nothing, tmp_path / "x", rank=2)
    assert not (tmp_path / "x").exists()


def test_command_line(values, tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps(values))
    flags = ["merge", "-C", str(path), "--out", str(tmp_path / "a"), "--lora-rank", "3"]
    done = CliRunner().invoke(main, flags)
    assert done.exit_code == 0 and "of the change is lost" in done.output, done.output
    assert (tmp_path / "a" / "adapter_model.safetensors").is_file()


def test_an_adapter_never_replaces_a_source(values, tmp_path):
    for place in (tmp_path / "base", tmp_path):
        with pytest.raises(InputError, match="would be replaced; choose another --out"):
            to_adapter(values, place, rank=2, force=True)
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_a_full_disk_is_told_and_leaves_nothing(values, tmp_path):
    code = (
        "import json, resource, signal, sys; from lens.merging.lora import to_adapter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "to_adapter(json.loads(sys.argv[1]), sys.argv[2], rank=3)"
    )
    place = tmp_path / "here"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(values), str(place / "adapter")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "InputError: cannot write" in done.stderr
    assert "make room" in done.stderr
    assert list(place.iterdir()) == []
