"""Losses with their gradients at B = 64, d = 4096, r = 6, against torch autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lens import losses
from tests.bench.common import Row, side_by_side

ROWS, WIDTH, RANK = 64, 4096, 6


def _expressions(
    h: Tensor, other: Tensor, basis: Tensor, target: Tensor, u: Tensor, mask: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """The same losses as one would write them in torch; states with a batch of one for retain."""
    d = WIDTH

    def complement() -> Tensor:
        x = h - other
        return (x - x @ basis @ basis.T).square().sum() / (ROWS * d)

    return {
        "separate": lambda: ((h - other) @ basis - target).square().sum() / (ROWS * d),
        "align, mean": lambda: ((other - h) @ u).square().sum() / (ROWS * d),
        "align, complement": complement,
        "retain": lambda: (mask[:, None] * (h - other)).square().sum() / (mask.sum() * d),
    }


def _autograd(expression: Callable[[], Tensor], h: Tensor) -> Tensor:
    return torch.autograd.grad(expression(), h)[0]


def run() -> Iterator[Row]:
    """Yield a row for each loss, dtype and number of threads."""
    rng = np.random.default_rng(0)
    draw = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    basis64 = np.linalg.qr(rng.normal(size=(WIDTH, RANK)))[0]
    basis32 = np.asfortranarray(basis64, dtype=np.float32)  # as lens.subspace.fit gives it
    u64 = basis64[:, 0].copy()
    step = rng.normal(size=RANK)
    mask = np.ones((1, ROWS), np.int64)
    before = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16):
        h, other = (torch.from_numpy(x).to(dtype) for x in draw)
        leaf = h.clone().requires_grad_(True)
        given = (torch.from_numpy(x).to(dtype) for x in (basis64, step, u64))
        rivals = _expressions(leaf, other, *given, torch.ones(ROWS, dtype=dtype))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ours = {
                "separate": lambda n=threads, h=h, o=other: losses.separate(
                    h, o, basis32, step, n_threads=n
                ),
                "align, mean": lambda n=threads, h=h, o=other: losses.align(
                    h, o, direction=u64, n_threads=n
                ),
                "align, complement": lambda n=threads, h=h, o=other: losses.align(
                    h, o, basis=basis32, n_threads=n
                ),
                "retain": lambda n=threads, h=h, o=other: losses.retain(
                    h[None], o[None], mask, n_threads=n
                ),
            }
            for name, action in ours.items():
                expression = rivals[name]
                _check(name, action().value, float(expression().detach()), dtype)
                mine, theirs = side_by_side(
                    action, lambda e=expression, x=leaf: _autograd(e, x), turns=5, each=25
                )
                kind = str(dtype).removeprefix("torch.")
                yield Row(
                    f"{name}, B={ROWS}, d={WIDTH}, r={RANK}, {kind}",
                    f"torch autograd, {threads} thread{'s' * (threads > 1)} each",
                    theirs / mine,
                    ">= 5",
                    f"{mine * 1e6:.0f} us against {theirs * 1e6:.0f} us",
                )
    torch.set_num_threads(before)


def _check(name: str, mine: float, theirs: float, dtype: torch.dtype) -> None:
    if abs(mine - theirs) > (0.05 if dtype is torch.bfloat16 else 1e-4) * abs(theirs):
        raise RuntimeError(f"{name}: {mine} against {theirs} by torch")
