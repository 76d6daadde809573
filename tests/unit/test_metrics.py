"""Alignment and separability of pooled states against the formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import _core, metrics
from lens.errors import DtypeError, InputError, ShapeError
from tests.helpers import reference as ref

ROWS = [2, 3, 15, 16, 17, 63, 64, 65, 127, 129]
WIDTHS = [1, 2, 15, 16, 17, 511, 512, 513]


def pair(rng, n, d, dtype, noise=1.0):
    """States of sentences and of their translations, and their exact values."""
    x = rng.normal(size=(n, d))
    a, b = ref.store(x, dtype), ref.store(x + noise * rng.normal(size=(n, d)), dtype)
    return a, b, ref.value(a, dtype), ref.value(b, dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ROWS), st.sampled_from(WIDTHS[1:]), st.sampled_from(ref.DTYPES),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_mexa_against_reference(n, d, dtype, seed):
    rng = np.random.default_rng(seed)
    if d < 16 and dtype != "float64":
        d = 16  # in few dimensions float32 cosines of different pairs are equal
    a, b, av, bv = pair(rng, n, d, dtype, noise=rng.uniform(0.1, 3))
    result = metrics.mexa(a, b, permutations=5, **ref.raw(dtype))
    assert result.n == n
    assert abs(result.score - ref.mexa(av, bv)) <= 1 / n + 1e-12  # one tie broken by rounding
    np.testing.assert_allclose(result.variance, bv.var(0, ddof=1).mean(), rtol=1e-10)
    np.testing.assert_allclose(result.pivot_variance, av.var(0, ddof=1).mean(), rtol=1e-10)


@pytest.mark.parametrize("n", [1, *ROWS, 511, 512, 513, 1023, 1025, 1700])
def test_places_of_maxima(n):
    """At every edge of blocks and chunks; 1700 rows are four chunks of some blocks each."""
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n, 24))
    s = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    for n_threads in (1, 3):
        rows, columns = places(a, b, "float64", n_threads)
        np.testing.assert_array_equal(rows, s.argmax(1))
        np.testing.assert_array_equal(columns, s.argmax(0))


def places(a, b, dtype, n_threads=1):
    rows, columns = np.empty(len(a), np.uint64), np.empty(len(a), np.uint64)
    _core.match_rows(rows, columns, a, b, ref.CODES[dtype], n_threads)
    return rows, columns


def units(x, dtype):
    out = np.empty(x.shape, np.float64 if dtype == "float64" else np.float32)
    _core.unit_rows(out, x, ref.CODES[dtype], 1)
    return out


def near_ties(kind, n, d, rng):
    """States whose cosines are equal, or differ by what BLAS loses in rounding."""
    base = rng.normal(size=(1, d)) + 1
    if kind == "equal":
        return 2.0 ** rng.integers(-3, 3, size=(2, n, 1)) * base
    if kind == "collapsed":
        return base + 3e-7 * rng.normal(size=(2, n, d))
    few = rng.normal(size=(n // 4 + 1, d)).repeat(4, axis=0)[:n]  # four rivals for each place
    order = rng.permutation(n)
    if kind == "copies":
        return np.stack([few, few[order]])
    return np.stack([few, few[order] + 2e-7 * rng.normal(size=(n, d))])


@pytest.mark.parametrize("kind", ["equal", "collapsed", "copies", "few rivals"])
@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize(("n", "d"), [(33, 4096), (70, 1041), (130, 16), (530, 40)])
def test_near_ties_are_judged_by_the_lanes_alone(kind, dtype, n, d):
    a, b = (ref.store(x, dtype) for x in near_ties(kind, n, d, np.random.default_rng(n)))
    s = ref.lane_products(units(a, dtype), units(b, dtype))
    before = _core.isa()
    try:
        for isa in _core.isas():
            _core.force_isa(isa)
            for n_threads in (1, 2, 5):
                rows, columns = places(a, b, dtype, n_threads)
                np.testing.assert_array_equal(rows, ref.strict_places(s))
                np.testing.assert_array_equal(columns, ref.strict_places(s.T))
    finally:
        _core.force_isa(before)


def test_these_near_ties_are_more_than_blas_can_tell():
    """Else the test above would pass without the lanes."""
    a, b = near_ties("collapsed", 70, 1041, np.random.default_rng(70)).astype(np.float32)
    s = ref.lane_products(units(a, "float32"), units(b, "float32"))
    exact = units(a, "float32").astype(np.float64) @ units(b, "float32").astype(np.float64).T
    assert (exact.argmax(1) != ref.strict_places(s)).any()


def test_ties_are_not_strict_maxima():
    x = np.random.default_rng(0).normal(size=(70, 600)).astype(np.float32)
    assert metrics.mexa(x, x).score == 1.0
    twin = x.copy()
    twin[69] = 4 * twin[0]  # the same direction, in another block and chunk
    assert metrics.mexa(twin, twin).score == pytest.approx(68 / 70)
    assert metrics.mexa(x, twin).score == pytest.approx(68 / 70)
    same = np.ones((5, 3))
    assert metrics.mexa(same, same).score == 0.0
    assert metrics.mexa(same, same).variance == 0.0


def test_rows_and_columns_both_count():
    """All rows point at the hub; only its own column, where it is alone, is left."""
    pivot = np.array([[1.0, 0.0], [1.0, 0.5]])
    other = np.array([[1.0, 0.1], [0.0, 1.0]])
    assert metrics.mexa(pivot, other).score == ref.mexa(pivot, other) == 0.5
    assert metrics.mexa(other, pivot).score == 0.5


def test_null_is_the_score_of_shuffled_translations():
    rng = np.random.default_rng(3)
    a, b, _, _ = pair(rng, 12, 20, "float64", noise=0.8)
    result = metrics.mexa(a, b, permutations=30, seed=5)
    draw = np.random.default_rng(5)
    expected = [ref.mexa(a, b[draw.permutation(12)]) for _ in range(30)]
    # Which rows meet is drawn as a permutation or as its inverse: the same distribution.
    draw = np.random.default_rng(5)
    inverse = [ref.mexa(a, b[np.argsort(draw.permutation(12))]) for _ in range(30)]
    np.testing.assert_allclose(result.null, expected)
    assert np.mean(expected) == pytest.approx(np.mean(inverse), abs=0.1)
    again = metrics.mexa(a, b, permutations=30, seed=5)
    np.testing.assert_array_equal(again.null, result.null)
    assert result.p_value == (1 + (result.null >= result.score).sum()) / 31
    assert metrics.mexa(a, b, permutations=0).p_value == 1.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_units_of_every_length(dtype):
    """Squares that overflow or vanish, and lengths that are no normal number."""
    x = np.random.default_rng(9).normal(size=(3, 50))
    expected = x / np.linalg.norm(x, axis=1, keepdims=True)
    low, high = (-120, 125) if dtype == "float32" else (-1010, 1020)
    for exponent in (low, low // 2, -1, 0, 1, high // 2, high):
        found = units(np.ldexp(x, exponent).astype(dtype), dtype)
        np.testing.assert_allclose(found, expected, rtol=4e-5 if low > -200 else 1e-12)
    tiny = np.full((1, 4), np.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(units(tiny, dtype), 0.5, rtol=1e-6)


def test_layers_one_by_one():
    rng = np.random.default_rng(11)
    a, noise = rng.normal(size=(3, 25, 30)), rng.normal(size=(3, 25, 30))
    b = a + np.array([2.0, 1.0, 3.0])[:, None, None] * noise
    result = metrics.mexa_layers(a, list(b), permutations=40, seed=2)
    alone = [metrics.mexa(x, y, permutations=40, seed=2) for x, y in zip(a, b, strict=True)]
    assert [x.to_dict() for x in result.layers] == [x.to_dict() for x in alone]
    scores = [x.score for x in alone]
    assert (result.mean, result.max) == (np.mean(scores), max(scores))
    null = np.array([x.null for x in alone])
    assert result.p_mean == (1 + (null.mean(0) >= np.mean(scores)).sum()) / 41
    assert result.p_max == (1 + (null.max(0) >= max(scores)).sum()) / 41
    assert result.to_dict()["layers"][1]["score"] == scores[1]


def test_extreme_lengths_change_nothing():
    x = np.random.default_rng(4).normal(size=(20, 30))
    y = x + 0.5 * np.random.default_rng(5).normal(size=x.shape)
    score = metrics.mexa(x, y).score
    assert metrics.mexa(x * 1e-160, y * 1e-300).score == score
    assert metrics.mexa(x * 2.0**500, y).score == score


def outputs(dtype, n_threads):
    rng = np.random.default_rng(0)
    a, b, _, _ = pair(rng, 150, 700, dtype)
    acc = np.float64 if dtype == "float64" else np.float32
    code, unit, label = ref.CODES[dtype], np.empty(a.shape, acc), np.empty(150, np.uint64)
    _core.unit_rows(unit, a, code, n_threads)
    rows, columns = places(a, b, dtype, n_threads)
    _core.nearest_mean(label, a, rng.normal(size=(5, 700)).astype(acc), code, n_threads)
    return [x.tobytes() for x in (unit, rows, columns, label)]


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_same_bits_for_any_threads_and_instruction_set(dtype):
    first, before = outputs(dtype, 1), _core.isa()
    try:
        for isa in _core.isas():
            _core.force_isa(isa)
            for n_threads in (1, 2, 7, 64):
                assert outputs(dtype, n_threads) == first
    finally:
        _core.force_isa(before)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 5), st.sampled_from([2, 3, 15, 17]), st.sampled_from(WIDTHS),
    st.integers(2, 6), st.sampled_from(ref.DTYPES), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_separability_against_reference(languages, n, d, folds, dtype, seed):
    rng = np.random.default_rng(seed)
    stored = [
        ref.store(rng.normal(size=(n + i % 2, d)) + rng.normal(size=d), dtype)
        for i in range(languages)
    ]
    named = {f"l{i}": x for i, x in enumerate(stored)}
    result = metrics.separability(named, folds=folds, **ref.raw(dtype))
    expected = ref.separability([ref.value(x, dtype) for x in stored], folds)
    total = sum(map(len, stored))
    assert result.n == result.confusion.sum() == total
    assert result.confusion.sum(1).tolist() == [len(x) for x in stored]
    slack = 0 if dtype == "float64" and d > 1 else 1  # a near tie in float32
    assert abs(result.accuracy - expected) <= (slack + 1e-9) / total


def test_separability_extremes():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(300, 40))
    far = metrics.separability({"a": x, "b": x + 3, "c": x - 3})
    assert far.accuracy == 1.0
    assert far.languages == ("a", "b", "c")
    near = metrics.separability({"a": x, "b": rng.normal(size=(300, 40))})
    assert 0.4 < near.accuracy < 0.6
    assert metrics.separability({"a": x, "b": x.copy()}).accuracy == 0.5
    assert far.to_dict()["languages"] == ["a", "b", "c"]
    assert far.to_dict()["confusion"] == far.confusion.tolist()


def test_inputs_are_not_modified_and_torch_agrees():
    torch = pytest.importorskip("torch")
    a, b, _, _ = pair(np.random.default_rng(7), 20, 33, "bfloat16")
    before = a.copy(), b.copy()
    result = metrics.mexa(a, b, dtype="bfloat16")
    apart = metrics.separability({"a": a, "b": b}, dtype="bfloat16")
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])
    ta, tb = (torch.from_numpy(x).view(torch.bfloat16) for x in (a, b))
    assert metrics.mexa(ta, tb).to_dict() == result.to_dict()
    assert metrics.separability({"a": ta, "b": tb}).to_dict() == apart.to_dict()


X = np.random.default_rng(8).normal(size=(4, 6)).astype(np.float32)


def with_row(row, value):
    out = X.copy()
    out[row] = value
    return out


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.mexa(X.tolist(), X), DtypeError, "pivot: got list"),
        (lambda: metrics.mexa(X[:1], X[:1]), ShapeError, "pivot: shape"),
        (lambda: metrics.mexa(X[:0], X[:0]), ShapeError, "pivot: shape"),
        (lambda: metrics.mexa(X[:, :0], X[:, :0]), ShapeError, "pivot: shape"),
        (lambda: metrics.mexa(X, X[:3]), ShapeError, "other: shape"),
        (lambda: metrics.mexa(X, X.astype(float)), DtypeError, "other: float64"),
        (lambda: metrics.mexa(X.T, X.T), DtypeError, "contiguous"),
        (lambda: metrics.mexa(X.view(np.uint16), X), DtypeError, "raw bits"),
        (lambda: metrics.mexa(with_row(2, np.nan), X), InputError, "pivot: .*row 2, column 0"),
        (lambda: metrics.mexa(X, with_row(1, np.inf)), InputError, "other: .*row 1"),
        (lambda: metrics.mexa(X, with_row(3, -0.0)), InputError, "other: row 3 is zero"),
        (lambda: metrics.mexa(X, X, permutations=-1), InputError, "permutations"),
        (lambda: metrics.mexa(X, X, seed=0.5), InputError, "seed"),
        (lambda: metrics.mexa(X, X, n_threads=0), InputError, "n_threads"),
        (lambda: metrics.mexa_layers([X], [X, X]), ShapeError, "other: 2 layers, expected 1"),
        (lambda: metrics.mexa_layers([], []), ShapeError, "pivot: no layers"),
        (lambda: metrics.mexa_layers(None, [X]), DtypeError, "pivot: got NoneType"),
        (lambda: metrics.mexa_layers([X, X], [X, with_row(1, 0)]), InputError, "layer 1: other"),
        (lambda: metrics.separability({"a": X}), InputError, "at least 2 languages"),
        (lambda: metrics.separability([X, X]), InputError, "mapping"),
        (lambda: metrics.separability({"a": X, "b": X[:1]}), ShapeError, "b: shape"),
        (lambda: metrics.separability({"a": X, "b": X[:, :3].copy()}), ShapeError, "6 columns"),
        (lambda: metrics.separability({"a": X, "b": X.astype(float)}), DtypeError, "b: float64"),
        (lambda: metrics.separability({"a": X, "b": X}, folds=1), InputError, "folds"),
        (
            lambda: metrics.separability({"a": X, "b": with_row(3, np.nan)}),
            InputError,
            "b: .*row 3",
        ),
        (lambda: metrics.separability({"a": X, "b": X * 1e30}), InputError, "overflows float32"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_core_refuses_zero_rows_and_no_means():
    out = np.empty_like(X)
    with pytest.raises(ValueError, match="row 2"):
        _core.unit_rows(out, with_row(2, 0), 0, 2)
    with pytest.raises(ValueError, match="row 1"):
        _core.unit_rows(out, with_row(1, np.nan), 0, 2)
    label = np.empty(4, np.uint64)
    with pytest.raises(ValueError, match="row 2, input 1"):
        _core.match_rows(label, label.copy(), X, with_row(2, 0), 0, 2)
    with pytest.raises(ValueError, match="row 1, input 0"):
        _core.match_rows(label, label.copy(), with_row(1, np.inf), X, 0, 1)
    with pytest.raises(ValueError, match="sizes"):
        _core.nearest_mean(np.empty(4, np.uint64), X, X[:0], 0, 1)
