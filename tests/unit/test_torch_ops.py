"""Tensors on other devices: dispatch, and pooling, moments and losses against the C core."""

import inspect
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lens import losses, metrics, neurons, pooling, resample, subspace, torch_ops, weights  # noqa: E402
from lens.errors import (  # noqa: E402
    DtypeError,
    InputError,
    ShapeError,
)
from tests.helpers import reference as ref  # noqa: E402
from tests.helpers.elsewhere import DEVICES, NARROW, both, elsewhere, normal, values  # noqa: E402

EPS64 = 2.0**-52


# ---- dispatch ----------------------------------------------------------------------------------


OPS = [(pooling, "pool"), *((losses, name) for name in ("separate", "align", "retain"))]


@pytest.mark.parametrize(("module", "name"), OPS, ids=[name for _, name in OPS])
def test_operations_have_the_signature_of_the_function_they_stand_in_for(module, name):
    functions = getattr(module, name), getattr(torch_ops, name)
    a, b = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in functions
    )
    assert a == b
    assert hasattr(functions[0], "__wrapped__")


def test_cpu_tensors_go_to_the_core_and_others_to_torch():
    x, mask = torch.ones(2, 3, 4), np.ones((2, 3), int)
    assert isinstance(pooling.pool(x, mask), np.ndarray)
    assert isinstance(pooling.pool(states=x, mask=mask), np.ndarray)
    meta = torch.empty(2, 3, 4, device="meta")
    assert pooling.pool(meta, mask).is_meta and pooling.pool(states=meta, mask=mask).is_meta
    with elsewhere():
        assert isinstance(pooling.pool(x, mask), torch.Tensor)
        assert isinstance(pooling.pool(x.numpy(), mask), np.ndarray)


REFUSED = {
    "subspace.fit": lambda x: subspace.fit(x),
    "subspace.fit noise": lambda x: subspace.fit(x.numpy(), noise=x[0]),
    "subspace.fit_batch": lambda x: subspace.fit_batch(x[None]),
    "subspace.principal_angles": lambda x: subspace.principal_angles(x.T, x.T),
    "subspace.project": lambda x: subspace.project(x, np.eye(4)[:, :1]),
    "subspace.project basis": lambda x: subspace.project(x.numpy(), x),
    "subspace.thin_svd": lambda x: subspace.thin_svd(x),
    "subspace.thin_qr": lambda x: subspace.thin_qr(x.T),
    "metrics.mexa": lambda x: metrics.mexa(x, x),
    "metrics.mexa other": lambda x: metrics.mexa(x.numpy(), x),
    "metrics.mexa_layers": lambda x: metrics.mexa_layers(x[None], x[None]),
    "metrics.separability": lambda x: metrics.separability({"a": x, "b": x}),
    "neurons.Counts": lambda x: neurons.Counts(4).update(x),
    "neurons.lape": lambda x: neurons.lape((x > 0).long(), [2, 2, 2]),
    "neurons.lape tokens": lambda x: neurons.lape((x > 0).long().numpy(), x[:, 0].long()),
    "weights.delta": lambda x: weights.delta(x),
    "weights.delta b": lambda x: weights.delta(x.numpy(), x),
    "weights.histogram": lambda x: weights.histogram(x),
    "weights.combine": lambda x: weights.combine([x], [1]),
    "weights.compare": lambda x: weights.compare((x, None), (x, None)),
    "weights.sum_of_squares": lambda x: weights.sum_of_squares(x),
    "weights.count_nonfinite": lambda x: weights.count_nonfinite(x),
    "weights.importance": lambda x: weights.importance(x),
    "weights.topk_masks": lambda x: weights.topk_masks({"a": x}, k=1),
    "weights.TopK": lambda x: weights.TopK(1).add("a", x),
    "losses.separate h0": lambda x: losses.separate(x.numpy(), x, np.eye(4)[:, :1], np.zeros(1)),
    "resample.gram": lambda x: resample.gram({"a": x, "b": x}),
    "resample.gram_batch": lambda x: resample.gram_batch(x[None, None]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_functions_refuse_tensors_elsewhere(name):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with (
        elsewhere(),
        pytest.raises(InputError, match=r"expected 'cpu'; move it to the CPU with \.cpu"),
    ):
        REFUSED[name](x)


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_shapes_on_the_meta_device(dtype):
    kind = {"dtype": getattr(torch, dtype), "device": "meta"}
    x, h, m = torch.empty(2, 3, 8, **kind), torch.empty(5, 8, **kind), np.eye(8)[:, :2]
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    for mode in ("last", "mean", "weighted"):
        pooled = pooling.pool(x, mask, mode=mode)
        assert pooled.is_meta and pooled.shape == (2, 8) and pooled.dtype == torch.float64
    for result, like in (
        (losses.separate(h, h, m, np.zeros(2)), h),
        (losses.align(h, h, basis=m), h),
        (losses.align(h, h, direction=np.ones(8), two_sided=True), h),
        (losses.retain(x, x, mask), x),
        (losses.retain(x, x, mask, form="token_mean"), x),
    ):
        assert result.grad.is_meta and result.grad.dtype == kind["dtype"]
        assert result.grad.shape == like.shape and result.value.shape == ()


BAD = {
    "rank": lambda x: pooling.pool(x, np.ones((3, 4), int)),
    "mask shape": lambda x: pooling.pool(x[None], np.ones((1, 2), int)),
    "mask dtype": lambda x: pooling.pool(x[None], np.ones((1, 3))),
    "mask value": lambda x: pooling.pool(x[None], np.full((1, 3), 2)),
    "no token": lambda x: pooling.pool(x[None], np.zeros((1, 3), int)),
    "mode": lambda x: pooling.pool(x[None], np.ones((1, 3), int), mode="first"),
    "neither": lambda x: losses.align(x, x),
    "zero": lambda x: losses.align(x, x, direction=np.zeros(4)),
    "skew": lambda x: losses.align(x, x, basis=np.ones((4, 2))),
    "target": lambda x: losses.separate(x, x, np.eye(4)[:, :2], np.zeros(3)),
    "basis": lambda x: losses.separate(x, x, np.eye(3)[:, :2], np.zeros(2)),
    "nan state": lambda x: losses.separate(x * np.nan, x, np.eye(4)[:, :2], np.zeros(2)),
    "form": lambda x: losses.retain(x[None], x[None], np.ones((1, 3), int), form="x"),
    "all masked": lambda x: losses.retain(x[None], x[None], np.zeros((1, 3), int)),
    "width": lambda x: pooling.StreamingMoments(3).update(x, 0),
    "nan row": lambda x: pooling.StreamingMoments(4).update(x * np.nan, 0),
    "states dtype": lambda x: pooling.pool(x[None].int(), np.ones((1, 3), int)),
    "said dtype": lambda x: pooling.pool(x[None], np.ones((1, 3), int), dtype="float16"),
    "shapes": lambda x: losses.separate(x, x[:1], np.eye(4)[:, :2], np.zeros(2)),
    "dtypes": lambda x: losses.separate(x, x.double(), np.eye(4)[:, :2], np.zeros(2)),
    "row weights": lambda x: losses.align(x, x, direction=np.ones(4), weights=[1.0]),
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
    high, low = torch_ops.fold((x, torch.zeros_like(x)))
    exact = x.double().sum(0)
    size = x.double().abs().sum(0)
    assert ((high.double() + low.double() - exact).abs() <= 2.0**-44 * size).all()
    assert ((x.sum(0).double() - exact).abs() > 2.0**-44 * size).any()
    p, e = torch_ops.two_product(x, x.roll(1, 0))
    assert torch.equal(p.double() + e.double(), x.double() * x.roll(1, 0).double())


# ---- losses ------------------------------------------------------------------------------------


def terms(rng, dtype, B, d, t=4):
    """Every loss as (name, function of the states, states); row 0 has weight 0 and holds NaN."""
    h, o = normal(rng, (B, d), dtype), normal(rng, (B, d), dtype)
    H, O = normal(rng, (B, t, d), dtype), normal(rng, (B, t, d), dtype)  # noqa: E741
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
    for call in [lambda f=f, y=y: f(y).grad for _, f, y in terms(rng, "float32", 4, 33)]:
        with elsewhere():
            plain = call()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(call(), plain, rtol=0, atol=0, equal_nan=True)


def test_inputs_stay_as_they_are():
    rng = np.random.default_rng(4)
    h, o = normal(rng, (6, 20), "float32"), normal(rng, (6, 20), "float32")
    before, mask = (h.clone(), o.clone()), np.ones((1, 6), int)
    calls = (
        lambda: pooling.pool(h[None], mask, mode="weighted"),
        lambda: losses.align(h, o, basis=np.eye(20)[:, :2]),
        lambda: losses.separate(h, o, np.eye(20)[:, :2], np.ones(2)),
        lambda: losses.retain(h[None], o[None], mask),
        lambda: pooling.StreamingMoments(20).update(h, 0),
    )
    for call in calls:
        with elsewhere():
            call()
    assert torch.equal(h, before[0]) and torch.equal(o, before[1])
