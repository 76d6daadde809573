"""Tensors on other devices: neurons, metrics and weights against the C core."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lens import (
    metrics,
    neurons,
    tensors,
    weights,
)
from tests.helpers import reference as ref
from tests.helpers.elsewhere import DEVICES, NARROW, both, elsewhere, lumpy, normal, values

SIZES = [0, 1, 15, 16, 17, 511, 512, 513, 1025, 65535, 65537]

# ---- neurons -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize(("t", "m"), [(1, 1), (7, 15), (33, 513)])
def test_counts_are_exact(dtype, t, m):
    rng = np.random.default_rng(t)
    x, mask = lumpy(rng, (2, t, m), dtype), rng.random((2, t)) > 0.5
    x[0, 0, 0], x[1, 0, 0] = torch.inf, -torch.inf
    x[~torch.from_numpy(mask)] = torch.nan
    core, far = neurons.Counts(m), neurons.Counts(m)
    for counts, there in ((core, False), (far, True)):
        for gates, keep in ((x, mask), (torch.ones(t, m, dtype=x.dtype), None)):
            if there:
                with elsewhere():
                    counts.update(gates, keep)
            else:
                counts.update(gates, keep)
    assert core.result().to_dict() == far.result().to_dict()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 70), st.integers(0, 2**32 - 1), st.floats(0, 1),
       st.floats(0, 1))  # fmt: skip
def test_lape(L, m, seed, quantile, share):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 9, L)
    counts = torch.from_numpy(rng.integers(0, tokens[:, None] + 1, (L, m)))  # full of ties
    how = {"quantile": quantile, "share": share}
    for float64 in (True, False):
        with elsewhere(float64):
            far = neurons.lape(counts, tokens, **how)
        core = neurons.lape(counts.numpy(), tokens, **how)
        assert far.threshold == core.threshold
        near = 0 if float64 else 1e-7
        np.testing.assert_allclose(far.probability, core.probability, rtol=near)
        np.testing.assert_allclose(far.entropy, core.entropy, rtol=near, atol=1e-14)
        # Entropies equal but for rounding may change places: the sets are equal but for those.
        chosen = [np.sort(x.entropy[np.asarray(x.members).any(0)]) for x in (core, far)]
        np.testing.assert_allclose(chosen[0], chosen[1], rtol=near, atol=1e-14)
    assert isinstance(far.members, torch.Tensor) and far.members.dtype == torch.bool


def test_lape_takes_the_first_of_equal_neurons():
    counts = torch.tensor([[5, 0, 5, 5], [0, 5, 0, 0]]).reshape(2, 2, 2)
    core = neurons.lape(counts.numpy(), [10, 10], quantile=0.5, share=0.5)
    with elsewhere():
        far = neurons.lape(counts, [10, 10], quantile=0.5, share=0.5)
        apart = neurons.lape(list(counts), [10, 10], quantile=0.5, share=0.5)
    np.testing.assert_array_equal(far.members, core.members)
    assert far.members.sum() == 2 and far.to_dict() == apart.to_dict()
    assert [x.tolist() for x in far.indices] == [x.tolist() for x in core.indices]


# ---- metrics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("n", [2, 3, 63, 64, 65, 200])
def test_mexa(dtype, n, monkeypatch):
    monkeypatch.setattr(tensors.metrics, "_ROWS", 48)
    rng = np.random.default_rng(n)
    pivot = normal(rng, (n, 12), dtype)
    other = pivot + normal(rng, (n, 12), dtype, scale=0.6)
    core, far = both(metrics.mexa, pivot, other, permutations=20, seed=3)
    assert (far.score, far.n) == (core.score, core.n)
    np.testing.assert_array_equal(far.null, core.null)
    assert far.variance == pytest.approx(core.variance, rel=1e-12)
    assert far.pivot_variance == pytest.approx(core.pivot_variance, rel=1e-12)


@pytest.mark.parametrize("n", [5, 64, 130])
def test_mexa_ties_equal_states_wherever_they_stand(n, monkeypatch):
    monkeypatch.setattr(tensors.metrics, "_ROWS", 3)
    rng = np.random.default_rng(n)
    x = normal(rng, (n, 33), "float32")
    x[-1], x[n // 2] = x[0], 4 * x[1]
    for pivot, other in ((x, x), (x, normal(rng, (n, 33), "float32")), (x[:2], x[[0, 0]])):
        core, far = both(metrics.mexa, pivot, other, permutations=5)
        assert far.score == core.score
        np.testing.assert_array_equal(far.null, core.null)
    assert both(metrics.mexa, x, x)[1].score == (n - 4) / n


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("folds", [2, 5, 100])
def test_separability(dtype, folds):
    rng = np.random.default_rng(folds)
    states = {
        name: normal(rng, (n, 17), dtype, shift=shift)
        for name, n, shift in (("a", 12, 0.0), ("b", 31, 0.5), ("c", 2, -0.5))
    }
    core, far = both(metrics.separability, states, folds=folds)
    assert core.to_dict() == far.to_dict()
    equal = {name: torch.ones(4, 3) for name in "ab"}  # equal distances go to the first
    assert both(metrics.separability, equal)[1].to_dict()["confusion"] == [[4, 0], [4, 0]]


# ---- weights -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.sampled_from(DEVICES), st.booleans(), st.integers(0, 2**32 - 1))
def test_deltas(n, device, ties, seed):
    dtype, float64 = device
    rng = np.random.default_rng(seed)
    make = lumpy if ties else normal
    a, b, c, d = (make(rng, n, dtype) for _ in range(4))
    for pair in ((a, b), (a, None)):
        core, far = both(weights.delta, *pair, float64=float64)
        assert far.dtype == torch.float32
        np.testing.assert_array_equal(far.numpy().view(np.uint32), core.view(np.uint32))
        core, far = both(weights.histogram, *pair, float64=float64)
        np.testing.assert_array_equal(far.numpy().astype(np.uint64), core)
    core, far = both(weights.sum_of_squares, a, b, float64=float64)
    assert far == pytest.approx(core, rel=1e-12)
    core, far = both(weights.compare, (a, b), (c, d), float64=float64)
    np.testing.assert_allclose(far.squares, core.squares, rtol=1e-12)
    assert abs(far.dot - core.dot) <= 1e-12 * math.prod(map(math.sqrt, core.squares))
    bad = torch.from_numpy(rng.integers(0, 4, n))
    a[bad == 1], a[bad == 2], a[bad == 3] = torch.nan, torch.inf, -torch.inf
    core, far = both(weights.count_nonfinite, a)
    assert core == far == weights.NonFinite(int((bad == 1).sum()), int((bad > 1).sum()))


def bits(x):
    """Bits of an array of the core, or of a tensor."""
    if isinstance(x, torch.Tensor):
        x = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
        x = x.numpy()
    return x.view(f"u{x.dtype.itemsize}")


@pytest.mark.parametrize(("out_dtype", "float64"), DEVICES)
@pytest.mark.parametrize("scale", [1e-40, 1e-7, 1.0, 3e4, 1e38])
def test_combine_is_rounded_once(out_dtype, float64, scale):
    if not float64:  # pairs of float32 have no more exponents than float32
        scale = min(max(scale, 1e-9), 1e9)
    rng = np.random.default_rng(1)
    kinds = ref.DTYPES if float64 else NARROW
    sources = [normal(rng, (3, 1001), kind) for kind in kinds]
    w = scale * rng.normal(size=len(sources))
    core, far = both(weights.combine, sources, w, out_dtype=out_dtype, float64=float64)
    np.testing.assert_array_equal(bits(far), bits(core))
    halves = [lumpy(rng, 4096, kind) for kind in kinds]  # sums half way between two of 16 bits
    steps = [1 + 2.0**-11, 1 + 2.0**-8, 2.0**-30, 1][: len(halves)]
    core, far = both(weights.combine, halves, steps, out_dtype=out_dtype, float64=float64)
    np.testing.assert_array_equal(bits(far), bits(core))


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_combine_edges(dtype):
    x = torch.tensor([0.0, -0.0, 1.0, torch.inf, -torch.inf]).to(getattr(torch, dtype))
    y = torch.full_like(x, torch.nan)
    for sources, w in (([x], [1]), ([x, y], [1, 0]), ([x, y], [0, 0]), ([x, x], [1, 1])):
        core, far = both(weights.combine, sources, w)
        np.testing.assert_array_equal(bits(far), bits(core))
    _, far = both(weights.combine, [x, y], [1, 1])
    assert far.isnan().all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 15, 17, 60, 513]), min_size=1, max_size=5),
    st.sampled_from(ref.DTYPES), st.booleans(), st.integers(0, 2**32 - 1), st.floats(0, 1),
)  # fmt: skip
def test_topk(sizes, dtype, ties, seed, share):
    rng = np.random.default_rng(seed)
    make = lumpy if ties else normal
    a, b = ({f"t{i}": make(rng, n, dtype) for i, n in enumerate(sizes)} for _ in range(2))
    core, far = both(weights.topk_masks, a, b, share=share)
    for name, mask in core.items():
        assert isinstance(far[name], torch.Tensor) and far[name].dtype == torch.bool
        np.testing.assert_array_equal(far[name], mask)


def test_importance_and_given_memory():
    a, b = (normal(np.random.default_rng(i), (7, 90), "bfloat16") for i in range(2))
    for unit in ("row", "column", "element"):
        core, far = both(weights.importance, a, b, unit=unit)
        np.testing.assert_array_equal(far, core)


def test_topk_in_many_pieces(monkeypatch):
    for module in (weights._topk, tensors.weights):
        monkeypatch.setattr(module, "_PIECE", 64)
    x = {f"{i:02}": lumpy(np.random.default_rng(i), (7, 90), "bfloat16") for i in range(9)}
    for k in (0, 1, 100, 5000, 10**9):
        core, far = both(weights.topk_masks, x, k=k)
        for name, mask in core.items():
            np.testing.assert_array_equal(far[name], mask)
    a, b = x["00"], x["01"]
    assert np.array_equal(*map(values, both(weights.histogram, a, b)))
    assert np.array_equal(*map(values, both(weights.combine, [a, b], [1, 2])))
    core, far = both(weights.compare, (a, b), (b, None))
    assert core.squares == far.squares and core.dot == far.dot  # eighths: exact in any order
