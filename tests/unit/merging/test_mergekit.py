"""The same tensors as mergekit, from the same YAML files; skipped where it is not installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lens.merging.config import read_config
from lens.merging.operations import merge
from tests.helpers import maec_files as files

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mergekit") is None, reason="mergekit is not installed"
)

ROOT = Path(__file__).parents[3]
REST = 2.0**-31  # weights times elements are of size 2**-7 where that was seen
GRADIENT = [0.2, 0.9, 0.4]
TASKS = {
    "linear": ({"weight": 0.7}, {"weight": GRADIENT}, {"normalize": True}),
    "task_arithmetic": ({"weight": 0.7}, {"weight": GRADIENT}, {"lambda": 0.8}),
    "ties": ({"weight": 0.7, "density": 0.4}, {"weight": 0.5, "density": 0.3}, {}),
    "dare_ties": ({"weight": 0.7, "density": 0.4}, {"weight": 0.5, "density": 0.6}, {}),
    "dare_linear": ({"weight": 0.7, "density": 0.4}, {"weight": 0.5}, {"rescale": False}),
    "della": ({"weight": 0.7, "density": 0.4}, {"weight": 0.5, "density": 0.6}, {"epsilon": 0.1}),
    "della_linear": ({"weight": 0.7, "density": 0.5}, {"weight": 0.5, "density": 0.6}, {}),
    "breadcrumbs": ({"weight": 0.7, "density": 0.4}, {"weight": 0.5, "density": 0.6}, {}),
    "breadcrumbs_ties": (
        {"weight": 0.7, "density": 0.5, "gamma": 0.05}, {"weight": 0.5, "density": 0.9},
        {"normalize": True},
    ),
}  # fmt: skip
DTYPES = {"dtype": "float32", "out_dtype": "bfloat16"}


def slerp(base, other):
    ranges = [{"model": str(m), "layer_range": [0, 4]} for m in (base, other)]
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0]},
        {"value": 0.4},
    ]
    return {"slices": [{"sources": ranges}], "merge_method": "slerp", "base_model": str(base),
            "parameters": {"t": t}, **DTYPES}  # fmt: skip


def stacked(base, other):
    pieces = [
        {"sources": [{"model": str(base), "layer_range": [0, 3]}]},
        {"sources": [{"model": str(other), "layer_range": [1, 4]}]},
    ]
    return {"slices": pieces, "merge_method": "passthrough", **DTYPES}


def part(model, first, last, **parameters):
    return {"model": str(model), "layer_range": [first, last], "parameters": parameters}


def of(model, **parameters):
    return {"model": str(model), "parameters": parameters}


def shapes_of_configs(base, one, two):
    """Every way in which a file may say what a parameter is, and what is merged."""
    by_kind = [
        {"filter": "mlp", "value": [0.1, 0.8]},
        {"filter": "self_attn", "value": 0.3},
        {"value": 0.5},
    ]
    blocks = [
        {"sources": [part(base, 0, 2), part(one, 0, 2, weight=0.7)], "parameters": {"lambda": 0.8}},
        {"sources": [part(base, 2, 4), part(two, 2, 4, weight=[0.2, 0.9])]},
    ]
    franken = [
        {"sources": [part(one, 0, 3)]},
        {"sources": [part(two, 1, 3, scale=[0.5, 1])]},
        {"sources": [part(base, 3, 4)]},
    ]
    return {
        "linear, filters, no base": {
            "merge_method": "linear", "models": [of(one, weight=GRADIENT), of(two, weight=by_kind)],
        },
        "linear, long form, not normalized": {
            "merge_method": "linear", "parameters": {"normalize": False},
            "models": [{"model": {"model": {"path": str(one)}}, "parameters": {"weight": -0.4}},
                       of(two, weight=1.1)],
        },
        "task_arithmetic, slices": {
            "merge_method": "task_arithmetic", "base_model": str(base), "slices": blocks,
        },
        "task_arithmetic, filters, texts": {
            "merge_method": "task_arithmetic", "base_model": str(base),
            "models": [of(base), of(one, weight=by_kind), of(two, weight="1e-1")],
            "parameters": {"lambda": [{"filter": "norm", "value": 0.5}, {"value": 1.2}],
                           "normalize": True, "int8_mask": True},
        },
        "ties, nothing said of a model": {
            "merge_method": "ties", "base_model": str(base), "tokenizer_source": None,
            "models": [{"model": str(one), "parameters": None}, {"model": str(two)}],
            "parameters": {"weight": 0.4, "density": [1, 0.5, 0.1]},
        },
        "ties, edges": {
            "merge_method": "ties", "base_model": str(base),
            "models": [of(one, weight=1, density=1.0), of(two, weight=0, density=0.3)],
            "parameters": {"normalize": True, "rescale": True, "lambda": [0.5, 1.5]},
        },
        "della, no epsilon": {
            "merge_method": "della", "base_model": str(base),
            "models": [of(one, weight=0.5, density=0.5), of(two, weight=0.4, density=1.0)],
            "parameters": {"epsilon": 0.0, "rescale": False, "normalize": False},
        },
        "breadcrumbs, many outliers": {
            "merge_method": "breadcrumbs", "base_model": str(base),
            "models": [of(one, weight=0.5, density=0.3, gamma=0.9), of(two, weight=0.4, gamma=0.0)],
            "parameters": {"rescale": True, "density": 0.9},
        },
        "slerp, models in the other order": {
            "merge_method": "slerp", "base_model": str(one), "models": [of(base), of(one)],
            "parameters": {"t": [0, 0.5, 1]},
        },
        "passthrough, scaled": {"merge_method": "passthrough", "slices": franken},
    }  # fmt: skip


VARIANTS = tuple(shapes_of_configs("", "", ""))


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Merge with both, every configuration; give the folders by method."""
    at = tmp_path_factory.mktemp("mergekit")
    config = {"architectures": ["LlamaForCausalLM"], "intermediate_size": 24,
              "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
    shapes = {
        name: shape
        for name, shape in files.SHAPES.items()
        if "layers" not in name
    }  # fmt: skip
    for n in range(4):
        block = {"input_layernorm": (16,), "post_attention_layernorm": (16,),
                 "mlp.up_proj": (24, 16), "mlp.gate_proj": (24, 16), "mlp.down_proj": (16, 24),
                 **{f"self_attn.{p}_proj": (16, 16) for p in "qkvo"}}  # fmt: skip
        shapes |= {f"model.layers.{n}.{name}.weight": shape for name, shape in block.items()}
    base = files.checkpoint(at / "base", config=config, shapes=shapes)
    others = [
        files.checkpoint(at / f"m{i}", seed=i, near=base, config=config, shapes=shapes)
        for i in (1, 2)
    ]
    configs = {
        name: {
            "merge_method": name, "base_model": str(base), "parameters": shared, **DTYPES,
            "models": [{"model": str(m), "parameters": own}
                       for m, own in zip(others, each, strict=True)],
        }
        for name, (*each, shared) in TASKS.items()
    }  # fmt: skip
    configs["linear"]["models"].append({"model": str(base), "parameters": {"weight": 0.1}})
    configs |= {"slerp": slerp(base, others[0]), "passthrough": stacked(base, others[1])}
    configs |= {name: DTYPES | values for name, values in shapes_of_configs(base, *others).items()}
    arguments = []
    for name, values in configs.items():
        path = at / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        merge(read_config(path), at / f"ours-{name}")
        arguments += [str(path), str(at / f"theirs-{name}")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.mergekit_side", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return at


@pytest.mark.parametrize("name", [*TASKS, "slerp", "passthrough", *VARIANTS])
def test_tensors_are_those_of_mergekit(merged, name):
    ours, theirs = files.read(merged / f"ours-{name}"), files.read(merged / f"theirs-{name}")
    assert ours.keys() == theirs.keys()
    base = files.read(merged / "base")
    for key, x in ours.items():
        # Where a sum cancels, mergekit's products in float32 leave a rest of their rounding.
        rest = np.abs(x - theirs[key]) <= REST
        assert files.ulps(np.where(rest, 0, x), np.where(rest, 0, theirs[key])) <= 1, key
    if name != "passthrough":
        assert any((ours[key] != base[key]).any() for key in ours)
