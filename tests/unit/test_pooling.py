"""Pooling and streaming moments."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens.errors import DtypeError, InputError, ShapeError
from lens.pooling import BLOCK_ROWS, Moments, StreamingMoments, pool
from tests.helpers import reference as ref

MODES = ("last", "mean", "weighted")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 5), st.integers(1, 9), st.sampled_from([1, 15, 16, 17, 511, 512, 513]),
    st.sampled_from(ref.DTYPES), st.sampled_from(MODES), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_pool_against_reference(n, t, d, dtype, mode, seed):
    rng = np.random.default_rng(seed)
    X = ref.store(rng.normal(size=(n, t, d)), dtype)
    mask = rng.integers(0, 2, (n, t)).astype(bool)
    mask[np.arange(n), rng.integers(0, t, n)] = True
    out = pool(X, mask, mode=mode, **ref.raw(dtype))
    assert out.dtype == np.float64
    np.testing.assert_allclose(
        out, ref.pool(ref.value(X, dtype), mask, mode), rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_padding_side_amount_and_batch_change_no_bit(mode, dtype):
    rng = np.random.default_rng(0)
    rows = [ref.store(rng.normal(size=(t, 70)), dtype) for t in (1, 3, 8)]
    kw = {"mode": mode, **ref.raw(dtype)}
    single = [pool(x[None], np.ones((1, len(x)), int), **kw)[0] for x in rows]
    bad = ref.store(np.array([np.nan]), dtype)[0]
    for width in (8, 11):
        for left in (True, False):
            X = np.full((3, width, 70), bad, dtype=rows[0].dtype)
            mask = np.zeros((3, width), int)
            for i, x in enumerate(rows):
                place = slice(width - len(x), width) if left else slice(0, len(x))
                X[i, place], mask[i, place] = x, 1
            np.testing.assert_array_equal(pool(X, mask, **kw), single)


def test_pool_of_torch_tensors():
    torch = pytest.importorskip("torch")
    X = torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        expected = ref.pool(X.to(kind).double().numpy(), mask.numpy(), "mean")
        out = pool(X.to(kind), mask, mode="mean")
        np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-15)


def test_pool_does_not_modify_its_input():
    X, mask = np.random.default_rng(0).normal(size=(2, 3, 4)), np.ones((2, 3), bool)
    before = X.copy()
    pool(X, mask, mode="weighted")
    np.testing.assert_array_equal(X, before)
    assert mask.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_threads", [1, 4])
def test_pool_names_the_row_and_token_of_a_nan(bad, mode, n_threads):
    X = np.zeros((200, 4, 600), np.float32)
    X[190, 2, 3] = X[77, 2, 599] = bad
    mask = np.ones((200, 4), bool)
    mask[:, 3] = False
    with pytest.raises(InputError, match="NaN or infinite value, row 77, token 2"):
        pool(X, mask, mode=mode, n_threads=n_threads)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pool(np.ones((2, 3, 4)), np.array([[1, 0, 0], [0, 0, 0]])), InputError,
         "every token is masked out.*row 1"),
        (lambda: pool(np.ones((2, 0, 4)), np.ones((2, 0), int)), InputError, "row 0"),
        (lambda: pool(np.ones((2, 3)), np.ones((2, 3), int)), ShapeError, "states: shape"),
        (lambda: pool(np.ones((2, 3, 4)), np.ones((2, 4), int)), ShapeError, "mask: shape"),
        (lambda: pool(np.ones((2, 3, 4)), np.ones((2, 3))), DtypeError, "mask: got float64"),
        (lambda: pool(np.ones((2, 3, 4)), np.full((2, 3), -1)), InputError, "mask: values"),
        (lambda: pool(np.ones((2, 3, 4), int), np.ones((2, 3), int)), DtypeError, "int64"),
        (lambda: pool(np.ones((2, 3, 4), np.uint16), np.ones((2, 3), int)), DtypeError, "bfloat16"),
        (lambda: pool(np.ones((2, 3, 4)), np.ones((2, 3), int), mode="max"), InputError, "mode"),
        (lambda: pool(np.ones((2, 3, 4)), np.ones((2, 3), int), n_threads=1.5), InputError, "1.5"),
        (lambda: pool(np.ones((2, 4, 3)).swapaxes(1, 2), np.ones((2, 3), int)), DtypeError, "C-"),
        (lambda: pool(np.ones((2, 3, 4), ">f8"), np.ones((2, 3), int)), DtypeError, "native"),
        (lambda: pool(None, np.ones((2, 3), int)), DtypeError, "states: got NoneType"),
    ],
)  # fmt: skip
def test_pool_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def streamed(X, cuts, *, order=None, split=None):
    """Moments of X fed in pieces; `split` gives each piece an accumulator of its own to merge."""
    edges = [0, *sorted(cuts), len(X)]
    pieces = [(a, X[a:b]) for a, b in pairwise(edges) if b > a]
    if order is not None:
        pieces = [pieces[i] for i in order.permutation(len(pieces))]
    if not split:
        moments = StreamingMoments(X.shape[1])
        for start, rows in pieces:
            moments.update(rows, start)
        return moments
    parts = []
    for start, rows in pieces:
        parts.append(StreamingMoments(X.shape[1]))
        parts[-1].update(rows, start)
    while len(parts) > 1:  # merge in a random tree
        i = int(split.integers(len(parts) - 1))
        parts[i].merge(parts.pop(i + 1))
    return parts[0]


def bits(moments):
    result = moments.result()
    return result.count, result.mean.tobytes(), result.variance.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9000), st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
def test_any_split_on_block_boundaries_merged_in_any_order_gives_the_same_bits(n, seed, d):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 10 ** rng.uniform(-3, 3) + rng.normal()
    whole = bits(streamed(X, []))
    boundaries = np.arange(BLOCK_ROWS, n, BLOCK_ROWS)
    cuts = boundaries[rng.integers(0, 2, len(boundaries)).astype(bool)].tolist()
    assert bits(streamed(X, cuts)) == whole
    assert bits(streamed(X, cuts, order=rng)) == whole
    assert bits(streamed(X, cuts, split=rng)) == whole
    assert bits(streamed(X, cuts, order=rng, split=rng)) == whole


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5000), st.integers(0, 2**32 - 1))
def test_consecutive_batches_of_any_size_give_the_same_bits(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    cuts = rng.integers(0, n, 7).tolist()
    assert bits(streamed(X, cuts)) == bits(streamed(X, []))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5000), st.integers(0, 2**32 - 1))
def test_other_splits_agree_to_1e_12(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)) + 5
    mean, variance = ref.moments(X)
    result = streamed(X, rng.integers(0, n, 9).tolist(), order=rng, split=rng).result()
    assert result.count == n
    np.testing.assert_allclose(result.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(result.variance, variance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("d", [1, 511, 512, 513, 1030])
def test_moments_of_every_dtype(dtype, d):
    rng = np.random.default_rng(d)
    X = ref.store(rng.normal(size=(1500, d)) + 100, dtype)
    moments, threaded = StreamingMoments(d), StreamingMoments(d)
    moments.update(X, 0, **ref.raw(dtype))
    threaded.update(X, 0, n_threads=3, **ref.raw(dtype))
    mean, variance = ref.moments(ref.value(X, dtype))
    np.testing.assert_allclose(moments.result().mean, mean, rtol=1e-13)
    np.testing.assert_allclose(moments.result().variance, variance, rtol=1e-11)
    assert bits(moments) == bits(threaded)


def test_only_maximal_subtrees_are_kept():
    moments = streamed(np.zeros((1024 * 13 + 5, 1)), [])
    assert moments.to_arrays()["count"].tolist() == [8192, 4096, 1024, 5]


def test_arrays_round_trip_and_go_on():
    X = np.random.default_rng(0).normal(size=(4000, 3))
    first = streamed(X[:2500], [])
    again = StreamingMoments.from_arrays(first.to_arrays())
    assert bits(again) == bits(first)
    again.update(X[2500:], 2500)
    assert bits(again) == bits(streamed(X, []))
    assert StreamingMoments.from_arrays(StreamingMoments(3).to_arrays()).count == 0


def test_a_failed_update_changes_nothing():
    moments = StreamingMoments(2)
    moments.update(np.ones((1500, 2)), 0)
    before = bits(moments)
    bad = np.ones((2000, 2))
    bad[1900, 1] = np.nan
    with pytest.raises(InputError, match="row 1900, column 1"):
        moments.update(bad, 1500)
    with pytest.raises(InputError, match=r"row ids 1499..1499 were already counted"):
        moments.update(np.ones((3, 2)), 1499)
    with pytest.raises(InputError, match="already counted"):
        moments.merge(moments)
    assert bits(moments) == before


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_moments_name_the_row_of_a_nan_in_every_dtype(dtype):
    X = ref.store(np.where(np.arange(20).reshape(10, 2) == 13, np.inf, 1.0), dtype)
    with pytest.raises(InputError, match="row 6, column 1"):
        StreamingMoments(2).update(X, 0, **ref.raw(dtype))


def test_one_row_has_no_variance():
    moments = StreamingMoments(2)
    moments.update(np.ones((1, 2)), 10)
    result = moments.result()
    assert isinstance(result, Moments)
    assert result.count == 1
    assert np.isnan(result.variance).all()
    assert result.to_dict()["mean"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: StreamingMoments(0), InputError, "d: got 0"),
        (lambda: StreamingMoments(2).result(), InputError, "no rows"),
        (lambda: StreamingMoments(2).update(np.ones((3, 4)), 0), ShapeError, r"\(n, 2\)"),
        (lambda: StreamingMoments(2).update(np.ones((3, 2)), -1), InputError, "row_ids_start"),
        (lambda: StreamingMoments(2).merge(StreamingMoments(3)), ShapeError, "width 3"),
        (lambda: StreamingMoments.from_arrays({}), InputError, "missing"),
    ],
)
def test_moments_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
