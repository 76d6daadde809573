"""Counts of open gates, and neurons chosen by entropy, against the plain twin and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import _core, neurons
from lens.errors import DtypeError, InputError, ShapeError
from tests.helpers import reference as ref

WIDTHS = [1, 2, 15, 16, 17, 511, 512, 513, 2047, 2048, 2049]


def gates(rng, shape, dtype):
    """Values with every kind of zero and tiny numbers among them."""
    x = rng.normal(size=shape)
    x[rng.random(shape) < 0.2] = 0.0
    x[rng.random(shape) < 0.1] = -0.0
    x[rng.random(shape) < 0.1] = 6e-8  # the smallest float16 is positive too
    x[rng.random(shape) < 0.1] = np.inf
    return ref.store(x, dtype)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([0, 1, 2, 7, 33]), st.sampled_from(WIDTHS), st.sampled_from(ref.DTYPES),
    st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_counts_of_any_shape(n, d, dtype, masked, seed):
    rng = np.random.default_rng(seed)
    x = gates(rng, (n, d), dtype)
    mask = rng.integers(0, 2, n) if masked else None
    counts = neurons.Counts(d)
    counts.update(x, mask, **ref.raw(dtype))
    keep = np.ones(n, bool) if mask is None else mask > 0
    result = counts.result()
    assert result.tokens == keep.sum()
    assert result.positive.dtype == np.uint64
    np.testing.assert_array_equal(result.positive, (ref.value(x, dtype)[keep] > 0).sum(0))


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_every_bit_pattern_of_16_bits_and_narrow_counters(dtype):
    """More rows than a counter of 16 bits can hold."""
    x = np.ones((70_000, 3), np.float32)
    x[:, 1] = 0
    x[5:, 2] = -1
    counts = neurons.Counts(3)
    counts.update(ref.store(x, dtype), **ref.raw(dtype))
    assert counts.result().positive.tolist() == [70_000, 0, 5]
    if dtype in ("float16", "bfloat16"):
        bits = np.arange(65536, dtype=np.uint16)
        stored = bits.view(np.float16) if dtype == "float16" else bits
        stored = stored[(bits & 0x7FFF) <= (0x7C00 if dtype == "float16" else 0x7F80)]
        every = neurons.Counts(len(stored))
        every.update(stored[None], **ref.raw(dtype))
        np.testing.assert_array_equal(every.result().positive, ref.value(stored, dtype) > 0)


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_same_counts_for_any_threads_and_instruction_set(dtype):
    x = gates(np.random.default_rng(0), (9, 5000), dtype)
    before, seen = _core.isa(), []
    try:
        for isa in _core.isas():
            _core.force_isa(isa)
            for n_threads in (1, 2, 7, None):
                counts = neurons.Counts(5000)
                counts.update(x, n_threads=n_threads, **ref.raw(dtype))
                seen.append(counts.result().positive.tobytes())
    finally:
        _core.force_isa(before)
    assert len(set(seen)) == 1


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_nan_is_refused_with_its_place_and_counts_nothing(dtype):
    x = np.ones((2, 3, 3000), np.float32)
    x[1, 1, 2500] = np.nan
    x[1, 2, 0] = np.nan
    stored, counts = ref.store(x, dtype), neurons.Counts(3000)
    mask = np.ones((2, 3), int)
    for n_threads in (1, 4):
        with pytest.raises(InputError, match="token 4, neuron 2500"):
            counts.update(stored, mask, n_threads=n_threads, **ref.raw(dtype))
    assert counts.result().tokens == 0
    assert not counts.result().positive.any()
    mask[1, 1:] = 0
    counts.update(stored, mask, **ref.raw(dtype))
    assert counts.result().tokens == 4
    assert (counts.result().positive == 4).all()


def test_batches_and_merges_add_up():
    x = np.random.default_rng(1).normal(size=(30, 40))
    whole, left, right = (neurons.Counts(40) for _ in range(3))
    whole.update(x)
    left.update(x[:11])
    right.update(x[11:20])
    right.update(x[20:].reshape(2, 5, 40))
    before = right.result()
    left.merge(right)
    assert left.result().to_dict() == whole.result().to_dict()
    assert right.result().to_dict() == before.to_dict()


def test_torch_tensor():
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    counts = neurons.Counts(20)
    counts.update(x)
    np.testing.assert_array_equal(counts.result().positive, (x > 0).sum(0).numpy())


# Three languages of 10 tokens, four neurons. The 12 probabilities in order:
# 0 0 0 0 0 .1 .2 .2 .5 .6 .8 .9; the round(0.75 * 12) = 9th is tau = 0.5.
# Above it: neuron 0 in language 0 (.9), neuron 1 in languages 0 (.6) and 1 (.8).
# Entropies: neuron 0 of (.9, .1, 0): q = .9, .1; neuron 1 of (.6, .8, .2): q = 3/8, 4/8, 1/8.
TABLE = np.array([[9, 6, 5, 0], [1, 8, 0, 0], [0, 2, 2, 0]])


def test_by_hand():
    result = neurons.lape(TABLE, [10, 10, 10], quantile=0.75, share=0.5)
    assert result.threshold == 0.5
    first = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    second = -(3 / 8 * np.log(3 / 8) + 0.5 * np.log(0.5) + np.log(1 / 8) / 8)
    np.testing.assert_allclose(result.entropy, [first, second, np.inf, np.inf], rtol=1e-14)
    assert result.members.astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    one = neurons.lape(TABLE, [10, 10, 10], quantile=0.75, share=0.25)
    assert one.members.astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_language_without_neurons_stays_in_place():
    result = neurons.lape(TABLE[[2, 0, 1]], [10, 10, 10], quantile=0.75, share=1.0)
    assert [x.ravel().tolist() for x in result.indices] == [[], [0, 1], [1]]


def test_silent_and_excluded_neurons_are_never_chosen():
    result = neurons.lape([[0, 3], [0, 3]], [4, 4], quantile=1.0, share=1.0)
    assert np.isinf(result.entropy).all()
    assert not result.members.any()
    assert not neurons.lape([[0, 0]], [4], share=1.0).members.any()


def test_equal_entropies_go_to_the_first_neuron():
    result = neurons.lape([[4] * 6, [0] * 6], [4, 4], quantile=0.5, share=0.5)
    assert result.members[0].tolist() == [True] * 3 + [False] * 3


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([1, 2, 15, 16, 17, 100, 300]), st.integers(1, 40),
    st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]), st.sampled_from([0.0, 0.01, 0.25, 1.0]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_lape_against_reference(languages, m, most, quantile, share, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, most + 1, languages)
    counts = rng.integers(0, tokens[:, None] + 1, (languages, m))
    result = neurons.lape(counts, tokens, quantile=quantile, share=share)
    tau, entropy, members = ref.lape(counts, tokens, quantile, share)
    assert result.threshold == tau
    np.testing.assert_allclose(result.entropy, entropy, rtol=1e-12, atol=1e-15)
    finite = np.sort(entropy[np.isfinite(entropy)])
    if (np.diff(finite) > 1e-12).all():  # else the order of equal ones is rounding
        np.testing.assert_array_equal(result.members, members)
    assert result.members.any(0).sum() == min(round(share * m), len(finite))


def test_layers_keep_their_shape_and_inputs_stay():
    counts = np.random.default_rng(2).integers(0, 100, (3, 4, 50))
    tokens = np.full(3, 100)
    before = counts.copy(), tokens.copy()
    result = neurons.lape(counts, tokens, share=0.1)
    flat = neurons.lape(counts.reshape(3, 200), tokens, share=0.1)
    assert result.probability.shape == result.members.shape == (3, 4, 50)
    np.testing.assert_array_equal(result.members.reshape(3, 200), flat.members)
    assert all(x.shape[1] == 2 for x in result.indices)
    np.testing.assert_array_equal(counts, before[0])
    np.testing.assert_array_equal(tokens, before[1])
    x = np.random.default_rng(3).normal(size=(5, 8))
    kept, mask = x.copy(), np.ones(5, bool)
    neurons.Counts(8).update(x, mask)
    np.testing.assert_array_equal(x, kept)
    assert result.to_dict()["members"] == result.members.tolist()


def test_counts_beyond_32_bits():
    big = 2**40
    result = neurons.lape([[big, 1], [big // 2, 0]], [2 * big, big], quantile=0.25, share=1.0)
    assert result.probability[:, 0].tolist() == [0.5, 0.5]


C3 = neurons.Counts(3)
X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: neurons.Counts(0), InputError, "neurons: got 0"),
        (lambda: neurons.Counts(True), InputError, "neurons"),
        (lambda: C3.update(X.tolist()), DtypeError, "gates: got list"),
        (lambda: C3.update(X[:, :2]), DtypeError, "contiguous"),
        (lambda: C3.update(X[:, :2].copy()), ShapeError, r"gates: shape \(2, 2\)"),
        (lambda: C3.update(X[0]), ShapeError, "gates: shape"),
        (lambda: C3.update(X.astype(int)), DtypeError, "gates: dtype int64"),
        (lambda: C3.update(X.astype(">f4")), DtypeError, "big-endian"),
        (lambda: C3.update(X, np.ones(3, int)), ShapeError, "mask"),
        (lambda: C3.update(X, np.ones(2)), DtypeError, "mask"),
        (lambda: C3.update(X, n_threads=0), InputError, "n_threads"),
        (lambda: C3.merge(neurons.Counts(4)), ShapeError, "other: 4 neurons"),
        (lambda: C3.merge(3), DtypeError, "other: got int"),
        (lambda: neurons.lape([3, 4], [5]), ShapeError, "counts: shape"),
        (lambda: neurons.lape(np.zeros((2, 0), int), [5, 5]), ShapeError, "not empty"),
        (lambda: neurons.lape([[3.0, 4.0]], [5]), DtypeError, "counts: dtype float64"),
        (lambda: neurons.lape([[3, -4]], [5]), InputError, "counts: holds -4"),
        (lambda: neurons.lape([[3, 4]], [5, 5]), ShapeError, "tokens: shape"),
        (lambda: neurons.lape([[3, 6]], [5]), InputError, "language 0, neuron 1"),
        (lambda: neurons.lape([[3, 5], [0, 0]], [5, 0]), InputError, "language 1"),
        (lambda: neurons.lape([[3]], [5], quantile=1.5), InputError, "quantile"),
        (lambda: neurons.lape([[3]], [5], share=np.nan), InputError, "share"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_core_refuses_ranks_out_of_range_and_overlap():
    p, e = np.full((2, 3), 0.5), np.zeros(3)
    out, members = np.empty(3), np.empty((2, 3), np.uint8)
    for rank, keep in ((0, 1), (7, 1), (1, 4)):
        with pytest.raises(ValueError, match="sizes"):
            _core.lape_select(members, out, p, e, rank, keep)
    with pytest.raises(ValueError, match="shares memory"):
        _core.lape_select(members, e, p, e, 1, 1)
    with pytest.raises(ValueError, match="neuron 0"):
        _core.lape_select(members, out, p, e - 1, 1, 1)
    with pytest.raises(ValueError, match="language 1, neuron 2"):
        p[1, 2] = np.nan
        _core.lape_select(members, out, p, e, 1, 1)
