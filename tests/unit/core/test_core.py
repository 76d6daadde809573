"""The extension itself: dtypes, instruction sets, refused arguments, references, threads."""

import gc
import sys
import threading

import numpy as np
import pytest

from lens import _core
from lens.arrays import F32, block
from tests.helpers import reference as ref

ISAS = _core.isas()


@pytest.fixture
def each_isa():
    """Run the body of a test under every instruction set, then restore the one in use."""
    before = _core.isa()

    def run(function):
        results = []
        for name in ISAS:
            _core.force_isa(name)
            assert _core.isa() == name
            results.append(function())
        return results

    yield run
    _core.force_isa(before)


def test_codes_agree_with_the_python_side():
    short = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}
    assert _core.dtypes() == tuple(short[name] for name in ref.DTYPES)


def test_widest_isa_is_chosen():
    assert _core.isa() == ISAS[-1]
    assert ISAS[0] == "baseline"


def test_unknown_isa_is_refused():
    with pytest.raises(ValueError, match="force_isa"):
        _core.force_isa("avx1024")


def test_every_f16_and_bf16_loads_exactly(each_isa):
    bits = np.arange(65536, dtype=np.uint16)
    for code, x, expected in (
        (ref.CODES["float16"], bits.view(np.float16), bits.view(np.float16).astype(np.float32)),
        (ref.CODES["bfloat16"], bits, ref.bf16_to_float(bits)),
    ):

        def load(x=x, code=code):
            out = np.empty(x.size, np.float32)
            _core.dtype_load(out, x, code)
            return out

        outs = each_isa(load)
        nan = np.isnan(expected)
        for out in outs:
            np.testing.assert_array_equal(out.view(np.uint32), outs[0].view(np.uint32))
            np.testing.assert_array_equal(np.isnan(out), nan)
            np.testing.assert_array_equal(out[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def hard_floats():
    """Every exponent with mantissas at and around the rounding points of f16 and bf16."""
    exponents = np.arange(256, dtype=np.uint32) << 23
    mantissas = np.array(
        [
            base + off
            for base in range(0, 1 << 23, 1 << 16)
            for off in (0, 1, 0x7FFF, 0x8000, 0x8001)
        ]
        + [base + off for base in range(0, 1 << 23, 1 << 12) for off in (0, 1, 0xFFF)]
        + [(1 << 23) - 1],
        dtype=np.uint32,
    )
    bits = (exponents[:, None] | mantissas[None, :]).ravel()
    return np.concatenate([bits, bits | np.uint32(0x80000000)]).view(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_store_rounds_to_nearest_even(each_isa, dtype):
    x = hard_floats()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = ref.store(x, dtype).view(np.uint16)
    expected_dtype = np.uint16 if dtype == "bfloat16" else np.float16

    def store():
        out = np.empty(x.size, expected_dtype)
        _core.dtype_store(out, x, ref.CODES[dtype])
        return out.view(np.uint16)

    nan = np.isnan(x)  # every NaN stays one; NumPy does not make it quiet, the CPU does
    outs = each_isa(store)
    for out in outs:
        np.testing.assert_array_equal(out, outs[0])
        np.testing.assert_array_equal(out[~nan], expected[~nan])
        assert np.isnan(ref.value(out.view(expected_dtype), dtype)[nan]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_round_trip_of_every_value(dtype):
    bits = np.arange(65536, dtype=np.uint16)
    x = bits.view(np.float16) if dtype == "float16" else bits
    middle, out = np.empty(x.size, np.float32), np.empty_like(x)
    _core.dtype_load(middle, x, ref.CODES[dtype])
    _core.dtype_store(out, middle, ref.CODES[dtype])
    keep = ~np.isnan(middle)
    np.testing.assert_array_equal(out.view(np.uint16)[keep], bits[keep])


def every_call(dtype, n_threads=1, seed=0, d=1100):
    """Outputs of all kernels that do not use BLAS, as bytes."""
    rng = np.random.default_rng(seed)
    code = ref.CODES[dtype]
    acc = np.float64 if dtype == "float64" else np.float32
    h, h0 = (ref.store(rng.normal(size=(67, 3, d)), dtype) for _ in range(2))
    basis = np.ascontiguousarray(np.linalg.qr(rng.normal(size=(d, 5)))[0].T, dtype=acc)
    mask = rng.integers(0, 2, size=(67, 3)).astype(np.uint8)
    mask[:, 0] = 1
    rows, rows0 = np.ascontiguousarray(h[:, 0]), np.ascontiguousarray(h0[:, 0])
    t = rng.normal(size=(67, 5)).astype(acc)
    out = []
    for mode in range(3):
        pooled = np.empty((67, d))
        _core.pool(pooled, h, mask, code, mode, n_threads)
        out.append(pooled)
    mean, m2 = np.empty(d), np.empty(d)
    _core.moments_update(mean, m2, None, None, rows, 0, code, n_threads)
    out += [mean, m2]
    moved, grad, back = np.empty_like(rows), np.empty_like(rows), np.empty_like(rows)
    _core.project(moved, rows, basis, 0.7, code, n_threads)
    values = [_core.separate(grad, rows, rows0, basis, t, None, code, n_threads)]
    out += [moved, grad.copy()]
    values.append(_core.align_mean(grad, back, rows, rows0, basis[0], None, code, n_threads))
    out += [grad.copy(), back.copy()]
    values.append(_core.align_complement(grad, back, rows, rows0, basis, None, code, n_threads))
    out += [grad.copy(), back.copy()]
    cube = np.empty_like(h)
    values.append(_core.retain_token(cube, h, h0, mask, code, n_threads))
    out.append(cube.copy())
    values.append(_core.retain_mean(cube, h, h0, mask, code, n_threads))
    out += [cube, np.array(values)]
    return [x.tobytes() for x in out]


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_same_bits_for_any_instruction_set(each_isa, dtype):
    first, *others = each_isa(lambda: every_call(dtype))
    for other in others:
        assert other == first


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("d", [5, 15, 16, 17, 511, 512, 513])
def test_same_bits_for_any_instruction_set_at_lane_and_piece_edges(each_isa, dtype, d):
    first, *others = each_isa(lambda: every_call(dtype, d=d))
    assert all(other == first for other in others)


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_same_bits_for_any_thread_count(dtype):
    first = every_call(dtype)
    for n_threads in (2, 3, 7, 64, 1000):
        assert every_call(dtype, n_threads) == first


@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17])
def test_chunk_edges(n):
    """Chunks of this width hold eight rows: one less, as many, one more, and two of them."""
    d, rng = 8192, np.random.default_rng(n)
    h, p = rng.normal(size=(2, n, d)).astype(np.float32)
    u = np.full(d, d**-0.5, np.float32)
    out = []
    for n_threads in (1, 3):
        grad, pooled = np.empty_like(h), np.empty((n, d))
        value = _core.align_mean(grad, None, h, p, u, None, F32, n_threads)
        _core.pool(pooled, h[:, None], np.ones((n, 1), np.uint8), F32, 1, n_threads)
        np.testing.assert_array_equal(pooled, h)
        expected = ref.align(h.astype(float), p.astype(float), direction=u.astype(float))
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        out.append((value, grad.tobytes()))
    assert out[0] == out[1]


def test_parallel_callers_do_not_disturb_each_other():
    expected = every_call("float32")
    results = [None] * 6

    def work(i):
        results[i] = every_call("float32", 2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == expected for result in results)


def call(**changes):
    """separate with good arguments but for the changes."""
    args = {
        "grad": np.empty((4, 8), np.float32),
        "h": np.ones((4, 8), np.float32),
        "h0": np.zeros((4, 8), np.float32),
        "basis": np.eye(2, 8, dtype=np.float32),
        "target": np.zeros((1, 2), np.float32),
        "weights": None,
        "dtype": F32,
        "n_threads": 1,
    }
    args.update(changes)
    return _core.separate(*args.values())


def unaligned():
    raw = np.zeros(4 * 8 * 4 + 1, np.uint8)[1:]
    return raw.view(np.float32).reshape(4, 8)


def read_only():
    out = np.empty((4, 8), np.float32)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"h": [[1.0]]}, TypeError, "'h' must be a numpy.ndarray"),
        ({"h": np.ones((4, 8))}, TypeError, "'h' has dtype float64, expected float32"),
        ({"h": np.ones((4, 9), np.float32)}, ValueError, r"\(B, d\)"),
        ({"h0": np.ones((3, 8), np.float32)}, ValueError, r"'h0' has shape \(3, 8\).*\(4, 8\)"),
        ({"h": np.ones((4, 8, 1), np.float32)}, ValueError, r"'h' has shape \(4, 8, 1\)"),
        ({"h": np.ones((4, 16), np.float32)[:, ::2]}, ValueError, "'h' is not C-contiguous"),
        ({"h": np.ones((8, 4), np.float32).T}, ValueError, "'h' is not C-contiguous"),
        ({"h": np.ones((4, 8), ">f4")}, ValueError, "'h' is not in native byte order"),
        ({"h": unaligned()}, ValueError, "'h' is not aligned"),
        ({"grad": read_only()}, ValueError, "'grad' is read-only"),
        ({"target": np.zeros((3, 2), np.float32)}, ValueError, "size p of 'target' is 3"),
        (
            {"weights": np.ones(3)},
            ValueError,
            r"'weights' has shape \(3,\), expected \(B\) = \(4\)",
        ),
        ({"weights": np.ones(4, np.float32)}, TypeError, "'weights' has dtype float32"),
        ({"dtype": 4}, ValueError, "'dtype' is 4"),
        ({"dtype": "f32"}, TypeError, "int"),
        ({"n_threads": -1}, ValueError, "'n_threads' is -1"),
        ({"n_threads": 2**70}, OverflowError, "int"),
        ({"h": np.full((4, 8), np.nan, np.float32)}, ValueError, "NaN or infinite value, row 0"),
    ],
)
def test_refused(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_overlap_is_refused():
    big = np.zeros((8, 8), np.float32)
    for grad, h in ((big[:4], big[:4]), (big[3:7], big[:4]), (big[:4], big[3:7])):
        with pytest.raises(ValueError, match="'grad' shares memory with 'h'"):
            call(grad=grad, h=h)
    call(grad=big[:4], h=big[4:])


def test_inputs_may_be_the_same_array():
    h = np.ones((4, 8), np.float32)
    assert call(h=h, h0=h) == 0.0


def test_wrong_number_of_arguments():
    with pytest.raises(TypeError, match="pool: expected 6 arguments, got 1"):
        _core.pool(np.empty((1, 1)))


def test_references_are_stable():
    arrays = [np.ones((4, 8), np.float32) for _ in range(2)]
    grad, basis = np.empty((4, 8), np.float32), np.eye(2, 8, dtype=np.float32)
    bad = np.full((4, 8), np.nan, np.float32)

    def once():
        call(grad=grad, h=arrays[0], h0=arrays[1], basis=basis)
        for wrong in (bad, basis, None):
            with pytest.raises((ValueError, TypeError)):
                call(grad=grad, h=wrong)
        with pytest.raises(ValueError, match="shares"):
            call(grad=grad, h=grad)

    def counts():
        gc.collect()
        return [sys.getrefcount(x) for x in (*arrays, grad, basis, bad, None, np.dtype("f4"))]

    once()
    before = counts()
    for _ in range(1000):
        once()
    after = counts()
    assert all(abs(a - b) < 20 for a, b in zip(before, after, strict=True))


def test_block_of_every_spelling():
    torch = pytest.importorskip("torch")
    for name in ref.DTYPES:
        tensor = torch.zeros(3, dtype=getattr(torch, name))
        assert block(tensor, "x").dtype_name == name
    assert block(np.zeros(3, np.uint16), "x", dtype="bf16").dtype_name == "bfloat16"


def test_torch_bfloat16_is_viewed_not_copied():
    torch = pytest.importorskip("torch")
    tensor = torch.ones(4, dtype=torch.bfloat16)
    data = block(tensor, "x").data
    tensor[0] = 2
    assert data[0] == 0x4000
