"""The tokens of a prompt that a loss term looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.lsm.config import Positions


def gather(states: Tensor, lengths: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """States at the chosen positions of right-padded rows.

    Parameters
    ----------
    states : Tensor
        Shape (n, t, d).
    lengths : Tensor
        Real tokens of each row, shape (n,).
    positions : "last", "all", "mean" or int
        The last real token; every token, in order; the mean over tokens; or the last k, the last
        one first, so that column j is the j-th token from the end in every row.

    Returns
    -------
    values : Tensor
        Shape (n, p, d).
    mask : Tensor
        1 where a row has such a token, else 0; shape (n, p), float32.
    """
    n, t, _ = states.shape
    row = torch.arange(n, device=states.device)
    steps = torch.arange(t, device=states.device)
    if positions == "last":
        return states[row, lengths - 1][:, None], torch.ones(n, 1, device=states.device)
    if positions == "all":
        return states, (steps < lengths[:, None]).float()
    if positions == "mean":
        real = (steps < lengths[:, None]).to(states.dtype)[..., None]
        mean = (states * real).sum(1) / lengths[:, None].to(states.dtype)
        return mean[:, None], torch.ones(n, 1, device=states.device)
    at = lengths[:, None] - 1 - torch.arange(positions, device=states.device)
    return states[row[:, None], at.clamp_min(0)], (at >= 0).float()


def token_mask(lengths: Tensor, width: int, positions: Positions) -> Tensor:
    """1 at the chosen real tokens of right-padded rows of ``width``; shape (n, width), float32."""
    steps = torch.arange(width, device=lengths.device)
    real = steps < lengths[:, None]
    if positions == "all":
        return real.float()
    k = 1 if positions == "last" else int(positions)
    return (real & (steps >= lengths[:, None] - k)).float()
