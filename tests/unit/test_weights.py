"""Deltas of weights against NumPy: values, largest elements, ties, combinations, refused input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import _core, weights
from lens.errors import DtypeError, InputError, ShapeError
from tests.helpers import reference as ref

CHUNK = 65536
SIZES = [0, 1, 2, 15, 16, 17, 511, 512, 513, 1025, CHUNK - 1, CHUNK, CHUNK + 1]


def tensors(rng, shape, dtype, count=2, scale=1.0):
    """Storage of random weights."""
    return [ref.store(scale * rng.normal(size=shape), dtype) for _ in range(count)]


def lumpy(rng, shape, dtype):
    """Two tensors whose delta has many equal elements, many of them zero, of both signs."""
    steps = rng.integers(-3, 4, size=shape) / 8
    base = rng.integers(-2, 3, size=shape).astype(float)
    return ref.store(base + steps, dtype), ref.store(base, dtype)


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_delta(dtype):
    rng = np.random.default_rng(0)
    a, b = tensors(rng, (7, 300), dtype)
    out = weights.delta(a, b, **ref.raw(dtype))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, ref.delta(a, b, dtype).astype(np.float32))
    np.testing.assert_array_equal(
        weights.delta(a, **ref.raw(dtype)), ref.value(a, dtype).astype(np.float32)
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.sampled_from(ref.DTYPES), st.integers(0, 2**32 - 1))
def test_any_size(n, dtype, seed):
    rng, kw = np.random.default_rng(seed), ref.raw(dtype)
    a, b, c, d = tensors(rng, n, dtype, 4)
    x, y = ref.delta(a, b, dtype), ref.delta(c, d, dtype)
    np.testing.assert_array_equal(weights.delta(a, b, **kw), x.astype(np.float32))
    np.testing.assert_array_equal(weights.histogram(a, b, **kw), ref.delta_histogram(x))
    result = weights.compare((a, b), (c, d), **kw)
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    for got, u, v in ((result.squares[0], x, x), (result.squares[1], y, y), (result.dot, x, y)):
        assert abs(got - (u * v).sum()) <= 1e-12 * np.abs(u * v).sum()
    assert result.squares[0] == weights.sum_of_squares(a, b, **kw)
    w = rng.normal(size=4)
    out = weights.combine([a, b, c, d], w, **kw)
    expected = ref.combine([ref.value(s, dtype) for s in (a, b, c, d)], w, dtype)
    assert out.tobytes() == expected.tobytes()
    bad = rng.integers(0, 3, size=n)
    a[bad == 1], a[bad == 2] = ref.store([np.nan, -np.inf], dtype)
    found = weights.count_nonfinite(a, **kw)
    assert (found.nan, found.infinite) == ((bad == 1).sum(), (bad == 2).sum())


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_none_stands_for_zeros(dtype):
    rng, kw = np.random.default_rng(1), ref.raw(dtype)
    a, c = tensors(rng, 700, dtype)
    zero = np.zeros_like(a)
    assert weights.compare((a, None), (c, None), **kw) == weights.compare(
        (a, zero), (c, zero), **kw
    )
    np.testing.assert_array_equal(weights.histogram(a, **kw), weights.histogram(a, zero, **kw))


def test_cosine():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 1000)).astype(np.float32)
    x = a - b
    assert weights.compare((a, b), (x, None)).cosine == pytest.approx(1, abs=1e-15)
    assert weights.compare((a, b), (b, a)).cosine == pytest.approx(-1, abs=1e-15)
    assert weights.compare((a, a), (a, b)).cosine is None
    tiny, huge = np.full(9, 1e-30, np.float32), np.full(9, 1e30, np.float32)
    assert weights.compare((tiny, None), (huge, None)).cosine == pytest.approx(1, abs=1e-15)


def test_write_into_given_memory():
    rng = np.random.default_rng(12)
    a, b = tensors(rng, (3, 5), "float32")
    out = np.empty((3, 5), np.float32)
    assert weights.delta(a, b, out=out) is out
    np.testing.assert_array_equal(out, a - b)
    half = np.empty((3, 5), np.uint16)
    assert weights.combine([a, b], [1, 2], out=half, out_dtype="bfloat16") is half
    np.testing.assert_array_equal(half, weights.combine([a, b], [1, 2], out_dtype="bfloat16"))
    with pytest.raises(InputError, match="shares memory"):
        weights.combine([a, b], [1, 2], out=a)
    with pytest.raises(DtypeError, match="out: got float64"):
        weights.delta(a, b, out=np.empty((3, 5)))
    with pytest.raises(ShapeError, match=r"out: shape \(15,\)"):
        weights.delta(a, b, out=np.empty(15, np.float32))
    with pytest.raises(InputError, match="out: expected a C-contiguous"):
        weights.delta(a, b, out=np.empty((5, 3), np.float32).T)


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_combine_at_every_rounding_point(dtype):
    """Sums at, just below and just above what rounds to even, from subnormal to infinite."""
    bits = np.arange(0, 0x7F80 if dtype == "bfloat16" else 0x7C00, dtype=np.uint16)
    grid = ref.value(bits if dtype == "bfloat16" else bits.view(np.float16), "bfloat16"
                     if dtype == "bfloat16" else "float16")  # fmt: skip
    middle = (grid[:-1] + grid[1:]) / 2
    x = np.concatenate([grid, middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    x = np.concatenate([x, -x, [5e-324, -5e-324, 1e-310, 3.5e38, -1e39, np.inf, -np.inf]])
    out = weights.combine([x], [1], out_dtype=dtype)
    with np.errstate(over="ignore"):
        expected = ref.combine([x], [1], dtype)
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("out_dtype", ref.DTYPES)
@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_combine_into_every_dtype(dtype, out_dtype):
    rng = np.random.default_rng(4)
    a, b = tensors(rng, (3, 700), dtype)
    w = [0.7, -1.3]
    out = weights.combine([a, b], w, out_dtype=out_dtype, **ref.raw(dtype))
    expected = ref.combine([ref.value(a, dtype), ref.value(b, dtype)], w, out_dtype)
    assert out.shape == a.shape
    assert out.dtype == expected.dtype
    assert out.tobytes() == expected.tobytes()


def test_combine_of_mixed_and_of_sixteen_sources():
    rng = np.random.default_rng(5)
    kinds = [ref.DTYPES[i % 4] for i in range(16)]
    sources = [tensors(rng, 100, kind, 1)[0] for kind in kinds]
    w = rng.normal(size=16)
    out = weights.combine(sources, w, out_dtype="float16", dtype="bfloat16")
    expected = ref.combine(
        [ref.value(x, kind) for x, kind in zip(sources, kinds, strict=True)], w, "float16"
    )
    assert out.tobytes() == expected.tobytes()


def test_combine_rounds_once():
    tie = np.array([1 + 2.0**-8, -1 - 2.0**-8, 1 + 2.0**-11])
    bit = np.array([2.0**-40, -(2.0**-40), -(2.0**-40)])
    out = weights.combine([tie, bit], [1, 1], out_dtype="bfloat16")
    assert [hex(x) for x in out] == ["0x3f81", "0xbf81", "0x3f80"]
    assert weights.combine([tie, bit], [1, 1], out_dtype="float16")[2] == 1
    huge = np.array([1e300, -1e300, 3.4e38, 65519.99, 1e-300])
    assert weights.combine([huge], [1], out_dtype="float16").tolist() == [
        np.inf, -np.inf, np.inf, 65504, 0,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_combine_skips_and_copies(dtype):
    kw = ref.raw(dtype)
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}
    a = tensors(np.random.default_rng(6), 600, dtype, 1)[0]
    word = bits[a.itemsize]
    raw = a.view(word).copy()
    raw[:2] = 1 << (8 * a.itemsize - 1), np.iinfo(word).max - 4  # -0 and a NaN with a payload
    a, nan = raw.view(a.dtype), ref.store(np.full(600, np.nan), dtype)
    assert weights.combine([nan, a, nan], [0, 1, 0], **kw).tobytes() == a.tobytes()
    out = weights.combine([a, nan], [0, 0], **kw)
    assert out.tobytes() == bytes(out.nbytes)
    finite = a[2:].copy()
    both = weights.combine([finite, finite, finite], [1, 1, -1], **kw)  # A + B - B
    np.testing.assert_array_equal(both, finite)


def test_base_and_delta_give_back_the_other_model():
    rng = np.random.default_rng(7)
    a, b = tensors(rng, 5000, "float32")
    back = weights.combine([b, weights.delta(a, b)], [1, 1])
    most = np.maximum(np.abs(a), np.abs(b))
    assert (np.abs(back.astype(float) - a) <= 2 * np.spacing(most)).all()


def everything(dtype, n_threads=1, n=2 * CHUNK + 77):
    """Results of every function as bytes."""
    rng, kw = np.random.default_rng(8), {"n_threads": n_threads, **ref.raw(dtype)}
    a, b, c, d = tensors(rng, n, dtype, 4)
    cmp = weights.compare((a, b), (c, d), **kw)
    out = [weights.delta(a, b, **kw), np.array([*cmp.squares, cmp.dot])]
    out.append(weights.histogram(a, b, **kw))
    out += [weights.combine([a, b, c], [0.3, 1, -2.2], out_dtype=kind, **kw) for kind in ref.DTYPES]
    out.append(weights.topk_masks({"x": a, "y": c}, {"x": b, "y": d}, share=0.05, **kw)["y"])
    for unit in ("row", "column"):
        out.append(weights.importance(a[None], b[None], unit=unit, **kw))
    a[::7] = ref.store([np.nan], dtype)
    out.append(weights.combine([a, b], [1, -1], **kw))
    out.append(np.array([weights.count_nonfinite(a, **kw).nan]))
    return [x.tobytes() for x in out]


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_same_bits_for_any_thread_count(dtype):
    first = everything(dtype)
    for n_threads in (2, 3, 64):
        assert everything(dtype, n_threads) == first


@pytest.mark.parametrize("n", [5, 17, 513, CHUNK + 1])
@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_same_bits_for_any_instruction_set(dtype, n):
    before, results = _core.isa(), []
    try:
        for name in _core.isas():
            _core.force_isa(name)
            results.append(everything(dtype, n=n))
    finally:
        _core.force_isa(before)
    assert all(result == results[0] for result in results)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    a, b = torch.randn(2, 5, 7).to(torch.bfloat16)
    np.testing.assert_array_equal(weights.delta(a, b), (a.float() - b.float()).numpy())
    out = weights.combine([a, b], [1, 0])
    assert out.tobytes() == a.view(torch.uint16).numpy().tobytes()
    assert weights.topk_masks({"x": a}, {"x": b}, k=3)["x"].sum() == 3
    assert weights.compare((a, b), (a, b)).cosine == pytest.approx(1, abs=1e-15)


def test_inputs_are_not_modified():
    arrays = tensors(np.random.default_rng(9), (4, 50), "float32", 4)
    before = [x.copy() for x in arrays]
    a, b, c, d = arrays
    weights.delta(a, b)
    weights.compare((a, b), (c, d))
    weights.histogram(a, b)
    weights.combine(arrays, [1, 2, 3, 4])
    weights.topk_masks({"x": a, "y": c}, {"x": b, "y": d}, k=9)
    weights.count_nonfinite(a)
    for x, y in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(x, y)


W = np.ones((3, 4), np.float32)
BAD = np.array([1, 2, np.inf, np.nan], np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weights.delta([1.0], W), DtypeError, "a: got list"),
        (lambda: weights.delta(W, W[:2]), ShapeError, r"b: shape \(2, 4\)"),
        (lambda: weights.delta(W, W.astype(float)), DtypeError, "b: float64"),
        (lambda: weights.delta(W.T, W.T), DtypeError, "C-contiguous"),
        (lambda: weights.delta(W.view(np.uint32)), DtypeError, "a: dtype uint32"),
        (lambda: weights.delta(W, W, n_threads=0), InputError, "n_threads"),
        (lambda: weights.compare((W, W), W), InputError, "second: got ndarray"),
        (lambda: weights.compare((W, W), (W[:1], None)), ShapeError, r"c: shape \(1, 4\)"),
        (lambda: weights.compare((W, W), (W.astype(float), None)), DtypeError, "c: another dtype"),
        (lambda: weights.compare((W[0], None), (BAD, None)), InputError,
         "element 2, input 2"),
        (lambda: weights.sum_of_squares(BAD), InputError, "element 2, input 0"),
        (lambda: weights.histogram(BAD), InputError, "element 2"),
        (lambda: weights.count_nonfinite("x"), DtypeError, "x: got str"),
        (lambda: weights.combine([], []), InputError, "got 0 sources"),
        (lambda: weights.combine([W] * 17, np.ones(17)), InputError, "got 17 sources"),
        (lambda: weights.combine(W, np.ones(3)), InputError, "got one array"),
        (lambda: weights.combine([W, W[:2]], [1, 1]), ShapeError, r"sources\[1\]: shape"),
        (lambda: weights.combine([W, W], [1]), ShapeError, "weights"),
        (lambda: weights.combine([W], [np.nan]), InputError, "weights: NaN"),
        (lambda: weights.combine([W], [1], out_dtype="int8"), InputError, "out_dtype: got 'int8'"),
        (lambda: weights.TopK(), InputError, "exactly one"),
        (lambda: weights.TopK(1, share=0.5), InputError, "exactly one"),
        (lambda: weights.TopK(-1), InputError, "k: got -1"),
        (lambda: weights.TopK(1.5), InputError, "k: got 1.5"),
        (lambda: weights.TopK(share=1.5), InputError, "share: got 1.5"),
        (lambda: weights.topk_masks({"a": W}, {"b": W}, k=1), InputError, "tensor 'a' is in one"),
        (lambda: weights.topk_masks({"a": W}, k=1, unit="rows"), InputError, "unit: got 'rows'"),
        (lambda: weights.topk_masks({}, unit="row"), InputError, "exactly one"),
        (lambda: weights.importance(W, unit=None), InputError, "unit: got None"),
        (lambda: weights.importance(W, W[:2]), ShapeError, r"b: shape \(2, 4\)"),
        (lambda: weights.importance(BAD[None]), InputError, "row 0, column 2"),
        (lambda: weights.importance(BAD[:, None], unit="column"), InputError, "row 2, column 0"),
        (lambda: weights.importance(BAD), InputError, "a - b: NaN or infinite value, element 2"),
        (lambda: weights.importance(W[:, :0]), InputError, r"a: shape \(3, 0\)"),
        (lambda: weights.topk_units({"w": -W}, k=1), InputError, "negative importance"),
        (lambda: weights.topk_units({"w": BAD}, k=1), InputError, r"sizes\['w'\]: NaN"),
        (lambda: weights.topk_units({"w": [1.0]}, k=1), DtypeError, "got list"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def rooms(n):
    """Marks and low bits to be written."""
    return np.empty(n, np.uint8), np.empty(n, np.uint16)


def test_core_refuses_what_does_not_fit():
    x, out, w = np.ones(4, np.float32), np.empty(4, np.float32), np.ones(1)
    with pytest.raises(TypeError, match="'sources' must be a tuple"):
        _core.weights_combine(out, [x], w, 0, 1)
    with pytest.raises(TypeError, match="expected float32, float64, float16 or uint16"):
        _core.weights_combine(out, (x.astype(int),), w, 0, 1)
    with pytest.raises(TypeError, match=r"'sources\[0\]' must be a numpy.ndarray"):
        _core.weights_combine(out, (None,), w, 0, 1)
    with pytest.raises(ValueError, match=r"'sources\[0\]' has shape \(1, 4\)"):
        _core.weights_combine(out, (x[None],), w, 0, 1)
    with pytest.raises(ValueError, match="shares memory with 'sources'"):
        _core.weights_combine(out, (x, out), np.ones(2), 0, 1)
    with pytest.raises(ValueError, match="'weights' has shape"):
        _core.weights_combine(out, (x,), np.ones(2), 0, 1)
    with pytest.raises(ValueError, match="at most 16"):
        _core.weights_combine(out, (x,) * 17, np.ones(17), 0, 1)
    with pytest.raises(ValueError, match="C-contiguous"):
        _core.weights_combine(out[:2], (x[::2],), w, 0, 1)
    with pytest.raises(ValueError, match="size k of"):
        _core.weights_dots(np.empty(2), x, x, x, x, 0, 1)
    with pytest.raises(ValueError, match="size k of"):
        _core.weights_histogram(np.empty(5, np.uint64), x, x, 0, 1)
    with pytest.raises(ValueError, match="outside the domain"):
        _core.weights_select(*rooms(4), x, x, 1, 2**40, 0, 1)
    with pytest.raises(ValueError, match="outside the domain"):
        _core.weights_select(*rooms(4), x, x, 1, 2**16, 0, 1)  # more than one bucket
    with pytest.raises(TypeError, match="'lows' has dtype uint8, expected uint16"):
        _core.weights_select(*[np.empty(4, np.uint8)] * 2, x, x, 1, 2, 0, 1)
    with pytest.raises(ValueError, match="sizes do not fit"):
        _core.weights_settle(np.array([0, 2, 1], np.uint8), np.ones(2, np.uint8))
    with pytest.raises(ValueError, match="sizes do not fit"):
        _core.weights_row_means(np.empty(3), np.empty((3, 0), np.float32), None, 0, 1)
    with pytest.raises(ValueError, match="sizes do not fit"):
        _core.weights_column_means(np.empty(3), np.empty((0, 3), np.float32), None, 0, 1)


def test_results_to_dict():
    assert weights.compare((W, None), (W, None)).to_dict()["dot"] == 12.0
    assert weights.count_nonfinite(BAD).to_dict() == {"nan": 1, "infinite": 1}
