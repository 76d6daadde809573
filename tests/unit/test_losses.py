"""The three losses against the formula, finite differences and torch autograd."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import losses
from lens.errors import DtypeError, InputError, ShapeError
from tests.helpers import reference as ref

WIDTHS = [1, 2, 15, 16, 17, 33, 511, 512, 513, 1025]


def states(rng, shape, dtype):
    """Storage of random states, and their exact float64 values."""
    x = ref.store(rng.normal(size=shape), dtype)
    return x, ref.value(x, dtype)


def basis_of(rng, d, r, dtype):
    """An orthonormal basis as the kernel sees it, in float64."""
    q = np.linalg.qr(rng.normal(size=(d, min(r, d))))[0]
    return q if dtype == "float64" else q.astype(np.float32).astype(np.float64)


def close(result, value, grad, dtype, noise=0.0):
    """Value to the accumulator's rounding, gradient to that of its storage; noise of grad."""
    acc, eps = ref.ACC_EPS[dtype], ref.EPS[dtype]
    assert abs(result.value - value) <= 200 * acc * max(abs(value), 1e-3)
    got = ref.value(result.grad, dtype)
    tiny = 2.0**-24 if dtype == "float16" else 0.0
    bound = eps * np.abs(grad) + 200 * acc * max(np.abs(grad).max(), 1e-2) + tiny + noise
    assert (np.abs(got - grad) <= bound).all()


def cases(rng, dtype, B=5, d=33, r=3, t=4):
    """Every term as (name, call of the kernel, call of the formula, states, exact states)."""
    kw = ref.raw(dtype)
    h, hv = states(rng, (B, d), dtype)
    o, ov = states(rng, (B, d), dtype)
    H, Hv = states(rng, (B, t, d), dtype)
    O, Ov = states(rng, (B, t, d), dtype)  # noqa: E741
    M = basis_of(rng, d, r, dtype)
    target = rng.normal(size=(B, M.shape[1])).astype(np.float32).astype(float)
    u = rng.normal(size=d).astype(np.float32).astype(float)
    w = rng.uniform(0.1, 1, B)
    mask = rng.integers(0, 2, (B, t))
    mask[:, rng.integers(t)] = 1
    return [
        ("separate", lambda: losses.separate(h, o, M, target, **kw),
         lambda x: ref.separate(x, ov, M, target), hv),
        ("separate one target", lambda: losses.separate(h, o, M, target[0], weights=w, **kw),
         lambda x: ref.separate(x, ov, M, target[0], w), hv),
        ("align mean", lambda: losses.align(h, o, direction=u, **kw),
         lambda x: ref.align(x, ov, direction=u), hv),
        ("align complement", lambda: losses.align(h, o, basis=M, weights=w, **kw),
         lambda x: ref.align(x, ov, basis=M, weights=w), hv),
        ("retain token", lambda: losses.retain(H, O, mask, **kw),
         lambda x: ref.retain(x, Ov, mask, "token"), Hv),
        ("retain mean", lambda: losses.retain(H, O, mask, form="token_mean", **kw),
         lambda x: ref.retain(x, Ov, mask, "token_mean"), Hv),
    ]  # fmt: skip


def central(function, x, step=1e-3):
    """Central differences; exact but for rounding, as every term is quadratic."""
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        grad[i] = (function(up) - function(down)) / (2 * step)
    return grad


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("d", [1, 17, 33])
def test_value_and_gradient_against_central_differences(dtype, d):
    for name, kernel, formula, x in cases(np.random.default_rng(d), dtype, d=d):
        result = kernel()
        try:
            close(result, formula(x), central(formula, x), dtype, 1e-11)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def torch_terms(torch, x, o, M, target, u, mask, X, O):  # noqa: E741
    """The terms of `cases` in torch, for autograd."""
    d = x.shape[1]
    v = u / u.norm()
    g = (x - o) - ((x - o) @ M) @ M.T
    m = mask[..., None]
    mean = (m * (X - O)).sum(1) / m.sum(1)
    return {
        "separate": (((x - o) @ M - target) ** 2).sum() / (len(x) * d),
        "align mean": (((o - x) @ v) ** 2).sum() / (len(x) * d),
        "align complement": (g**2).sum() / (len(x) * d),
        "retain token": (m * (X - O) ** 2).sum() / (m.sum() * d),
        "retain mean": (mean**2).mean(),
    }


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("d", [2, 16, 513])
def test_against_torch_autograd(dtype, d):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    rng = np.random.default_rng(d)
    kind = getattr(torch, dtype)

    def tensor(x):
        return torch.from_numpy(np.ascontiguousarray(x))

    h, o = (torch.from_numpy(rng.normal(size=(6, d))).to(kind) for _ in range(2))
    H, O = (torch.from_numpy(rng.normal(size=(6, 3, d))).to(kind) for _ in range(2))  # noqa: E741
    M, target, u = basis_of(rng, d, 2, dtype), rng.normal(size=(6, min(2, d))), rng.normal(size=d)
    target, u = (np.asarray(x, np.float32).astype(float) for x in (target, u))
    mask = np.ones((6, 3), int)
    mask[2:, 0] = 0
    x, X = h.double().requires_grad_(), H.double().requires_grad_()
    terms = torch_terms(
        torch, x, o.double(), tensor(M), tensor(target), tensor(u), tensor(mask), X, O.double()
    )
    kernels = {
        "separate": lambda: losses.separate(h, o, M, target),
        "align mean": lambda: losses.align(h, o, direction=u),
        "align complement": lambda: losses.align(h, o, basis=M),
        "retain token": lambda: losses.retain(H, O, mask),
        "retain mean": lambda: losses.retain(H, O, mask, form="token_mean"),
    }
    for name, term in terms.items():
        leaf = X if name.startswith("retain") else x
        (grad,) = torch.autograd.grad(term, leaf, retain_graph=True)
        close(kernels[name](), term.item(), grad.numpy(), dtype)


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_two_sided_gradients_are_opposite(dtype):
    rng = np.random.default_rng(0)
    h, _ = states(rng, (4, 40), dtype)
    p, _ = states(rng, (4, 40), dtype)
    M = basis_of(rng, 40, 3, dtype)
    for form in ({"direction": rng.normal(size=40)}, {"basis": M}):
        result = losses.align(h, p, two_sided=True, **form, **ref.raw(dtype))
        one = losses.align(h, p, **form, **ref.raw(dtype))
        assert one.grad_pivot is None
        assert one.value == result.value
        np.testing.assert_array_equal(one.grad, result.grad)
        np.testing.assert_array_equal(
            ref.value(result.grad_pivot, dtype), -ref.value(result.grad, dtype)
        )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 18), st.sampled_from(WIDTHS), st.integers(1, 4), st.sampled_from(ref.DTYPES),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_shape(B, d, r, dtype, seed):
    rng = np.random.default_rng(seed)
    for name, kernel, formula, x in cases(rng, dtype, B=B, d=d, r=r, t=1 + seed % 3):
        result = kernel()
        expected = formula(x)
        assert abs(result.value - expected) <= 200 * ref.ACC_EPS[dtype] * (expected + 1e-2), name
        assert result.grad.shape == x.shape


def test_weight_zero_removes_a_row_whatever_it_holds():
    rng = np.random.default_rng(1)
    h, o = rng.normal(size=(2, 3, 20)).astype(np.float32)
    M = np.linalg.qr(rng.normal(size=(20, 2)))[0]
    t = rng.normal(size=2)
    bad = h.copy()
    bad[1] = np.nan
    w = np.array([0.5, 0.0, 0.25])
    for call in (
        lambda x, w: losses.separate(x, o, M, t, weights=w),
        lambda x, w: losses.align(x, o, basis=M, weights=w),
        lambda x, w: losses.align(x, o, direction=t[0] + np.arange(20.0), weights=w),
    ):
        result, clean = call(bad, w), call(h, w)
        assert result.value == clean.value
        np.testing.assert_array_equal(result.grad, clean.grad)
        assert not result.grad[1].any()
        assert call(h, np.zeros(3)).value == 0.0


def test_masked_tokens_are_not_read():
    rng = np.random.default_rng(2)
    h, o = rng.normal(size=(2, 3, 5, 20)).astype(np.float32)
    mask = np.ones((3, 5), bool)
    mask[0, 2:] = mask[1, 0] = False
    bad = h.copy()
    bad[~mask] = np.nan
    for form in ("token", "token_mean"):
        result = losses.retain(bad, o, mask, form=form)
        clean = losses.retain(h, o, mask, form=form)
        assert result.value == clean.value
        np.testing.assert_array_equal(result.grad, clean.grad)
        assert not result.grad[~mask].any()


def test_retain_names_the_row_and_token_of_a_nan():
    h = np.zeros((3, 5, 20), np.float32)
    h[2, 1, 7] = np.inf
    with pytest.raises(InputError, match="row 2, token 1"):
        losses.retain(h, np.zeros_like(h), np.ones((3, 5), int))
    with pytest.raises(InputError, match="row 2"):
        losses.retain(h, np.zeros_like(h), np.ones((3, 5), int), form="token_mean")


def test_published_and_corrected_targets_differ_by_the_reference():
    rng = np.random.default_rng(3)
    h, own, pivot = rng.normal(size=(3, 4, 30))
    M = np.linalg.qr(rng.normal(size=(30, 3)))[0]
    step = rng.normal(size=3)
    shift = losses.separate(h, own, M, step)
    absolute = losses.separate(h, own, M, (pivot - own) @ M + step)
    np.testing.assert_allclose(losses.separate(h, pivot, M, step).value, absolute.value, rtol=1e-13)
    assert shift.value != absolute.value


def test_published_align_of_full_rank_means_is_vacuous():
    """With r = L-1 every mean has the same projection on M_a, so the loss between means is 0."""
    means = np.random.default_rng(4).normal(size=(5, 64)) + 3
    _, m_a = ref.subspace(means, 4)
    assert losses.align(means[1:], np.repeat(means[:1], 4, 0), direction=m_a).value < 1e-24


def test_inputs_are_not_modified():
    rng = np.random.default_rng(5)
    arrays = [rng.normal(size=(3, 4, 8)).astype(np.float32) for _ in range(2)]
    flat = [x[:, 0].copy() for x in arrays]
    M, t, mask = np.linalg.qr(rng.normal(size=(8, 2)))[0], np.ones(2), np.ones((3, 4), int)
    everything = [*arrays, *flat, M, t, mask]
    before = [x.copy() for x in everything]
    losses.separate(*flat, M, t)
    losses.align(*flat, basis=M, two_sided=True)
    losses.align(*flat, direction=M[:, 0])
    losses.retain(*arrays, mask)
    losses.retain(*arrays, mask, form="token_mean")
    for x, y in zip(everything, before, strict=True):
        np.testing.assert_array_equal(x, y)


H = np.ones((3, 8), np.float32)
M2 = np.eye(8)[:, :2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.separate(H.tolist(), H, M2, np.zeros(2)), DtypeError, "h: got list"),
        (lambda: losses.separate(H.astype(int), H, M2, np.zeros(2)), DtypeError, "h: dtype int64"),
        (lambda: losses.separate(H, H.astype(float), M2, np.zeros(2)), DtypeError, "h0: float64"),
        (lambda: losses.separate(H, H[:2], M2, np.zeros(2)), ShapeError, r"h0: shape \(2, 8\)"),
        (lambda: losses.separate(H, H, M2[:5], np.zeros(2)), ShapeError, r"expected \(8, r\)"),
        (lambda: losses.separate(H, H, M2, np.zeros(3)), ShapeError, r"target: shape \(3,\)"),
        (lambda: losses.separate(H, H, M2, np.zeros((2, 2))), ShapeError, "target"),
        (lambda: losses.separate(H, H, M2, np.array([0, np.nan])), InputError, "target: NaN"),
        (lambda: losses.separate(H, H, M2 + np.inf, np.zeros(2)), InputError, "basis"),
        (lambda: losses.separate(H * np.nan, H, M2, np.zeros(2)), InputError, "row 0"),
        (lambda: losses.separate(H, H, M2, np.zeros(2), n_threads=0), InputError, "n_threads"),
        (lambda: losses.separate(H[:0], H[:0], M2, np.zeros(2)), ShapeError, "length 0"),
        (lambda: losses.separate(H.T, H.T, M2, np.zeros(2)), DtypeError, "C-contiguous"),
        (lambda: losses.separate(H.view(np.uint16), H, M2, np.zeros(2)), DtypeError, "raw bits"),
        (lambda: losses.align(H, H), InputError, "neither"),
        (lambda: losses.align(H, H, basis=M2, direction=H[0]), InputError, "both"),
        (lambda: losses.align(H, H, direction=np.zeros(8)), InputError, "direction: is zero"),
        (lambda: losses.align(H, H, basis=2 * M2), InputError, "orthonormal"),
        (lambda: losses.align(H, H, basis=M2, weights=np.ones(2)), ShapeError, "weights"),
        (lambda: losses.retain(H[None], H[None], np.zeros((1, 3), int)), InputError, "masked out"),
        (lambda: losses.retain(H[None], H[None], np.full((1, 3), 2)), InputError, "expected 1"),
        (lambda: losses.retain(H[None], H[None], np.ones((1, 3))), DtypeError, "boolean"),
        (lambda: losses.retain(H[None], H[None], np.ones((1, 2), int)), ShapeError, "mask"),
        (lambda: losses.retain(H[None], H[None], H[None, 0] > 0, form="x"), InputError, "form"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_arrays_on_two_devices_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="device 'meta'"):
        losses.separate(torch.empty(3, 8, device="meta"), H, M2, np.zeros(2))
    with pytest.raises(InputError, match="device 'meta'"):
        losses.separate(H, torch.empty(3, 8, device="meta"), M2, np.zeros(2))


def test_result_to_dict():
    result = losses.align(H, 0 * H, direction=np.ones(8))
    assert result.to_dict()["grad"] == result.grad.tolist()
    assert result.to_dict()["grad_pivot"] is None
