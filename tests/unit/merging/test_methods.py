"""Merge methods against plain NumPy over whole tensors, and the identities they must keep."""

import numpy as np
import pytest

from lens.errors import InputError
from lens.merging import tensors as cutting
from lens.merging.methods import METHODS
from lens.merging.methods.sparse import ranks
from lens.merging.operations import merge
from lens.merging.plan import plan_merge
from tests.helpers import maec_files as files
from tests.helpers import maec_reference as reference

WEIGHTS, DENSITIES = [0.7, 0.5], [0.4, 0.6]
SPARSE = {
    "ties": ("largest", True, 0.0, False, True),
    "dare_linear": ("random", False, 0.0, True, False),
    "dare_ties": ("random", True, 0.0, True, False),
    "della_linear": ("ranks", False, 0.15, True, False),
    "della": ("ranks", True, 0.15, True, True),
    "breadcrumbs": ("middle", False, 0.01, False, False),
    "breadcrumbs_ties": ("middle", True, 0.01, False, False),
}


@pytest.fixture(params=[64, 1 << 20], ids=["many slices", "one slice"])
def slices(request, monkeypatch):
    """Cut small tensors as large ones are."""
    monkeypatch.setattr(cutting, "SLICE", request.param)


@pytest.fixture
def three(tmp_path):
    """A base and two models near it, one in two files."""
    base = files.checkpoint(tmp_path / "base")
    first = files.checkpoint(tmp_path / "a", seed=1, near=base, shards=2)
    return base, first, files.checkpoint(tmp_path / "b", seed=2, near=base, dtype="F32")


def config(method, base, models, *, weights=WEIGHTS, **parameters):
    return {
        "merge_method": method, "base_model": str(base), "out_dtype": "float32",
        "models": [{"model": str(m), "parameters": {"weight": w}}
                   for m, w in zip(models, weights, strict=True)],
        "parameters": parameters,
    }  # fmt: skip


def merged(values, out, **options):
    merge(values, out, **options)
    return files.read(out)


def assert_close(found, expected, tolerance=2.0**-22):
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        bound = tolerance * max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(found[name], want, rtol=0, atol=bound, err_msg=name)


def test_linear(slices, three, tmp_path):
    tensors = [files.read(m) for m in three]
    values = config("linear", three[0], three, weights=[0.2, 0.5, 1.5])
    want = {n: reference.linear([t[n] for t in tensors], [0.2, 0.5, 1.5]) for n in files.SHAPES}
    assert_close(merged(values, tmp_path / "out"), want)


def test_task_arithmetic(slices, three, tmp_path):
    base, *others = [files.read(m) for m in three]
    values = config("task_arithmetic", three[0], three[1:], **{"lambda": 0.9})
    want = {
        n: reference.task_arithmetic(base[n], [t[n] for t in others], WEIGHTS, 0.9)
        for n in files.SHAPES
    }
    assert_close(merged(values, tmp_path / "out"), want)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(slices, three, tmp_path, t):
    other = files.checkpoint(tmp_path / "far", seed=7)  # an arc worth the name
    base, end = files.read(three[0]), files.read(other)
    values = config("slerp", three[0], [other], weights=[1], t=t)
    want = {n: reference.slerp(base[n], end[n], t) for n in files.SHAPES}
    assert_close(merged(values, tmp_path / "out"), want)


@pytest.mark.parametrize("method", SPARSE)
def test_sparse_methods(slices, three, tmp_path, method):
    kind, elect, extra, rescale, normalize = SPARSE[method]
    base, *others = [files.read(m) for m in three]
    values = config(method, three[0], three[1:])
    for model, density in zip(values["models"], DENSITIES, strict=True):
        model["parameters"]["density"] = density
    want = {
        n: reference.sparse(
            kind, elect, base[n], [t[n] for t in others], WEIGHTS, DENSITIES, name=n, extra=extra,
            rescale=rescale, normalize=normalize,
        )
        for n in files.SHAPES
    }  # fmt: skip
    assert_close(merged(values, tmp_path / "out"), want, 2.0**-20)


def test_sparse_methods_with_everything_kept_are_task_arithmetic(three, tmp_path):
    plain = merged(config("task_arithmetic", three[0], three[1:]), tmp_path / "plain")
    for method in ("dare_linear", "della_linear", "breadcrumbs"):
        found = merged(config(method, three[0], three[1:], density=1.0), tmp_path / method)
        assert_close(found, plain)


@pytest.mark.parametrize("transition", [0, 1])
def test_layer_swap(three, tmp_path, transition):
    base, other = files.read(three[0]), files.read(three[1])
    values = config("layer_swap", three[0], [three[1]], weights=[1], layers="0:1,-1:",
                    transition=transition)  # fmt: skip
    del values["models"][0]["parameters"]["weight"]
    found = merged(values, tmp_path / "out")
    for name, want in base.items():
        block = int(name.split(".")[2]) if ".layers." in name else None
        share = {0: 1, 3: 1}.get(block, 0.5 * transition if block is not None else 0)
        np.testing.assert_array_equal(found[name], (1 - share) * want + share * other[name])


def test_slices_put_blocks_in_a_new_order(three, tmp_path):
    base, other = files.read(three[0]), files.read(three[1])
    pieces = [
        {"sources": [{"model": str(three[0]), "layer_range": [2, 4]}]},
        {"sources": [{"model": str(three[1]), "layer_range": [0, 3]}]},
    ]
    values = {"merge_method": "passthrough", "slices": pieces}
    found = merged(values, tmp_path / "out")
    for block, (source, origin) in enumerate(
        [(base, 2), (base, 3), *[(other, k) for k in range(3)]]
    ):
        name = "model.layers.{}.mlp.up_proj.weight"
        np.testing.assert_array_equal(found[name.format(block)], source[name.format(origin)])
    np.testing.assert_array_equal(found["lm_head.weight"], other["lm_head.weight"])
    assert '"num_hidden_layers": 5' in (tmp_path / "out" / "config.json").read_text()


def test_gradients_and_filters(three, tmp_path):
    base, other = files.read(three[0]), files.read(three[1])
    values = config("task_arithmetic", three[0], [three[1]], weights=[None])
    values["models"][0]["parameters"]["weight"] = [
        {"filter": "mlp", "value": [0, 1, 0.5]},
        {"filter": "norm", "value": 0},
        {"value": 1},
    ]
    found = merged(values, tmp_path / "out")
    for block, w in enumerate([0, 2 / 3, 5 / 6, 0.5]):
        name = f"model.layers.{block}.mlp.up_proj.weight"
        want = base[name] + w * (other[name].astype(np.float64) - base[name])
        np.testing.assert_allclose(found[name], want, atol=1e-7)
    np.testing.assert_array_equal(found["model.norm.weight"], base["model.norm.weight"])
    np.testing.assert_array_equal(found["lm_head.weight"], other["lm_head.weight"])


def test_a_lone_weight_of_one_copies_bytes(three, tmp_path):
    for number, values in enumerate((
        config("task_arithmetic", three[0], [three[1]], weights=[1]),
        config("linear", three[1], [three[1], three[2]], weights=[1, 0]),
        config("slerp", three[0], [three[1]], weights=[1], t=1),
    )):  # fmt: skip
        del values["out_dtype"]
        merge(values, tmp_path / f"out{number}")
        found, want = (files.raw_bits(f) for f in (tmp_path / f"out{number}", three[1]))
        assert found == want


def test_a_plus_b_minus_b_is_a(three, tmp_path):
    values = config("task_arithmetic", three[0], [three[1], three[2]], weights=[1, 1])
    merge(values, tmp_path / "sum")
    back = config("linear", tmp_path / "sum", [tmp_path / "sum", three[2], three[0]],
                  weights=[1, -1, 1], normalize=False)  # fmt: skip
    found, want = merged(back, tmp_path / "back"), files.read(three[1])
    tensors = [files.read(m) for m in three]
    for name, x in want.items():
        largest = np.max([np.abs(t[name]) for t in tensors], axis=0)
        assert (np.abs(found[name] - x) <= 2 * np.spacing(np.maximum(largest, 1e-30))).all()


@pytest.mark.parametrize("method", METHODS)
def test_memory_threads_and_slices_in_flight_change_no_byte(three, tmp_path, method, monkeypatch):
    monkeypatch.setattr(cutting, "SLICE", 128)
    values = config(method, three[0], three[1:2], weights=[0.7])
    values["parameters"] = {"t": 0.3} if method == "slerp" else {}
    if method in ("passthrough", "linear"):
        del values["base_model"]
    if method == "layer_swap":
        values["parameters"] = {"layers": "0:2"}
    if method == "maec":
        del values["models"]
        values |= {"abilities": [{"trained": str(three[1])}],
                   "languages": [{"model": str(three[2])}], "parameters": {"k1": 0.2}}  # fmt: skip
    found = []
    for number, memory in enumerate(("1GiB", "120MB")):
        from lens.merging import plan

        monkeypatch.setattr(plan, "cores", lambda number=number: 1 + 3 * number)
        merge(values, tmp_path / f"out{number}", max_memory=memory)
        found.append(files.contents(tmp_path / f"out{number}"))
    assert found[0] == found[1]


def test_tied_embeddings_are_merged_once(tmp_path):
    tie = {"tie_word_embeddings": True}
    untied = {k: v for k, v in files.SHAPES.items() if k != "lm_head.weight"}
    base = files.checkpoint(tmp_path / "base", config=tie, shapes=untied)
    other = files.checkpoint(tmp_path / "other", config=tie, seed=1)  # stores the copy
    values = config("linear", base, [base, other], weights=[1, 1])
    assert files.SHAPES.keys() - merged(values, tmp_path / "out").keys() == {"lm_head.weight"}
    values = config("linear", other, [other, base], weights=[1, 1])
    assert "lm_head.weight" not in merged(values, tmp_path / "out2")


def test_integers_are_copied_from_the_base(tmp_path):
    folders = []
    for seed in (0, 1):
        folder = files.checkpoint(tmp_path / str(seed), seed=seed)
        (folder / "model.safetensors").unlink()
        tensors = {
            "counts": ("I64", np.arange(5) + seed),
            "model.norm.weight": ("F32", np.full(3, seed + 1, np.float32)),
        }
        files.write_file(folder / "model.safetensors", tensors)
        folders.append(folder)
    merge(config("task_arithmetic", folders[0], folders[1:], weights=[0.5]), tmp_path / "out")
    found = files.raw_bits(tmp_path / "out")
    assert found["counts"] == np.arange(5).tobytes()
    assert found["model.norm.weight"] == np.full(3, 1.5, np.float32).tobytes()


def test_what_is_not_weights_is_copied_byte_for_byte(three, tmp_path):
    (three[0] / "chat_template.jinja").write_text("{{ messages }}")
    values = config("task_arithmetic", three[0], [three[1]], weights=[0.5])
    del values["out_dtype"]
    merge(values, tmp_path / "out")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (three[0] / name).read_bytes()
    values["out_dtype"] = "float16"
    merge(values, tmp_path / "half")
    assert '"dtype": "float16"' in (tmp_path / "half" / "config.json").read_text()


def test_output_shards_have_an_index(three, tmp_path):
    values = config("linear", three[0], three[:2], weights=[1, 1])
    whole = merged(values, tmp_path / "whole")
    merge(values, tmp_path / "parts", shard_size="2kB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    parts = files.read(tmp_path / "parts")
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)
    again = config("linear", tmp_path / "parts", [tmp_path / "parts"], weights=[1])
    assert files.raw_bits(tmp_path / "whole") == {
        **files.raw_bits(tmp_path / "parts"), **files.raw_bits(merge(again, tmp_path / "x").out)
    }  # fmt: skip


def test_methods_say_what_they_take(three):
    slerp = config("slerp", three[0], three[1:], t=0.5)
    assert "slerp takes 1 models beside the base, got 2" in plan_merge(slerp).problems[0]
    ties = config("ties", three[0], three[1:])
    del ties["base_model"]
    assert "needs a base_model" in plan_merge(ties).problems[0]
    zero = config("linear", three[0], three[:2], weights=[1, -1])
    with pytest.raises(InputError, match="sum to 0"):
        merge(zero, three[0].parent / "out")


@pytest.mark.parametrize("shape", [(64, 1024), (5, 7), (3, 1), (1, 9), (0, 4)])
def test_ranks_are_those_of_a_stable_sort(shape):
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(shape, np.float32)
    for sizes in (np.abs(drawn), np.abs(np.round(3 * drawn)), np.zeros(shape, np.float32),
                  np.abs(drawn) * np.float32(1e-40)):  # fmt: skip
        order = np.argsort(sizes, axis=1, kind="stable")
        expected = np.argsort(order, axis=1) / np.float32(max(shape[1] - 1, 1))
        np.testing.assert_array_equal(ranks(sizes), expected.astype(np.float32))
