"""Every merge method once more, over whole tensors in memory, as its formula says."""

import math

import numpy as np

from lens.merging.tensors import chunks_of
from lens.merging.worker import uniform

F = np.float32


def linear(tensors, weights, *, normalize=True):
    """Σ w θ / Σ w in float64."""
    total = sum(w * x.astype(np.float64) for x, w in zip(tensors, weights, strict=True))
    return total / (math.fsum(weights) if normalize else 1.0)


def task_arithmetic(base, tensors, weights, scale=1.0):
    """θ_o + λ Σ w (θ − θ_o) in float64."""
    base = base.astype(np.float64)
    return base + scale * sum(w * (x - base) for x, w in zip(tensors, weights, strict=True))


def slerp(a, b, t):
    """Along the great circle, in float64."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    angle = math.acos(np.clip(x @ y / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))
    if abs(math.cos(angle)) > 0.9995:
        return (1 - t) * a.astype(np.float64) + t * b.astype(np.float64)
    ways = math.sin((1 - t) * angle), math.sin(t * angle)
    return ((ways[0] * x + ways[1] * y) / math.sin(angle)).reshape(a.shape)


def stable_rank(sizes, *, descending):
    """Place of each element in a stable sort of the flattened array."""
    order = np.argsort(-sizes if descending else sizes, axis=None, kind="stable")
    rank = np.empty(sizes.size, np.int64)
    rank[order] = np.arange(sizes.size)
    return rank.reshape(sizes.shape)


def drawn(name, model, shape, seed=0):
    """Numbers from 0 to 1 of one model's tensor."""
    parts = [uniform(seed, name, model, cut.number, cut.size) for cut in chunks_of(shape)]
    return np.concatenate(parts).reshape(shape)


def mask(kind, delta, name, model, density, extra):
    """Elements of a difference that stay."""
    n = delta.size
    if density >= 1:
        return np.ones(delta.shape, bool)
    if kind == "largest":
        return stable_rank(np.abs(delta), descending=True) < max(1, int(density * n))
    if kind == "middle":
        bottom = max(0, n - int(density * n) - int(extra * n))
        rank = stable_rank(np.abs(delta), descending=False)
        return (rank >= bottom) & (rank < bottom + int(density * n))
    if kind == "random":
        return drawn(name, model, delta.shape) < density
    rows = np.abs(delta).reshape(-1, delta.shape[-1])
    rank = np.stack([stable_rank(row, descending=False) for row in rows]).astype(F)
    share = rank / F(max(rows.shape[1] - 1, 1))
    stays = F(density - extra) + share.reshape(delta.shape) * F(2) * F(extra)
    return drawn(name, model, delta.shape) < stays


def sparse(kind, elect, base, tensors, weights, densities, *, name, extra=0.0, rescale, normalize):
    """θ_o + Σ w mask (θ − θ_o) in float32, with or without an election of signs."""
    deltas = []
    for i, (x, w, density) in enumerate(zip(tensors, weights, densities, strict=True)):
        delta = x - base
        kept = delta * mask(kind, delta, name, i, density, extra)
        if rescale and np.abs(kept).sum() > 0:
            kept = kept * F(
                np.abs(delta).sum(dtype=np.float64) / np.abs(kept).sum(dtype=np.float64)
            )
        deltas.append(kept * F(w))
    deltas, weights = np.stack(deltas), np.array(weights, F)
    if not elect:
        divisor = weights.sum() if normalize else F(1)
        return base + deltas.sum(0, dtype=F) / divisor
    sign = np.where(deltas.sum(0, dtype=F) >= 0, 1, -1)
    agrees = np.sign(deltas) == sign
    divisor = (weights.reshape(-1, *[1] * base.ndim) * agrees).sum(0, dtype=F)
    mixed = (deltas * agrees).sum(0, dtype=F)
    return base + (mixed / np.where(divisor == 0, F(1), divisor) if normalize else mixed)


def cosine(x, y):
    """Cosine of two flattened arrays in float64, None where one is zero."""
    x, y = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return None if size == 0 else float(x @ y / size)


def maec(base, ability, language, *, k2, gamma, eta):
    """Select and combine over whole models: tensors by name, changes in float32."""
    found = {name: cosine(ability[name], language[name]) for name in base}
    ranked = sorted((c, name) for name, c in found.items() if c is not None)
    chosen = {name for _, name in ranked[: math.floor(k2 * len(ranked) + 0.5)]}
    out = {}
    for name, theta in base.items():
        a, b = ability[name].astype(np.float64), language[name].astype(np.float64)
        if found[name] is None:
            step = gamma * a if np.any(a) else b
        else:
            step = gamma * a + eta * b if name in chosen else b
        out[name] = theta.astype(np.float64) + step
    return out, found, chosen
