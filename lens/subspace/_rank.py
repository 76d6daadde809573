"""Check what a fit is asked for, and choose its rank from singular values."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lens.arrays import Float64
from lens.errors import InputError, ShapeError

Rank = Literal["auto", "full"] | int
_SHARE = 0.95  # of the noise-corrected variance between languages, for rank="auto"


def check_options(
    L: int, d: int, rank: Rank, languages: Sequence[str] | None, agnostic: str
) -> list[str]:
    """Refuse what does not fit L means of width d; return the languages' names."""
    names = _check_names(languages, L)
    if L < 2 or L > d:
        raise InputError(
            f"means: {L} language{'s' if L != 1 else ''} of width {d}, expected at least 2 "
            "languages and no more of them than dimensions"
        )
    _check_rank(rank, L)
    if agnostic not in ("mean", "complement"):
        raise InputError(f"agnostic: got {agnostic!r}, expected 'mean' or 'complement'")
    return names


def _check_names(languages: Sequence[str] | None, L: int) -> list[str]:
    if languages is None:
        return [f"language {i}" for i in range(L)]
    names = list(languages)
    if len(names) != L:
        raise ShapeError(f"languages: {len(names)} names, expected {L} as means has rows")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"languages: {', '.join(twice)} given more than once; expected every language once"
        )
    return names


def _check_rank(rank: Rank, L: int) -> None:
    if rank in ("auto", "full"):
        return
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank < L:
        raise InputError(
            f"rank: got {rank!r}, expected 'auto', 'full' or an integer from 1 to {L - 1} "
            f"(one less than the {L} languages)"
        )


def rounding_floor(sigma: Float64, mean: Float64, L: int, d: int) -> float:
    """Singular values at or below this are rounding errors of means of this size."""
    scale = float(sigma[0]) + float(np.linalg.norm(mean))
    return scale * max(L, d) * float(np.finfo(np.float64).eps)


def choose_rank(rank: Rank, sigma: Float64, noise: float | None, L: int) -> tuple[int, str]:
    """Return the rank for given singular values, and why."""
    if rank == "full":
        return L - 1, f"full: L-1 = {L - 1} of {L} languages"
    if rank != "auto":
        return int(rank), f"given: {int(rank)}"
    most = max(1, L - 2)
    signal = np.maximum(sigma**2 - (noise or 0.0), 0.0)
    total = float(signal.sum())
    if total == 0.0:
        return 1, "auto: 1, as no variance between languages exceeds the noise of the means"
    share = np.cumsum(signal) / total
    needed = int(np.searchsorted(share, _SHARE - 1e-12)) + 1
    r = min(needed, most)
    what = "variance between languages" + ("" if noise is None else " after noise correction")
    text = f"auto: {r} of {L - 1} directions hold {100 * share[r - 1]:.1f} % of the {what}"
    if needed > most:
        return r, f"{text} (95 % would need {needed}, but at most L-2 = {most} are taken)"
    return r, f"{text} (goal 95 %)"
