"""Artifacts of published code: read without running what is in them, and refused when wrong."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from lens.errors import InputError
from lens.space.importers import read_bases, read_pickle, read_states
from lens.subspace import principal_angles

RNG = np.random.default_rng(0)
D = 8


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("name", ["en.pkl", "en_hidden_last.pkl", "en.pt"])
@pytest.mark.parametrize("hide", [lambda x: x, lambda x: {0: [x]}, lambda x: np.array([x])])
def test_a_pickle_cannot_run_code(tmp_path, monkeypatch, name, hide):
    monkeypatch.chdir(tmp_path)
    save = torch.save if name.endswith(".pt") else lambda x, f: f.write_bytes(pickle.dumps(x))
    save(hide(Attack()), tmp_path / name)
    with pytest.raises(InputError, match=r"(posix|nt)\.?\s?system|tensors alone"):
        read_states(tmp_path, sites=["final"], pooling="last")
    assert not (tmp_path / "pwned").exists()


def test_code_hidden_inside_a_tensor_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Hidden:
        def __reduce__(self):
            import io

            inner = io.BytesIO()
            torch.save(Attack(), inner)
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    (tmp_path / "en.pkl").write_bytes(pickle.dumps(Hidden()))
    with pytest.raises(InputError, match="cannot be read as a pickle"):
        read_pickle(tmp_path / "en.pkl")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_arrays_of_every_protocol(tmp_path, protocol, dtype):
    content = {"a": RNG.normal(size=(2, 3)).astype(dtype), "b": [dtype(2), {1, 2}, (None, "x")]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(tmp_path / "x.pkl")
    np.testing.assert_array_equal(read["a"], content["a"])
    assert read["b"] == content["b"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_in_plain_pickles(tmp_path, dtype):
    tensor = torch.randn(3, 4).to(dtype)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": tensor}))
    assert torch.equal(read_pickle(tmp_path / "x.pkl")["a"], tensor)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_damaged_pickles(tmp_path, kept):
    content = pickle.dumps({"a": np.zeros((40, 3))})
    stop = kept if isinstance(kept, int) else int(len(content) * kept)
    (tmp_path / "x.pkl").write_bytes(content[:stop])
    with pytest.raises(InputError, match="cut off or damaged"):
        read_pickle(tmp_path / "x.pkl")


def test_published_subspaces(tmp_path):
    basis = np.linalg.qr(RNG.normal(size=(D, 2)))[0]
    layers = torch.tensor(np.stack([basis.T, basis.T, basis.T]))
    torch.save(layers, tmp_path / "vector.pt")
    (tmp_path / "lang_specific_space_last.pkl").write_bytes(pickle.dumps(layers))
    read = read_bases(tmp_path / "vector.pt")
    assert list(read) == ["block.0", "block.1", "block.2"]
    assert list(read_bases(tmp_path / "lang_specific_space_last.pkl"))[-1] == "final"
    assert principal_angles(read["block.1"], basis).max() < 1e-6
    torch.save({"x": layers}, tmp_path / "vector.pt")
    with pytest.raises(InputError, match="a dict with keys 'x'; expected one tensor"):
        read_bases(tmp_path / "vector.pt")
    with pytest.raises(InputError, match="does not exist"):
        read_bases(tmp_path / "absent.pt")


def test_artifacts_of_the_wrong_kind(tmp_path):
    row = {"id": 1, "embd_weighted": np.ones(D), "embd_lasttoken": np.ones(D)}
    for code in ("en", "es", "sw"):
        (tmp_path / f"{code}.pkl").write_bytes(pickle.dumps({0: [row], 1: [row]}))
    with pytest.raises(InputError, match="has no mean vectors; choose pooling weighted or last"):
        read_states(tmp_path)
    (tmp_path / "es.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InputError, match=r"'es.pkl' holds a list of 2; expected states of MEXA"):
        read_states(tmp_path, pooling="last")
    (tmp_path / "es.pkl").write_bytes(pickle.dumps({0: [{"id": 1}], 1: [{"id": 1}]}))
    with pytest.raises(InputError, match="is not as MEXA writes it"):
        read_states(tmp_path, pooling="last")
