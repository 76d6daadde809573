"""`lens.pooling` for tensors on other devices: pooling, and the moments of a block of rows."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lens.arrays import Float64, host
from lens.errors import InputError
from lens.tensors import pairs
from lens.tensors.checks import first, mask01, refuse, tensor, wide


def pool(
    states: Tensor,
    mask: Any,
    *,
    mode: Literal["last", "mean", "weighted"] = "last",
    n_threads: int | None = None,
    dtype: str | None = None,
) -> Tensor:
    """Pool the states of the real tokens of each row, as `lens.pooling.pool` does.

    Returns
    -------
    Tensor (n, d)
        float64; float32, rounded once from a pair, where the device has no float64.
    """
    if mode not in ("last", "mean", "weighted"):
        raise InputError(f"mode: got {mode!r}, expected one of last, mean, weighted")
    x = tensor(states, "states", ndim=3, dtype=dtype)
    keep = mask01(mask, "mask", like=x, shape=x.shape[:2])
    refuse(~keep.any(1), "mask: no real token", "row")
    if not len(x):
        return x.new_empty((0, x.shape[2]), dtype=wide(x))
    order = keep.cumsum(1)
    if mode == "last":
        last = (keep & (order == order[:, -1:])).to(torch.uint8).argmax(1)
        picked = x[torch.arange(len(x), device=x.device), last]
        refuse(~picked.isfinite().all(-1), "states: NaN or infinite value in the last token", "row")
        return picked.to(wide(x))
    refuse(keep & ~x.isfinite().all(-1), "states: NaN or infinite value", "row", "token")
    # where(), not a product with zero: a masked position may hold NaN or infinity.
    kept = torch.where(keep.unsqueeze(-1), x, 0.0)
    out = _average(kept, keep * order if mode == "weighted" else keep)
    refuse(~out.isfinite().all(-1), "states: the sum overflows", "row")
    return out


def _average(x: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k x_k / sum_k w_k over tokens, for whole weights (n, t)."""
    total = weights.sum(1)[:, None]
    if wide(x) == torch.float64:
        return torch.einsum("nt,ntd->nd", weights.double(), x.double()) / total
    terms = pairs.two_product(x.float(), weights.unsqueeze(-1).float())
    high, low = pairs.fold((terms[0].transpose(0, 1), terms[1].transpose(0, 1)))
    mean = high / total
    rest = pairs.two_product(mean, total.float().expand_as(mean))
    return mean + ((high - rest[0]) - rest[1] + low) / total


def block_moments(X: Tensor, row: int = 0) -> tuple[Float64, Float64]:
    """Mean and sum of squared deviations of the columns of one block of rows.

    Parameters
    ----------
    X : Tensor (n, d)
        At least one row.
    row : int
        Number of the first row in messages.

    Returns
    -------
    tuple of two numpy.ndarray (d,), float64
        On the host, where `lens.pooling.StreamingMoments` merges them in float64 by Chan's formula:
        they are 1/n of what they came from.

    Notes
    -----
    Two passes: the deviations from a rounded mean, then their sums, which correct it.
    """
    where = first(~X.isfinite())
    if where is not None:
        raise InputError(
            f"X: NaN or infinite value in row {row + where[0]}, column {where[1]}; expected finite "
            "numbers"
        )
    centre, sums, squares = _centred_sums(X)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = centre + sums / len(X)
        m2 = np.maximum(squares - sums * (sums / len(X)), 0.0)
    if not np.isfinite(m2).all():
        raise InputError("X: the variance overflows float64; scale the rows")
    return mean, m2


def _centred_sums(X: Tensor) -> tuple[Float64, Float64, Float64]:
    """Return c near the mean, the sum of x - c, and the sum of (x - c)^2."""
    if wide(X) == torch.float64:
        x = X.double()
        c = (x / len(x)).sum(0)
        x = x - c
        return host(c), host(x.sum(0)), host(x.square().sum(0))
    c = (X.float() / len(X)).sum(0)
    high, low = pairs.two_sum(X.float(), -c)
    square = pairs.two_product(high, high)
    sums = pairs.fold((high, low))
    squares = pairs.fold((square[0], square[1] + 2.0 * high * low))
    return host(c).astype(np.float64), to_float64(sums), to_float64(squares)


def to_float64(pair: pairs.Pair) -> Float64:
    """Join a pair on the host."""
    return host(pair[0]).astype(np.float64) + host(pair[1]).astype(np.float64)
