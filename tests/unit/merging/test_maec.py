"""MAEC: key neurons, selection and combination against whole models in memory."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import weights
from lens.errors import InputError
from lens.merging import tensors as cutting
from lens.merging.operations import extract, merge, verify
from lens.merging.plan import plan_merge
from tests.helpers import maec_files as files
from tests.helpers import maec_reference as reference


@pytest.fixture(autouse=True)
def slices(monkeypatch):
    """Cut small tensors as large ones are."""
    monkeypatch.setattr(cutting, "SLICE", 64)


@pytest.fixture
def models(tmp_path):
    """Base, brief and full training on an ability, pivot text, and two languages."""
    base = files.checkpoint(tmp_path / "base")
    made = {"base": base}
    for seed, name in enumerate(("located", "trained", "pivot", "es", "sw"), 1):
        made[name] = files.checkpoint(tmp_path / name, seed=seed, near=base)
    return made


def config(models, *, languages=("es",), located=True, pivot=True, **parameters):
    ability = {"trained": str(models["trained"])}
    if located:
        ability["located"] = str(models["located"])
    if pivot:
        ability["pivot"] = str(models["pivot"])
    return {
        "merge_method": "maec", "base_model": str(models["base"]), "out_dtype": "float32",
        "abilities": [ability], "parameters": parameters,
        "languages": [{"model": str(models[n]), "mu": 0.5 + i} for i, n in enumerate(languages)],
    }  # fmt: skip


def changes(models):
    base = files.read(models["base"])
    found = {n: files.read(m) for n, m in models.items()}
    return base, {n: {k: x[k] - base[k] for k in base} for n, x in found.items()}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_largest_is_a_stable_sort(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = data.draw(st.integers(1, 300))
    x = rng.standard_normal(n).astype(np.float32)
    if data.draw(st.booleans()):
        x = np.round(x, 1)  # ties, and zeros
    k = data.draw(st.integers(0, n + 2))
    last = data.draw(st.booleans())
    parts = np.array_split(x, data.draw(st.integers(1, 5)))
    found = weights.topk_mask(k, lambda: iter(parts), last=last)
    mask = np.concatenate([found.mask(part, i) for i, part in enumerate(parts)])
    order = np.argsort(-np.abs(x[::-1] if last else x), kind="stable")
    want = np.zeros(n, bool)
    want[n - 1 - order[:k] if last else order[:k]] = True
    np.testing.assert_array_equal(mask, want & (x != 0))


@pytest.mark.parametrize("unit", ["element", "row", "column"])
@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("mask_pivot", [True, False])
def test_against_whole_models(models, tmp_path, unit, scope, mask_pivot):
    settings = {"k1": 0.2, "k2": 0.5, "alpha": 0.8, "beta": 0.3, "gamma": 1.2, "eta": 0.7}
    values = config(models, languages=("es", "sw"), unit=unit, scope=scope, mask_pivot=mask_pivot,
                    **settings)  # fmt: skip
    result = merge(values, tmp_path / "out")
    base, delta = changes(models)
    masks = weights.topk_masks(delta["located"], share=0.2, unit=unit, per_tensor=scope == "tensor")
    ability = {}
    for name in base:
        own, pivot = 0.8 * delta["trained"][name], -0.3 * delta["pivot"][name]
        m = masks[name]
        ability[name] = (own + pivot) * m if mask_pivot else own * m + pivot
    language = {n: 0.5 * delta["es"][n] + 1.5 * delta["sw"][n] for n in base}
    want, cosines, chosen = reference.maec(base, ability, language, k2=0.5, gamma=1.2, eta=0.7)
    assert 0 < len(chosen) < len(base)
    for name, fact in result.facts["tensors"].items():
        assert fact["cosine"] == pytest.approx(cosines[name], abs=1e-6)
        assert fact["part"] == ("both" if name in chosen else "language")
    found = files.read(tmp_path / "out")
    for name in base:
        np.testing.assert_allclose(found[name], want[name], rtol=0, atol=2e-6, err_msg=name)


def test_ties_go_to_the_first_tensor_and_element(tmp_path):
    shapes = {"model.b.weight": (8, 16), "model.a.weight": (16, 8)}
    base = files.checkpoint(tmp_path / "base", shapes=shapes, dtype="F32", near=None)
    trained = tmp_path / "trained"
    trained.mkdir()
    tensors = {n: ("F32", np.round(x) + 0.5) for n, x in files.read(base).items()}
    files.write_file(base / "model.safetensors", {n: ("F32", x[1] * 0) for n, x in tensors.items()})
    files.write_file(trained / "model.safetensors", tensors)
    values = {"merge_method": "maec", "base_model": str(base), "parameters": {"k1": 0.4},
              "abilities": [{"trained": str(trained)}]}  # fmt: skip
    merge(values, tmp_path / "out")
    want = weights.topk_masks({n: x for n, (_, x) in tensors.items()}, share=0.4)
    for name, x in files.read(tmp_path / "out").items():
        np.testing.assert_array_equal(x != 0, want[name])


def test_nothing_selected_is_the_plain_language_model(models, tmp_path):
    values = config(models, located=False, pivot=False, alpha=1, beta=0, k1=1, k2=0, eta=1)
    values["languages"][0]["mu"] = 1
    del values["out_dtype"]
    merge(values, tmp_path / "out")
    assert files.raw_bits(tmp_path / "out") == files.raw_bits(models["es"])


def test_with_nothing_set_it_is_task_arithmetic(models, tmp_path):
    values = config(models, located=False, pivot=False)
    merge(values, tmp_path / "out")
    plain = {
        "merge_method": "task_arithmetic", "base_model": str(models["base"]),
        "out_dtype": "float32", "models": [
            {"model": str(models["trained"]), "parameters": {"weight": 1}},
            {"model": str(models["es"]), "parameters": {"weight": 0.5}},
        ],
    }  # fmt: skip
    merge(plain, tmp_path / "plain")
    found, want = files.read(tmp_path / "out"), files.read(tmp_path / "plain")
    for name, x in want.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=np.spacing(np.abs(x).max()))


def test_a_tensor_without_a_language_change_gets_the_ability(models, tmp_path):
    es = files.read(models["es"])
    base = files.read(models["base"])
    es["model.norm.weight"] = base["model.norm.weight"]
    files.write_file(models["es"] / "model.safetensors",
                     {n: ("BF16", files.raw_of(x, "BF16")) for n, x in es.items()})  # fmt: skip
    result = merge(config(models, located=False, pivot=False, k2=0, gamma=0.5), tmp_path / "out")
    assert result.facts["tensors"]["model.norm.weight"]["part"] == "ability"
    assert result.facts["tensors"]["model.norm.weight"]["cosine"] is None
    found = files.read(tmp_path / "out")["model.norm.weight"]
    step = files.read(models["trained"])["model.norm.weight"] - base["model.norm.weight"]
    np.testing.assert_allclose(found, base["model.norm.weight"] + 0.5 * step, atol=1e-6)


def test_several_abilities_add_up(models, tmp_path):
    values = config(models, located=False, pivot=False, k1=0.3)
    values["abilities"].append({"trained": str(models["located"]), "weight": -0.5})
    merge(values, tmp_path / "out")
    base, delta = changes(models)
    masks = [weights.topk_masks(delta[n], share=0.3) for n in ("trained", "located")]
    ability = {
        n: delta["trained"][n] * masks[0][n] - 0.5 * delta["located"][n] * masks[1][n] for n in base
    }
    language = {n: 0.5 * delta["es"][n] for n in base}
    want, _, _ = reference.maec(base, ability, language, k2=1, gamma=1, eta=1)
    found = files.read(tmp_path / "out")
    for name in base:
        np.testing.assert_allclose(found[name], want[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("unit", ["element", "row"])
def test_an_extracted_ability_is_the_ability(models, tmp_path, unit):
    settings = {"k1": 0.15, "alpha": 0.8, "beta": 0.3, "unit": unit}
    values = config(models, k2=0.6, gamma=0.9, **settings)
    merge(values, tmp_path / "direct")
    found = extract(values, tmp_path / "ability.safetensors")
    _, delta = changes(models)
    masks = weights.topk_masks(delta["located"], share=0.15, unit=unit)
    for name, mask in masks.items():
        shape = delta["located"][name].shape
        assert found.per_tensor[name] == np.count_nonzero(np.broadcast_to(mask, shape))
    values["abilities"] = [{"extracted": str(tmp_path / "ability.safetensors")}]
    values["parameters"] = {"k2": 0.6, "gamma": 0.9}
    merge(values, tmp_path / "later")
    assert files.raw_bits(tmp_path / "later") == files.raw_bits(tmp_path / "direct")
    verify(tmp_path / "later", sample=None)


def test_extract_refuses_what_is_not_sparse(models, tmp_path):
    for parameters, said in (
        ({}, "k1 is 1"),
        ({"k1": 0.1, "beta": 0.2, "mask_pivot": False}, "mask_pivot is false"),
    ):
        with pytest.raises(InputError, match=said):
            extract(config(models, **parameters), tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_the_null_is_a_draw_of_signs(models, tmp_path):
    result = merge(config(models, located=False, pivot=False), tmp_path / "out")
    base, delta = changes(models)
    facts = result.facts["tensors"]
    for name in base:
        x, y = delta["trained"][name].ravel(), 0.5 * delta["es"][name].ravel()
        size = np.linalg.norm(x) * np.linalg.norm(y)
        sd = math.sqrt(float(((x * y).astype(np.float64) ** 2).sum())) / size
        assert facts[name]["null_sd"] == pytest.approx(sd, rel=1e-4)
        assert abs(facts[name]["null"]) < 5 * sd
    assert len({fact["null"] for fact in facts.values()}) == len(facts)


def test_gpt2_has_its_neurons_in_columns(models, tmp_path):
    shapes = {"h.0.attn.c_attn.weight": (16, 48), "wte.weight": (48, 16)}
    folders = [
        files.checkpoint(tmp_path / f"g{n}", seed=n, shapes=shapes, config={"model_type": "gpt2"})
        for n in range(2)
    ]
    values = {"merge_method": "maec", "base_model": str(folders[0]), "out_dtype": "float32",
              "parameters": {"k1": 0.3, "unit": "row"},
              "abilities": [{"trained": str(folders[1])}]}  # fmt: skip
    merge(values, tmp_path / "out")
    base, out = files.read(folders[0]), files.read(tmp_path / "out")
    changed = (base["h.0.attn.c_attn.weight"] != out["h.0.attn.c_attn.weight"]).all(axis=0)
    assert (
        changed == (base["h.0.attn.c_attn.weight"] != out["h.0.attn.c_attn.weight"]).any(0)
    ).all()
    assert 0 < changed.sum() < 48


def test_preset_is_the_papers_and_what_is_given_wins(models):
    plan = plan_merge(config(models, preset="paper", gamma=0.5))
    values = plan.targets[0].parameters
    assert values["alpha"] == 0.8 and values["k1"] == 0.05 and values["gamma"] == 0.5


def test_problems_of_maec(models):
    assert "has no pivot" in plan_merge(config(models, pivot=False, beta=0.2)).problems[0]
    both = config(models) | {"models": [{"model": str(models["es"])}]}
    assert "abilities and languages" in plan_merge(both).problems[0]
    with pytest.raises(InputError, match="exactly one of 'trained' and 'extracted'"):
        plan_merge(config(models) | {"abilities": [{"pivot": "x"}]})


def test_facts_are_in_the_record(models, tmp_path):
    result = merge(config(models, k1=0.1), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert record["facts"] == json.loads(json.dumps(result.facts))
    assert set(record["facts"]["located"]["0"]) == set(files.SHAPES)
