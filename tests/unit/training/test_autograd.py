"""The kernels' losses inside autograd, against their formulas in plain torch."""

import pytest
import torch

from lens import arrays
from lens.training import losses


def _states(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_separate(h, h0, basis, target, weights):
    miss = (h - h0) @ basis - target
    return (weights * miss.square().sum(-1)).sum() / h.shape[1]


def plain_align(h, pivot, *, direction=None, basis=None, weights):
    gap = h - pivot
    if direction is not None:
        gap = (gap @ direction / direction.norm())[:, None]
    else:
        gap = gap - (gap @ basis) @ basis.T
    return (weights * gap.square().sum(-1)).sum() / h.shape[1]


def plain_retain(h, h0, mask, *, form):
    diff = (h - h0) * mask[..., None]
    if form == "token":
        return diff.square().sum() / (mask.sum() * h.shape[-1])
    return (diff.sum(1) / mask.sum(1, keepdim=True)).square().mean()


@pytest.fixture(params=[False, True], ids=["core", "torch"])
def room(request, monkeypatch):
    """Run a test with the C core, and with what tensors on another device would take."""
    if request.param:
        monkeypatch.setattr(arrays, "_is_far", lambda tensor: True)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_separate_is_its_formula_with_its_gradient(scale):
    basis = torch.linalg.qr(_states(12, 3, seed=1)).Q
    h0, target, weights = _states(5, 12, seed=2), _states(5, 3, seed=3), torch.rand(5)
    a, b = (_states(5, 12, seed=4).requires_grad_() for _ in range(2))
    mine = scale * losses.separate(a, h0, basis, target, weights)
    plain = scale * plain_separate(b, h0, basis, target, weights)
    mine.backward()
    plain.backward()
    torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("form", ["mean", "complement"])
@pytest.mark.parametrize("two_sided", [False, True])
def test_align_is_its_formula_with_its_gradients(form, two_sided):
    basis = torch.linalg.qr(_states(12, 3, seed=1)).Q
    what = {"direction": _states(12, seed=5)} if form == "mean" else {"basis": basis}
    weights = torch.rand(5)
    grads = []
    for loss in (losses.align, plain_align):
        h = _states(5, 12, seed=4).requires_grad_()
        pivot = _states(5, 12, seed=6).requires_grad_(two_sided)
        loss(h, pivot, weights=weights, **what).backward()
        grads.append((h.grad, pivot.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-5, atol=1e-6)
    if two_sided:
        torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-5, atol=1e-6)
    else:
        assert grads[0][1] is None


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("form", ["token", "token_mean"])
def test_retain_is_its_formula_with_its_gradient(form):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).float()
    h0 = _states(3, 4, 6, seed=7)
    grads = []
    for loss in (losses.retain, plain_retain):
        h = _states(3, 4, 6, seed=8).requires_grad_()
        loss(h, h0, mask, form=form).backward()
        grads.append(h.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)
    assert grads[0][0, 3].abs().max() == 0
