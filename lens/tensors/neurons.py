"""`lens.neurons` for tensors on other devices: open gates, and choosing by entropy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lens import neurons as core
from lens.arrays import host
from lens.errors import DtypeError, InputError, ShapeError
from lens.neurons import LapeResult
from lens.tensors.checks import first, has_float64, mask01, refuse


def count(x: Tensor, mask: Any) -> tuple[int, NDArray[np.uint64]]:
    """Count the real tokens of a batch, and on how many of them each gate is above zero.

    Parameters
    ----------
    x : Tensor (t, neurons) or (n, t, neurons)
        Values of the gates.
    mask : array (t,) or (n, t), bool or integer, or None
        1 for a real token.

    Returns
    -------
    tuple of int and numpy.ndarray (neurons,), uint64
        On the host, where `lens.neurons.Counts` adds them up.
    """
    rows = x.reshape(-1, x.shape[-1])
    keep = torch.ones(len(rows), dtype=torch.bool, device=x.device)
    if mask is not None:
        keep = mask01(mask, "mask", like=x, shape=x.shape[:-1]).reshape(-1)
    refuse(rows.isnan() & keep[:, None], "gates: NaN", "token", "neuron")
    positive = ((rows > 0) & keep[:, None]).sum(0)
    return int(keep.sum()), host(positive).astype(np.uint64)


def lape(
    counts: Tensor | Sequence[Tensor],
    tokens: Any,
    *,
    quantile: float = 0.95,
    share: float = 0.01,
) -> LapeResult:
    """Choose the neurons that are open on few languages only: `lens.neurons.lape`."""
    if not isinstance(counts, Tensor):  # one of each language
        counts = torch.stack(tuple(counts))
    if not has_float64(counts.device.type):  # few numbers, once: the C core's float64
        on_host = core.lape(host(counts), host(tokens), quantile=quantile, share=share)
        return _to_device(on_host, counts.device)
    c, n = _whole(counts, "counts", counts), _whole(tokens, "tokens", counts)
    if c.ndim < 2 or c.numel() == 0:
        raise ShapeError(
            f"counts: shape {tuple(c.shape)}, expected (languages, ..., neurons), not empty"
        )
    if n.shape != c.shape[:1]:
        raise ShapeError(f"tokens: shape {tuple(n.shape)}, expected {tuple(c.shape[:1])}")
    for name, value in (("quantile", quantile), ("share", share)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}: got {value!r}, expected a number from 0 to 1")
    flat = c.reshape(len(c), -1)
    refuse(n == 0, "tokens: none were seen", "language")
    refuse(flat > n[:, None], "counts: more than there are tokens", "language", "neuron")
    p = flat.double() / n.double()[:, None]
    rank, keep = max(1, round(quantile * p.numel())), round(share * p.shape[1])
    tau = p.reshape(-1).kthvalue(rank).values
    open_somewhere = (p > tau).any(0)
    entropy = torch.where(open_somewhere, _entropy(p), torch.inf)
    chosen = torch.zeros_like(open_somewhere)
    chosen[entropy.sort(stable=True).indices[:keep]] = True  # equal entropies: the first goes first
    members = (p > tau) & chosen & open_somewhere
    return LapeResult(
        float(tau), p.reshape(c.shape), entropy.reshape(c.shape[1:]), members.reshape(c.shape)  # type: ignore[arg-type]
    )  # fmt: skip


def _entropy(p: Tensor) -> Tensor:
    """-sum q ln q over languages with q = p / sum p, added up in the languages' order."""
    total, out = torch.zeros_like(p[0]), torch.zeros_like(p[0])
    for row in p:
        total = total + row
    for row in p:
        q = row / total
        out = out + torch.where(q > 0, q * q.log(), 0.0)
    return torch.where(total > 0, 0.0 - out, torch.inf)


def _whole(x: Tensor | Sequence[int], name: str, like: Tensor) -> Tensor:
    data = torch.as_tensor(x)
    if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise DtypeError(f"{name}: dtype {data.dtype}, expected whole numbers")
    data = data.to(device=like.device, dtype=torch.int64)
    where = first(data < 0)
    if where is not None:
        raise InputError(f"{name}: holds {int(data[where])}, expected no negative number")
    return data


def _to_device(result: LapeResult, device: torch.device) -> LapeResult:
    p, entropy, members = (
        torch.from_numpy(np.ascontiguousarray(x))
        for x in (result.probability, result.entropy, result.members)
    )
    return LapeResult(
        result.threshold, p.float().to(device), entropy.float().to(device), members.to(device)  # type: ignore[arg-type]
    )  # fmt: skip
