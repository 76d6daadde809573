"""`lens.metrics` for tensors on other devices: MEXA and the separability of languages."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lens.arrays import host
from lens.errors import DtypeError, InputError, ShapeError
from lens.metrics import MexaResult, SeparabilityResult, at_least, score_matches
from lens.pooling import StreamingMoments
from lens.tensors.checks import NAMES, accumulator, matmul, refuse, same, tensor

_ROWS = 1024  # rows of cosines that are held at once


def mexa(
    pivot: Tensor,
    other: Tensor,
    *,
    permutations: int = 1000,
    seed: int = 0,
    n_threads: int | None = 1,
    dtype: str | None = None,
) -> MexaResult:
    """Share of sentences nearest to their own translation: `lens.metrics.mexa`."""
    a = tensor(pivot, "pivot", ndim=2, dtype=dtype)
    n, d = a.shape
    if n < 2 or d < 1:
        raise ShapeError(f"pivot: shape {(n, d)}, expected at least 2 rows and 1 column")
    b = same(other, a, "other", "pivot")
    permutations, seed = at_least(permutations, "permutations", 0), at_least(seed, "seed", 0)
    units = _unit(a, "pivot"), _unit(b, "other")
    row_best, column_best = match(*units)
    score, null = score_matches(row_best, column_best, permutations, seed)
    return MexaResult(score, n, null, _variance(b), _variance(a))


def _unit(x: Tensor, name: str) -> Tensor:
    """Rows of length one, scaled by their largest element first, as squares could overflow."""
    y = x.to(accumulator(x))
    refuse(~y.isfinite().all(1), f"{name}: NaN or infinite value; expected finite numbers", "row")
    size = y.abs().amax(1, keepdim=True)
    refuse(size[:, 0] == 0, f"{name}: is zero and has no direction; expected none such", "row")
    y = y / size
    return y / y.square().sum(1, keepdim=True).sqrt()


def _moments(x: Tensor, name: str) -> StreamingMoments:
    moments = StreamingMoments(x.shape[1])
    try:
        moments.update(x, 0)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return moments


def _variance(x: Tensor) -> float:
    return float(_moments(x, "X").result().variance.mean())


def match(A: Tensor, B: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Place of the strictly largest cosine of each row and each column; n where two tie.

    Equal rows are compared once, so that they tie whatever the order of a matrix product's sums.
    """
    n = len(A)
    (a, a_of, a_first), (b, b_of, b_first) = _distinct(A), _distinct(B)
    row = torch.empty(len(a), dtype=torch.int64, device=A.device)
    best = torch.full((len(b),), -torch.inf, dtype=A.dtype, device=A.device)
    column = torch.full((len(b),), n, dtype=torch.int64, device=A.device)
    for start in range(0, len(a), _ROWS):
        cosine = matmul(a[start : start + _ROWS], b.T)
        row[start : start + _ROWS] = _strict(cosine, b_first, n)[1]
        high, at = _strict(cosine.T, a_first[start : start + _ROWS], n)
        column = torch.where(high > best, at, torch.where(high == best, n, column))
        best = torch.maximum(best, high)
    return host(row[a_of]), host(column[b_of])


def _distinct(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct rows, which of them each row is, and where each stood: n if often."""
    rows, of, counts = x.unique(dim=0, return_inverse=True, return_counts=True)
    place = torch.empty(len(rows), dtype=torch.int64, device=x.device)
    place[of] = torch.arange(len(x), device=x.device)
    return rows, of, torch.where(counts > 1, len(x), place)


def _strict(cosine: Tensor, place: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Maximum of each row and its place, n if it occurs twice."""
    high, at = cosine.max(1)
    alone = (cosine == high[:, None]).sum(1) == 1
    return high, torch.where(alone, place[at], n)


def separability(
    states_by_language: Mapping[str, Tensor],
    *,
    folds: int = 5,
    n_threads: int | None = 1,
    dtype: str | None = None,
) -> SeparabilityResult:
    """Held-out accuracy of the nearest mean: `lens.metrics.separability`."""
    states = _states(states_by_language, dtype)
    folds, names = at_least(folds, "folds", 2), tuple(states)
    for name, x in states.items():
        _moments(x, name)  # finite? the message counts rows as the caller does
    confusion = np.zeros((len(states), len(states)), np.int64)
    for fold in range(min(folds, max(len(x) for x in states.values()))):
        means = []
        for name, x in states.items():
            kept = torch.arange(len(x), device=x.device) % folds != fold
            mean = torch.from_numpy(_moments(x[kept], name).result().mean)
            means.append(mean.to(accumulator(x)).to(x.device))
        for truth, (name, x) in enumerate(states.items()):
            label = nearest_mean(x[fold::folds], means, name)
            confusion[truth] += np.bincount(host(label), minlength=len(states))
    total = int(confusion.sum())
    return SeparabilityResult(float(np.trace(confusion) / total), total, names, confusion)


def _states(states: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    if not isinstance(states, Mapping) or len(states) < 2:
        raise InputError("states_by_language: expected a mapping of at least 2 languages to arrays")
    found: dict[str, Tensor] = {}
    for name, x in states.items():
        found[name] = tensor(x, name, ndim=2, dtype=dtype)
        first = next(iter(found.values()))
        n, d = found[name].shape
        if n < 2 or d < 1 or d != first.shape[1]:
            width = "at least 1" if name == next(iter(found)) else first.shape[1]
            raise ShapeError(
                f"{name}: shape {(n, d)}, expected at least 2 rows and {width} columns"
            )
        if x.dtype != first.dtype or x.device != first.device:
            raise DtypeError(
                f"{name}: {NAMES[x.dtype]} on '{x.device}', expected {NAMES[first.dtype]} on "
                f"'{first.device}' as in the first language"
            )
    return found


def nearest_mean(x: Tensor, means: list[Tensor], name: str) -> Tensor:
    """Return the number of the mean nearest to each row; of equal distances, the first."""
    y = x.to(accumulator(x))
    best = torch.full((len(y),), torch.inf, dtype=y.dtype, device=y.device)
    label = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    for i, mean in enumerate(means):
        far = (y - mean).square().sum(1)
        refuse(~far.isfinite(), f"{name}: a squared distance overflows; scale the states down")
        label = torch.where(far < best, i, label)
        best = torch.minimum(best, far)
    return label
