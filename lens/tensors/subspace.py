"""`lens.subspace` for tensors on other devices.

Only matrices of d x L are ever on the device; singular values and the mean come to the host, where
the rank is chosen. Means that make trouble (linearly dependent, not finite, an agnostic direction
of zero) are given to the C core as a copy, whose messages name the languages.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lens import subspace as core
from lens.arrays import Array, host
from lens.errors import InputError, ShapeError
from lens.subspace import (
    Rank,
    SubspaceResult,
    ThinQr,
    ThinSvd,
    check_columns,
    check_options,
    check_rank,
    choose_rank,
    rounding_floor,
)
from lens.tensors.checks import accumulator, has_float64, matmul, refuse, small, tensor, wide

_GRAM_LIMIT = 64.0  # condition up to which the Gram matrix is right to 1e-12, as in the C core


def fit(
    means: Tensor,
    *,
    rank: Rank = "auto",
    languages: Sequence[str] | None = None,
    agnostic: Literal["mean", "complement"] = "mean",
    noise: Any = None,
) -> SubspaceResult:
    """Split the means of several languages: `lens.subspace.fit`."""
    x = tensor(means, "means", ndim=2)
    noises = None if noise is None else _host64(noise, "noise", (len(x),), x)[None]
    return fit_batch(x[None], rank=rank, languages=languages, agnostic=agnostic, noise=noises)[0]


def fit_batch(
    means: Tensor,
    *,
    rank: Rank = "auto",
    languages: Sequence[str] | None = None,
    agnostic: Literal["mean", "complement"] = "mean",
    noise: Any = None,
    n_threads: int | None = None,
) -> tuple[SubspaceResult, ...]:
    """Fit several sites at once: `lens.subspace.fit_batch`."""
    x = tensor(means, "means", ndim=3)
    S, L, d = x.shape
    check_options(L, d, rank, languages, agnostic)
    noises = None if noise is None else _host64(noise, "noise", (S, L), x)
    if noises is not None and (noises < 0).any():
        raise InputError("noise: holds negative values, expected variances")
    results = []
    if has_float64(x.device.type) and bool(x.isfinite().all()):
        for s in range(S):
            level = None if noises is None else float(noises[s].mean())
            found = _fit_site(x[s].double(), rank, level, agnostic == "mean")
            if found is None:
                break
            results.append(found)
    if len(results) < S:
        copy = np.asarray(host(x.cpu().double()))
        fitted = core.fit_batch(
            copy, rank=rank, languages=languages, agnostic=agnostic, noise=noises
        )
        results = [_to_device(one, x) for one in fitted]
    return tuple(results)


def _host64(x: Any, name: str, shape: tuple[int | None, ...], like: Tensor) -> Array:
    beside = like.new_empty(0, device="cpu")  # on the host, whatever the device
    return host(small(x, name, like=beside, shape=shape, dtype=torch.float64))


def _to_device(result: SubspaceResult, like: Tensor) -> SubspaceResult:
    def move(x: Array) -> Any:
        return torch.from_numpy(np.array(x)).to(wide(like)).to(like.device)

    return SubspaceResult(
        move(result.basis), move(result.agnostic), move(result.singular_values), move(result.mean),
        result.rank, result.rank_reason,
    )  # fmt: skip


def _fit_site(
    means: Tensor, rank: Rank, noise: float | None, along_mean: bool
) -> SubspaceResult | None:
    """Fit one site; None where the C core must say what is wrong."""
    L, d = means.shape
    mean = means.mean(0)
    vectors, sigma = _factors(means - mean)
    values = host(sigma)
    if not values[-1] > rounding_floor(values, host(mean), L, d):
        return None
    r, reason = choose_rank(rank, values, noise, L)
    rows = vectors[:r]
    m_a = mean
    for _ in range(2):  # twice: orthogonal to rounding
        m_a = m_a - (rows @ m_a) @ rows
    size = means.square().sum(1).max().sqrt()
    if along_mean and not bool(m_a.norm() > 1e-9 * size):
        return None
    return SubspaceResult(rows.T, m_a, sigma, mean, r, reason)  # type: ignore[arg-type]


def _factors(C: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors (L-1, d) and singular values of centred means (L, d)."""
    w, V = torch.linalg.eigh(C @ C.T)
    if bool((w[1] * _GRAM_LIMIT**2 >= w[-1]) & (w[-1] > 1e-280)):
        sigma = w[1:].flip(0).sqrt()
        vectors = (V[:, 1:].flip(1) / sigma).T @ C
    else:
        Q, R = torch.linalg.qr(C.T)
        U, values, _ = torch.linalg.svd(R)
        vectors, sigma = (Q @ U[:, :-1]).T, values[:-1]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors), sigma


def principal_angles(A: Tensor, B: Any) -> Tensor:
    """Angles between two subspaces: `lens.subspace.principal_angles`."""
    a = tensor(A, "A", ndim=2)
    if 0 in a.shape:
        raise ShapeError(f"A: shape {tuple(a.shape)}, expected (d, a) with at least one column")
    if not has_float64(a.device.type):
        sides = (_host64(x, name, (None, None), a) for x, name in ((A, "A"), (B, "B")))
        return torch.from_numpy(core.principal_angles(*sides)).float().to(a.device)
    b = small(B, "B", like=a, shape=(len(a), None), dtype=torch.float64)
    a = small(A, "A", like=a, shape=(len(a), None), dtype=torch.float64)
    for name, x in (("A", a), ("B", b)):
        if not 1 <= x.shape[1] <= len(x):
            raise ShapeError(f"{name}: shape {tuple(x.shape)}, expected 1 to {len(x)} columns")
    qa, qb = sorted((_orthonormal(a), _orthonormal(b)), key=lambda q: -q.shape[1])
    C = qa.T @ qb
    cosine = torch.linalg.svdvals(C).clamp(max=1.0)
    sine = torch.linalg.svdvals(qb - qa @ C).flip(0).clamp(max=1.0)
    return torch.where(cosine.square() >= 0.5, sine.asin(), cosine.acos())


def _orthonormal(x: Tensor) -> Tensor:
    Q: Tensor
    Q, R = torch.linalg.qr(x)
    floor = x.abs().max() * len(x) * 2.3e-16
    refuse(R.diagonal().abs() <= floor, "the columns are linearly dependent", "column")
    return Q


def thin_svd(X: Tensor, *, rank: int | None = None) -> ThinSvd:
    """Singular values and vectors of a matrix: `lens.subspace.thin_svd`."""
    x = tensor(X, "X", ndim=2)
    check_rank(x.shape[0], x.shape[1], rank)
    if not has_float64(x.device.type):
        found = core.thin_svd(_host64(X, "X", (None, None), x), rank=rank)
        return ThinSvd(*(_narrow(y, x) for y in (found.left, found.singular_values, found.right)))
    x = small(X, "X", like=x, shape=(None, None), dtype=torch.float64)
    U, values, V = torch.linalg.svd(x, full_matrices=False)
    largest = V.gather(1, V.abs().argmax(1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(V)
    left, right = (U * signs.T)[:, :rank], (V * signs)[:rank].T
    return ThinSvd(left, values[:rank], right)


def thin_qr(X: Tensor) -> ThinQr:
    """Orthonormal columns for those of a matrix: `lens.subspace.thin_qr`."""
    x = tensor(X, "X", ndim=2)
    check_columns(x.shape[0], x.shape[1])
    if not has_float64(x.device.type):
        found = core.thin_qr(_host64(X, "X", (None, None), x))
        return ThinQr(_narrow(found.Q, x), _narrow(found.R, x))
    x = small(X, "X", like=x, shape=(None, None), dtype=torch.float64)
    Q, R = torch.linalg.qr(x)
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(R)
    return ThinQr(Q * signs, R * signs[:, None])


def _narrow(x: Any, like: Tensor) -> Any:
    """Move an array of the core to a device without float64."""
    return torch.from_numpy(np.array(x)).float().to(like.device)


def project(
    X: Tensor,
    basis: Any,
    *,
    strength: float = 1.0,
    n_threads: int = 1,
    dtype: str | None = None,
) -> Tensor:
    """Move states out of a subspace, or further into it: `lens.subspace.project`."""
    x = tensor(X, "X", dtype=dtype)
    if x.ndim < 1:
        raise ShapeError("X: a scalar, expected (..., d)")
    if isinstance(strength, bool | Tensor) or not np.isfinite(strength):
        raise InputError(f"strength: got {strength!r}, expected a finite number")
    m = small(basis, "basis", like=x, shape=(x.shape[-1], None), dtype=accumulator(x))
    if strength == 0:  # the identity to the last bit, signed zeros too
        return x.clone()
    y = x.to(accumulator(x))
    out: Tensor = (y - strength * matmul(matmul(y, m), m.T)).to(x.dtype)
    return out
