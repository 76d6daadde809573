"""Tensors on other devices: dispatch, pooling, moments, subspaces and losses against the C core."""

import inspect
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lens import (
    losses,
    metrics,
    neurons,
    pooling,
    subspace,
    tensors,
    weights,
)
from lens.errors import (
    DtypeError,
    InputError,
    ShapeError,
)
from tests.helpers import reference as ref
from tests.helpers.elsewhere import DEVICES, NARROW, both, elsewhere, normal, values

NUMERICS = (pooling, subspace, losses, metrics, neurons, weights)
WIDTHS = [1, 15, 16, 17, 33, 511, 512, 513, 1025]
EPS64 = 2.0**-52


# ---- dispatch ----------------------------------------------------------------------------------


def dispatched():
    return [
        (module.__name__.rpartition(".")[2], name)
        for module in NUMERICS
        for name in module.__all__
        if hasattr(getattr(module, name), "__wrapped__")
    ]


def test_every_public_function_has_its_twin():
    functions = {
        (m.__name__.rpartition(".")[2], name)
        for m in NUMERICS
        for name in m.__all__
        if inspect.isfunction(getattr(m, name))
    }
    # topk_masks is made of TopK, which asks for torch tensor by tensor; mexa_layers of mexa.
    made_of_others = {("weights", name) for name in ("topk_masks", "importance", "topk_units")}
    made_of_others.add(("metrics", "mexa_layers"))
    assert functions - set(dispatched()) == made_of_others


def test_layers_of_tensors_elsewhere():
    states = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    here = metrics.mexa_layers(*states.numpy(), permutations=7)
    with elsewhere():
        far = metrics.mexa_layers(*states, permutations=7)
    assert [x.score for x in far.layers] == [x.score for x in here.layers]


@pytest.mark.parametrize(("family", "name"), dispatched())
def test_twins_have_the_same_signature(family, name):
    numeric = inspect.signature(getattr(globals()[family], name))
    twin = inspect.signature(getattr(getattr(tensors, family), name))
    parts = [[(p.name, p.kind, p.default) for p in s.parameters.values()] for s in (numeric, twin)]
    assert parts[0] == parts[1]


def test_cpu_tensors_go_to_the_core_and_others_to_torch():
    x = torch.ones(2, 3)
    assert isinstance(weights.delta(x), np.ndarray)
    assert isinstance(weights.delta(a=x), np.ndarray)
    assert weights.delta(torch.empty(2, 3, device="meta")).is_meta
    assert weights.delta(a=torch.empty(2, 3, device="meta")).is_meta
    with elsewhere():
        assert isinstance(weights.delta(x), torch.Tensor)
        assert isinstance(weights.delta(x.numpy()), np.ndarray)


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_shapes_on_the_meta_device(dtype):
    kind = {"dtype": getattr(torch, dtype), "device": "meta"}
    x, h, m = torch.empty(2, 3, 8, **kind), torch.empty(5, 8, **kind), np.eye(8)[:, :2]
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    for mode in ("last", "mean", "weighted"):
        pooled = pooling.pool(x, mask, mode=mode)
        assert pooled.is_meta and pooled.shape == (2, 8) and pooled.dtype == torch.float64
    assert subspace.project(x, m).shape == x.shape
    for result, like in (
        (losses.separate(h, h, m, np.zeros(2)), h),
        (losses.align(h, h, basis=m), h),
        (losses.align(h, h, direction=np.ones(8), two_sided=True), h),
        (losses.retain(x, x, mask), x),
        (losses.retain(x, x, mask, form="token_mean"), x),
    ):
        assert result.grad.is_meta and result.grad.dtype == kind["dtype"]
        assert result.grad.shape == like.shape and result.value.shape == ()
    out = weights.combine([h, h], [1, 2], out_dtype="bfloat16")
    assert out.is_meta and out.shape == h.shape and out.dtype == torch.bfloat16


BAD = {
    "rank": lambda x: pooling.pool(x, np.ones((3, 4), int)),
    "mask shape": lambda x: pooling.pool(x[None], np.ones((1, 2), int)),
    "mask dtype": lambda x: pooling.pool(x[None], np.ones((1, 3))),
    "mask value": lambda x: pooling.pool(x[None], np.full((1, 3), 2)),
    "no token": lambda x: pooling.pool(x[None], np.zeros((1, 3), int)),
    "mode": lambda x: pooling.pool(x[None], np.ones((1, 3), int), mode="first"),
    "dtype": lambda x: weights.delta(x.int()),
    "said dtype": lambda x: weights.delta(x, dtype="float16"),
    "shapes": lambda x: weights.delta(x, x[:1]),
    "dtypes": lambda x: weights.delta(x, x.double()),
    "one": lambda x: weights.combine(x, [1]),
    "none": lambda x: weights.combine([x] * 17, [1] * 17),
    "weights": lambda x: weights.combine([x], [1, 2]),
    "out": lambda x: weights.combine([x], [1], out_dtype="int8"),
    "nan weight": lambda x: weights.combine([x], [np.nan]),
    "no pair": lambda x: weights.compare((x, x), (x, x, x)),
    "inf": lambda x: weights.sum_of_squares(x / 0),
    "nan": lambda x: weights.histogram(x * np.nan),
    "neither": lambda x: losses.align(x, x),
    "zero": lambda x: losses.align(x, x, direction=np.zeros(4)),
    "skew": lambda x: losses.align(x, x, basis=np.ones((4, 2))),
    "target": lambda x: losses.separate(x, x, np.eye(4)[:, :2], np.zeros(3)),
    "basis": lambda x: losses.separate(x, x, np.eye(3)[:, :2], np.zeros(2)),
    "nan state": lambda x: losses.separate(x * np.nan, x, np.eye(4)[:, :2], np.zeros(2)),
    "form": lambda x: losses.retain(x[None], x[None], np.ones((1, 3), int), form="x"),
    "all masked": lambda x: losses.retain(x[None], x[None], np.zeros((1, 3), int)),
    "strength": lambda x: subspace.project(x, np.eye(4)[:, :1], strength=np.inf),
    "one language": lambda x: subspace.fit(x[:1].double()),
    "twin language": lambda x: subspace.fit(x.double() * 0 + 1),
    "nan mean": lambda x: subspace.fit(x.double() * np.nan),
    "noise": lambda x: subspace.fit(x.double(), noise=-np.ones(3)),
    "fit rank": lambda x: subspace.fit(x.double(), rank=3),
    "no direction": lambda x: metrics.mexa(x * 0, x),
    "nan cosine": lambda x: metrics.mexa(x, x * np.nan),
    "one row": lambda x: metrics.mexa(x[:1], x[:1]),
    "one state": lambda x: metrics.separability({"a": x}),
    "widths": lambda x: metrics.separability({"a": x, "b": x[:, :2].contiguous()}),
    "gates": lambda x: neurons.Counts(3).update(x),
    "nan gate": lambda x: neurons.Counts(4).update(x * np.nan),
    "too many": lambda x: neurons.lape((x > 0).long() + 9, [2, 2, 2]),
    "share": lambda x: neurons.lape((x > 0).long(), [2, 2, 2], share=2.0),
    "unseen": lambda x: neurons.lape((x > 9).long(), [2, 0, 2]),
    "width": lambda x: pooling.StreamingMoments(3).update(x, 0),
    "nan row": lambda x: pooling.StreamingMoments(4).update(x * np.nan, 0),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_the_same_error(name):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    kinds = (ShapeError, DtypeError, InputError)
    with pytest.raises(InputError) as core:
        BAD[name](x)
    with elsewhere(), pytest.raises(InputError) as far:
        BAD[name](x)
    assert [isinstance(core.value, k) for k in kinds] == [isinstance(far.value, k) for k in kinds]


# ---- pooling and moments -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("mode", ["last", "mean", "weighted"])
@pytest.mark.parametrize(("n", "t", "d"), [(0, 3, 4), (1, 1, 1), (3, 40, 17), (5, 130, 33)])
def test_pool(dtype, mode, n, t, d):
    rng = np.random.default_rng(t)
    x, mask = normal(rng, (n, t, d), dtype, shift=3.0), rng.random((n, t)) > 0.4
    mask[:, t // 2] = True
    x[~torch.from_numpy(mask)] = torch.nan  # padding is never read
    core, far = both(pooling.pool, x, mask, mode=mode)
    assert far.dtype == torch.float64
    bound = 0.0 if mode == "last" else 20 * EPS64 * 8
    np.testing.assert_allclose(far, core, rtol=0, atol=bound)
    if dtype in NARROW:
        _, near = both(pooling.pool, x, torch.from_numpy(mask), mode=mode, float64=False)
        assert near.dtype == torch.float32  # rounded once, from a pair
        assert (np.abs(values(near) - core) <= 2.0**-24 * np.abs(core) + 2.0**-42).all()


@pytest.mark.parametrize(("dtype", "float64"), DEVICES)
@pytest.mark.parametrize("n", [1, 2, 3, 1023, 1024, 1025, 3000])
def test_moments(dtype, float64, n):
    x = normal(np.random.default_rng(n), (n, 17), dtype, shift=100.0)
    x[:, 3] = 7.0  # a constant column has a variance of zero
    core = pooling.StreamingMoments(17)
    core.update(x, 5)
    far, mixed = pooling.StreamingMoments(17), pooling.StreamingMoments(17)
    cuts = sorted({0, n // 3, n - 1, n})
    for start, end in itertools.pairwise(cuts):
        with elsewhere(float64):
            far.update(x[start:end], 5 + start)
    mixed.update(x[: n // 2], 5)
    with elsewhere(float64):
        mixed.update(x[n // 2 :], 5 + n // 2)
    for other in (far, mixed):
        a, b = core.result(), other.result()
        assert a.count == b.count
        np.testing.assert_allclose(b.mean, a.mean, rtol=1e-13)
        # 2^-45 of the squares around the rounded mean, where pairs stand for float64
        np.testing.assert_allclose(b.variance, a.variance, rtol=1e-12, atol=1e-20)


def test_pairs_hold_twice_the_digits():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2049, 40)).astype(np.float32)) * 2.0 ** torch.arange(40)
    x = torch.cat([x, -x.flip(0) * (1 + 2.0**-20)])  # cancels to six digits
    high, low = tensors.pairs.fold((x, torch.zeros_like(x)))
    exact = x.double().sum(0)
    size = x.double().abs().sum(0)
    assert ((high.double() + low.double() - exact).abs() <= 2.0**-44 * size).all()
    assert ((x.sum(0).double() - exact).abs() > 2.0**-44 * size).any()
    p, e = tensors.pairs.two_product(x, x.roll(1, 0))
    assert torch.equal(p.double() + e.double(), x.double() * x.roll(1, 0).double())


# ---- subspaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [1, 3])
@pytest.mark.parametrize(("L", "d", "condition"), [(2, 2, 1), (5, 40, 10), (7, 64, 1e4)])
@pytest.mark.parametrize("rank", ["auto", "full", 1])
def test_fit(S, L, d, condition, rank):
    rng = np.random.default_rng(L)
    spread = np.geomspace(1, 1 / condition, L)[:, None] * np.linalg.qr(rng.normal(size=(d, L)))[0].T
    means = torch.from_numpy(rng.normal(size=(S, L, d)) * 1e-3 / condition + spread + 1.0)
    for float64 in (True, False):
        core, far = both(
            subspace.fit_batch, means, rank=rank, noise=np.full((S, L), 1e-12),
            agnostic="complement", float64=float64,
        )  # fmt: skip
        for a, b in zip(core, far, strict=True):
            assert (a.rank, a.rank_reason) == (b.rank, b.rank_reason)
            bound = 1e-9 if float64 else 1e-6  # without float64: the core's result in float32
            assert all(isinstance(x, torch.Tensor) for x in (b.basis, b.agnostic, b.mean))
            sine = values(b.basis) - a.basis @ (a.basis.T @ values(b.basis))
            assert np.abs(sine).max() <= bound
            np.testing.assert_allclose(values(b.basis), a.basis, atol=1e-7 * condition)  # signs
            np.testing.assert_allclose(values(b.agnostic), a.agnostic, atol=10 * bound)
            np.testing.assert_allclose(
                values(b.singular_values), a.singular_values, rtol=bound, atol=1e-14
            )


def test_fit_names_dependent_languages_as_the_core_does():
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 9)))
    means[3] = means[1] + means[2] - means[0]
    with elsewhere(), pytest.raises(InputError, match=r"the means of en, de, fr, sw depend"):
        subspace.fit(means, rank="full", languages=["en", "de", "fr", "sw"])
    _, far = both(subspace.fit, means, rank=2)
    assert isinstance(far.basis, torch.Tensor) and far.rank == 2


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-3, 0.7, 1.5])
@pytest.mark.parametrize(("a", "b"), [(1, 1), (3, 2), (2, 5)])
def test_principal_angles(angle, a, b):
    rng = np.random.default_rng(a)
    Q = np.linalg.qr(rng.normal(size=(30, a + b)))[0]
    B = Q[:, a:].copy()
    B[:, 0] = np.cos(angle) * Q[:, 0] + np.sin(angle) * Q[:, a]
    A, B = torch.from_numpy(Q[:, :a].copy()), torch.from_numpy(B)
    core, far = both(subspace.principal_angles, A, B)
    np.testing.assert_allclose(far, core, atol=1e-14)
    assert float(far[0]) == pytest.approx(angle, abs=1e-14)
    _, near = both(subspace.principal_angles, A, B, float64=False)
    np.testing.assert_allclose(near, core, rtol=1e-7)
    with elsewhere(), pytest.raises(InputError, match="dependent"):
        subspace.principal_angles(torch.cat([A, A], 1), B)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 9), (9, 1), (12, 30), (30, 12)])
@pytest.mark.parametrize(("dtype", "float64"), DEVICES)
def test_thin_factors(n, d, dtype, float64):
    x = normal(np.random.default_rng(n), (n, d), dtype)
    rank, bound = max(1, min(n, d) // 2), 1e-12 if float64 else 1e-6
    core, far = both(subspace.thin_svd, x, rank=rank, float64=float64)
    for field in ("left", "singular_values", "right"):
        got = getattr(far, field)
        assert isinstance(got, torch.Tensor)
        np.testing.assert_allclose(values(got), getattr(core, field), rtol=bound, atol=bound)
    core, far = both(subspace.thin_qr, x if n >= d else x.T, float64=float64)
    for field in ("Q", "R"):
        got = getattr(far, field)
        np.testing.assert_allclose(values(got), getattr(core, field), rtol=bound, atol=bound)
    with elsewhere(float64), pytest.raises(InputError, match="NaN or infinite"):
        subspace.thin_svd(x * torch.nan)
    with elsewhere(float64), pytest.raises(InputError, match="NaN or infinite"):
        subspace.thin_qr((x if n >= d else x.T) * torch.nan)


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("d", WIDTHS)
def test_project(dtype, d):
    rng = np.random.default_rng(d)
    x = normal(rng, (2, 3, d), dtype)
    basis = np.linalg.qr(rng.normal(size=(d, min(d, 3))))[0]
    core, far = both(subspace.project, x, torch.from_numpy(basis), strength=1.5)
    assert far.dtype == x.dtype
    size = np.abs(values(x)).sum(-1, keepdims=True)
    bound = ref.EPS[dtype] * np.abs(values(core)) + 40 * ref.ACC_EPS[dtype] * size
    assert (np.abs(values(far) - values(core)) <= bound).all()
    _, still = both(subspace.project, x, basis, strength=0.0)
    assert torch.equal(still, x) and still.data_ptr() != x.data_ptr()


# ---- losses ------------------------------------------------------------------------------------


def terms(rng, dtype, B, d, t=4):
    """Every loss as (name, function of the states, states); row 0 has weight 0 and holds NaN."""
    h, o = normal(rng, (B, d), dtype), normal(rng, (B, d), dtype)
    H, O = normal(rng, (B, t, d), dtype), normal(rng, (B, t, d), dtype)
    M = np.linalg.qr(rng.normal(size=(d, min(3, d))))[0]
    target, u = rng.normal(size=(B, M.shape[1])), rng.normal(size=d)
    w = rng.uniform(0.1, 1, B)
    mask = rng.integers(0, 2, (B, t))
    mask[:, 1] = 1
    H[torch.from_numpy(mask) == 0] = torch.nan
    if B > 1:
        w[0], h = 0.0, torch.cat([h[:1] * torch.nan, h[1:]])
    return [
        ("separate", lambda x: losses.separate(x, o, M, target, weights=w), h),
        ("one target", lambda x: losses.separate(x, o, M, target[-1], weights=w), h),
        ("no weights", lambda x: losses.separate(x, o, M, target[-1]), o + 1),
        ("mean", lambda x: losses.align(x, o, direction=u, weights=w, two_sided=True), h),
        ("complement", lambda x: losses.align(x, o, basis=M, weights=w, two_sided=True), h),
        ("token", lambda x: losses.retain(x, O, mask), H),
        ("token mean", lambda x: losses.retain(x, O, mask, form="token_mean"), H),
    ]


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize(("B", "d"), [(1, 1), (3, 15), (2, 16), (5, 17), (2, 512), (3, 513)])
def test_losses(dtype, B, d):
    acc, eps = ref.ACC_EPS[dtype], ref.EPS[dtype]
    for name, loss, x in terms(np.random.default_rng(d), dtype, B, d):
        core, far = both(loss, x)
        assert far.grad.dtype == x.dtype, name
        assert abs(float(far.value) - core.value) <= 400 * acc * max(core.value, 1e-3), name
        pairs = [(core.grad, far.grad)]
        if getattr(core, "grad_pivot", None) is not None:
            pairs.append((core.grad_pivot, far.grad_pivot))
        for a, b in pairs:
            a, b = values(a), values(b)
            tiny = 2.0**-24 if dtype == "float16" else 0.0  # a step between its subnormals
            bound = eps * np.abs(a) + 400 * acc * max(np.abs(a).max(), 1e-2) + tiny
            assert (np.abs(b - a) <= bound).all(), name


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_the_given_gradients_are_those_of_autograd(dtype):
    for name, loss, x in terms(np.random.default_rng(1), dtype, 4, 33):
        leaf = x.clone().requires_grad_()
        with elsewhere():
            found = loss(leaf)
        (grad,) = torch.autograd.grad(found.value, leaf)
        assert not found.grad.requires_grad
        tolerance = {"rtol": 2 * ref.EPS[dtype], "atol": 20 * ref.ACC_EPS[dtype]}
        torch.testing.assert_close(grad, found.grad, msg=name, **tolerance)


def test_values_against_numerical_differences():
    for name, loss, x in terms(np.random.default_rng(2), "float64", 1, 7):
        x = x.nan_to_num().requires_grad_()
        with elsewhere():
            assert torch.autograd.gradcheck(lambda y, f=loss: f(y).value, x), name


def test_losses_of_a_device_without_float64():
    for name, loss, x in terms(np.random.default_rng(3), "float32", 5, 513):
        core, far = both(loss, x, float64=False)
        assert far.value.dtype == torch.float32, name
        assert float(far.value) == pytest.approx(core.value, rel=1e-5), name
        np.testing.assert_allclose(far.grad, core.grad, rtol=1e-4, atol=1e-6, err_msg=name)


def test_autocast_does_not_shorten_products():
    rng = np.random.default_rng(5)
    x, basis = normal(rng, (40, 33), "float32"), np.linalg.qr(rng.normal(size=(33, 3)))[0]
    calls = [lambda: subspace.project(x, basis), lambda: metrics.mexa(x, x.flip(1)).score]
    calls += [lambda f=f, y=y: f(y).grad for _, f, y in terms(rng, "float32", 4, 33)]
    for call in calls:
        with elsewhere():
            plain = call()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(call(), plain, rtol=0, atol=0, equal_nan=True)


def test_inputs_stay_as_they_are():
    rng = np.random.default_rng(4)
    h, o = normal(rng, (6, 20), "float32"), normal(rng, (6, 20), "float32")
    before, mask = (h.clone(), o.clone()), np.ones((1, 6), int)
    calls = (
        lambda: pooling.pool(h[None], mask, mode="weighted"), lambda: weights.delta(h, o),
        lambda: weights.delta(h).add_(1), lambda: weights.combine([h], [1]).add_(1),
        lambda: weights.combine([h, o], [1, -2]), lambda: subspace.fit(h),
        lambda: subspace.project(h, np.eye(20)[:, :2]), lambda: subspace.principal_angles(h.T, o.T),
        lambda: losses.align(h, o, basis=np.eye(20)[:, :2]), lambda: metrics.mexa(h, o),
        lambda: losses.retain(h[None], o[None], mask), lambda: weights.topk_masks({"a": h}, k=3),
        lambda: neurons.Counts(20).update(h), lambda: pooling.StreamingMoments(20).update(h, 0),
    )  # fmt: skip
    for call in calls:
        with elsewhere():
            call()
    assert torch.equal(h, before[0]) and torch.equal(o, before[1])
