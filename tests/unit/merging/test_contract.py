"""The contract of a merge method: a stranger writes one, and everything works with it."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from lens.errors import InputError
from lens.merging import MergeConfig, merge, plan_merge, to_adapter, verify
from lens.merging import tensors as cutting
from lens.merging.config import Parameter
from lens.merging.methods import METHODS, Method, base, register
from tests.helpers import maec_files as files

ROOT = Path(__file__).parents[3]
CONTRACT = ("inputs", "problems", "scratch", "prepare", "run")


class Clipped(Method):
    """The base plus deltas clipped at a multiple of the model's mean |delta|: all five methods."""

    name = "clipped"
    title = "Clipped task arithmetic"
    whole = True
    passes = 2
    parameters = (Parameter("weight", None, "others"), Parameter("bound", 2.0, low=0.0))

    def inputs(self, config):
        taken, problems = super().inputs(config)
        return taken[::-1], problems

    def problems(self, config, parameters, targets):
        return ["clipped: the seed is 13"] if parameters["seed"] == 13 else []

    def scratch(self, n_inputs):
        return 8 * n_inputs

    def prepare(self, executor, targets):
        def size(task):
            deltas = [np.abs(task.delta(i, c)) for i in task.target.others for c in task.chunks]
            return float(np.concatenate(deltas).mean(dtype=np.float64))

        found = executor.map(size, targets, whole=True, label="Measuring")
        return {target.name: mean for target, mean in found}

    def run(self, task):
        limit = np.float32(task.target.parameters["bound"] * task.facts[task.target.name])
        for chunk in task.missing:
            total = task.base(chunk)
            for i in task.target.others:
                delta = np.clip(task.delta(i, chunk), -limit, limit)
                total = total + np.float32(task.target.value("weight", i)) * delta
            task.write(chunk, total)


@pytest.fixture
def registered(monkeypatch):
    """Methods registered within a test are gone after it."""
    before = dict(METHODS)
    yield register
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def models(tmp_path):
    at = files.checkpoint(tmp_path / "base", dtype="F32")
    other = files.checkpoint(tmp_path / "other", seed=1, near=at, dtype="F32")
    return at, other


def config(models, method, **parameters):
    base, other = map(str, models)
    entry = {"model": other, "parameters": {"weight": 0.5} if method == "clipped" else {}}
    return {"merge_method": method, "base_model": base, "models": [entry], "parameters": parameters}


def test_a_method_written_here_merges_resumes_and_verifies(
    registered, models, tmp_path, monkeypatch
):
    monkeypatch.setattr(cutting, "SLICE", 64)
    values = config(models, "clipped", bound=1.5)
    with pytest.raises(InputError, match="unknown merge_method 'clipped'"):
        plan_merge(values)
    registered(Clipped())
    assert plan_merge(values).problems == ()
    assert plan_merge(values | {"seed": 13}).problems == ("clipped: the seed is 13",)
    result = merge(values, tmp_path / "out")
    assert set(result.facts) == set(files.SHAPES)
    before, other, found = (files.read(m) for m in (*models, tmp_path / "out"))
    for name, x in found.items():
        delta = other[name] - before[name]
        limit = 1.5 * np.abs(delta).mean(dtype=np.float64)
        want = before[name] + 0.5 * np.clip(delta, -limit, limit)
        np.testing.assert_allclose(x, want, rtol=0, atol=1e-6, err_msg=name)
    assert verify(tmp_path / "out", sample=None).tensors == len(files.SHAPES)
    assert to_adapter(values, tmp_path / "adapter", rank=16).error < 1


def test_the_example_of_the_documentation_merges(registered, models, tmp_path):
    page = ROOT / "docs" / "maec.md"
    if not page.is_file():
        pytest.skip("not in a checkout")
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    (example,) = (block for block in blocks if "register(" in block)
    exec(compile(example, "docs/maec.md", "exec"), {"__name__": "example"})
    merge(config(models, "midpoint", t=0.25), tmp_path / "out")
    before, other, found = (files.read(m) for m in (*models, tmp_path / "out"))
    for name, x in found.items():
        np.testing.assert_allclose(x, 0.75 * before[name] + 0.25 * other[name], atol=1e-6)
    with pytest.raises(InputError, match="'t': got 2, expected a number from 0 to 1"):
        plan_merge(config(models, "midpoint", t=2)).check()


def test_two_methods_cannot_have_one_name(registered):
    class Other(Clipped):
        name = "linear"

    with pytest.raises(InputError, match="there is a merge method 'linear' already"):
        registered(Other())


def test_the_contract_is_five_methods():
    defined = {name for name, x in vars(Method).items() if callable(x) and name[0] != "_"}
    assert defined == set(CONTRACT)
    for method in METHODS.values():
        inherited = [c for c in type(method).__mro__ if c.__module__.startswith("lens.")]
        assert inherited[-1] is Method and method.title


def test_a_method_stands_in_one_file_alone():
    """Names of methods are nowhere in the package but in their own modules."""
    package = Path(base.__file__).parent
    names = {name for name in METHODS if name not in ("linear", "maec")}  # words of other modules
    for path in package.parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)} & names
        assert not found or path.parent == package, (path, found)


def test_the_registry_is_the_documented_one():
    assert MergeConfig(merge_method="x").merge_method == "x"  # checked by the plan, with advice
    assert {"linear", "ties", "maec", "slerp"} < set(METHODS)
