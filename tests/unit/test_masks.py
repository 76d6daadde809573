"""Largest deltas and importances against one stable sort: elements, rows, columns, ties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import weights
from lens.errors import DtypeError, InputError
from tests.helpers import reference as ref
from tests.unit.test_weights import W, lumpy, tensors


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 15, 17, 60, 513]), min_size=1, max_size=5),
    st.sampled_from(ref.DTYPES), st.booleans(), st.integers(0, 2**32 - 1), st.floats(0, 1),
)  # fmt: skip
def test_topk_is_a_full_stable_sort(sizes, dtype, ties, seed, share):
    rng = np.random.default_rng(seed)
    names = [f"t{i}" for i in rng.permutation(12)[: len(sizes)]]  # t10 sorts before t2
    make = lumpy if ties else tensors
    pairs = {name: make(rng, n, dtype) for name, n in zip(names, sizes, strict=True)}
    a, b = ({name: pair[i] for name, pair in pairs.items()} for i in range(2))
    deltas = {name: ref.delta(a[name], b[name], dtype) for name in names}
    k = math.floor(share * sum(sizes) + 0.5)
    for how in ({"k": k}, {"share": share}):
        masks = weights.topk_masks(a, b, **how, **ref.raw(dtype))
        expected = ref.topk(deltas, k)
        assert list(masks) == sorted(names)
        for name in names:
            np.testing.assert_array_equal(masks[name], expected[name])


def test_topk_streams_and_names_its_threshold(monkeypatch):
    monkeypatch.setattr("lens.weights._PIECE", 64)  # the bar rises within a tensor
    rng = np.random.default_rng(3)
    x = {f"{i:02}": rng.integers(-500, 501, size=(7, 90)).astype(np.float32) for i in range(20)}
    x["03"][:] = 0
    for k in (0, 1, 5, 4000, 12000, 10**9):
        top = weights.TopK(k, n_threads=2)
        for name in sorted(x):
            top.add(name, x[name])
        marks = {name: top.select(name, x[name]) for name in sorted(x)}
        result = top.finish()
        masks = {name: result.apply(name, marks[name]) for name in sorted(x)}
        expected = ref.topk(x, k)
        for name, mask in masks.items():
            np.testing.assert_array_equal(mask, expected[name])
        chosen = np.concatenate([np.abs(x[n][expected[n]]) for n in sorted(x)])
        assert result.selected == chosen.size
        assert result.threshold == chosen.min(initial=np.inf)


@pytest.mark.parametrize("order", ["equal", "rising", "falling", "shuffled"])
def test_topk_within_one_bucket(order, monkeypatch):
    """All keys share their upper bits: what is remembered decides everything."""
    monkeypatch.setattr("lens.weights._PIECE", 100)
    rng, low = np.random.default_rng(11), np.arange(3000, dtype=np.uint32) % 1024
    low = {"equal": low * 0, "rising": np.sort(low), "falling": np.sort(low)[::-1]}.get(
        order, rng.permutation(low)
    )
    x = (0x3F800000 + low).astype(np.uint32).view(np.float32) * rng.choice([-1, 1], 3000)
    parts = {f"{i}": np.ascontiguousarray(part) for i, part in enumerate(np.split(x, 4))}
    for k in (1, 2, 1000, 2999, 3000):
        masks = weights.topk_masks(parts, k=k)
        for name, expected in ref.topk(parts, k).items():
            np.testing.assert_array_equal(masks[name], expected)


def test_topk_remembers_little_of_ties():
    """Of equal deltas no more than k low bits are kept, whatever the number of elements."""
    top, x = weights.TopK(k=10), np.ones(1000, np.float32)
    for name in "abc":
        top.add(name, x)
    marks = [top.select(name, x) for name in "abc"]
    assert [int((m == 2).sum()) for m in marks] == [1000, 0, 0]
    result = top.finish()
    assert {k: v.size for k, v in result.settled.items()} == {"a": 1000}
    assert result.apply("a", marks[0]).sum() == 10
    with pytest.raises(InputError, match="apply each result once"):
        result.apply("a", marks[0])
    with pytest.raises(DtypeError, match="marks: got bool"):
        result.apply("b", marks[1].view(bool))
    with pytest.raises(DtypeError, match="C-contiguous"):
        result.apply("b", marks[1][::2])
    assert result.to_dict()["settled"]["a"][:11] == [1] * 10 + [0]


SHAPES = [(1, 1), (3, 15), (16, 17), (17, 16), (2, 513), (129, 2049), (33, 2048), (1, 65537)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES), st.sampled_from(ref.DTYPES), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_importance(shape, dtype, base, seed):
    rng, kw = np.random.default_rng(seed), ref.raw(dtype)
    a, b = tensors(rng, shape, dtype)
    b = b if base else None
    size = np.abs(ref.delta(a, b, dtype).astype(np.longdouble))
    for unit, axis in (("row", 1), ("column", 0)):
        out = weights.importance(a, b, unit=unit, n_threads=2, **kw)
        expected = size.mean(axis=axis, keepdims=True)
        assert out.shape == expected.shape
        assert out.dtype == np.float64
        assert (np.abs(out - expected) <= (max(shape) + 4) * 2.0**-53 * expected).all()
    np.testing.assert_array_equal(
        weights.importance(a, b, unit="element", **kw), size.astype(np.float32)
    )


def test_importance_of_other_shapes():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(weights.importance(x), x.mean(2, keepdims=True))
    np.testing.assert_array_equal(weights.importance(x, unit="column"), x.mean(1, keepdims=True))
    for unit in ("row", "column"):
        np.testing.assert_array_equal(weights.importance(-x[0, 0], unit=unit), x[0, 0])
        assert weights.importance(np.full((), -2.0), unit=unit) == 2
    assert weights.importance(np.empty((0, 4), np.float32)).shape == (0, 1)
    assert weights.importance(np.empty((4, 0), np.float32), unit="column").shape == (1, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([(5,), (0,), (3, 4), (17, 5), (1, 16), (2, 3, 4)]), min_size=1,
             max_size=4),
    st.sampled_from(["row", "column"]), st.sampled_from(ref.DTYPES), st.booleans(),
    st.integers(0, 2**32 - 1), st.floats(0, 1),
)  # fmt: skip
def test_masks_of_units_are_a_full_stable_sort(shapes, unit, dtype, ties, seed, share):
    rng, kw = np.random.default_rng(seed), ref.raw(dtype)
    names = [f"t{i}" for i in rng.permutation(12)[: len(shapes)]]
    make = lumpy if ties else tensors
    pairs = {name: make(rng, shape, dtype) for name, shape in zip(names, shapes, strict=True)}
    a, b = ({name: pair[i] for name, pair in pairs.items()} for i in range(2))
    sizes = {n: weights.importance(a[n], b[n], unit=unit, **kw) for n in names}
    k = math.floor(share * sum(x.size for x in sizes.values()) + 0.5)
    expected = ref.topk(sizes, k, np.float64)
    for how in ({"k": k}, {"share": share}):
        masks = weights.topk_masks(a, b, unit=unit, **how, **kw)
        assert list(masks) == sorted(names)
        for name in names:
            np.testing.assert_array_equal(masks[name], expected[name])
            assert np.broadcast_to(masks[name], a[name].shape).shape == a[name].shape
    alone = weights.topk_masks(a, b, unit=unit, share=share, per_tensor=True, **kw)
    for name in names:
        k = math.floor(share * sizes[name].size + 0.5)
        one = ref.topk({name: sizes[name]}, k, np.float64)[name]
        np.testing.assert_array_equal(alone[name], one)


def test_masks_of_each_tensor():
    x = {"a": np.float32([1, 2, 3]), "b": np.float32([[30, 20], [0, 0]])}
    masks = weights.topk_masks(x, k=2, per_tensor=True)
    assert masks["a"].tolist() == [False, True, True]
    assert masks["b"].tolist() == [[True, True], [False, False]]
    rows = weights.topk_masks(x, k=2, unit="row")
    assert rows["a"].tolist() == [False, False, True]
    assert rows["b"].tolist() == [[True], [False]]
    assert weights.topk_units({}, k=3) == {}


def test_topk_of_subnormal_deltas():
    x = (np.arange(6, dtype=np.uint32) % 5).view(np.float32)
    masks = weights.topk_masks({"x": x}, k=3)
    assert masks["x"].tolist() == [False, False, True, True, True, False]


def test_topk_refuses_a_wrong_order():
    top = weights.TopK(2)
    top.add("b", W)
    with pytest.raises(InputError, match="'a' came after 'b'"):
        top.add("a", W)
    top.add("c", W)
    with pytest.raises(InputError, match="next is 'b'"):
        top.select("c", W)
    with pytest.raises(InputError, match="first"):
        top.add("d", W)
    top.select("b", W)
    with pytest.raises(InputError, match="'c' was not selected"):
        top.finish()
    with pytest.raises(InputError, match="of 8 elements"):
        top.select("c", W[:2])
    top.select("c", 2 * W)
    with pytest.raises(InputError, match="changed"):
        top.finish()
