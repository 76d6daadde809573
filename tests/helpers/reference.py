"""A plain NumPy twin of every kernel, in float64 or long double, written for reading.

Nothing here is fast; everything here is the formula.
"""

import numpy as np

# ---- dtypes: float values of raw storage -------------------------------------------------------


def bf16_to_float(bits):
    """float32 value of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float_to_bf16(x):
    """Bits of the nearest bfloat16, ties to even, NaN kept quiet."""
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    nan = (u & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (u >> 16) | 0x40, rounded).astype(np.uint16)


DTYPES = ("float32", "float64", "float16", "bfloat16")
CODES = {name: code for code, name in enumerate(DTYPES)}
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
ACC_EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-23, "bfloat16": 2.0**-23}


def store(x, dtype):
    """x as the storage of a dtype."""
    return float_to_bf16(x) if dtype == "bfloat16" else np.asarray(x).astype(dtype)


def value(x, dtype):
    """float64 value of storage."""
    return (bf16_to_float(x) if dtype == "bfloat16" else x).astype(np.float64)


def raw(dtype):
    """Keyword that says what raw uint16 holds."""
    return {"dtype": "bfloat16"} if dtype == "bfloat16" else {}


# ---- pooling and moments -----------------------------------------------------------------------


def pool(X, mask, mode):
    """(n, t, d), (n, t) -> (n, d)."""
    out = np.empty((X.shape[0], X.shape[2]))
    for i, keep in enumerate(np.asarray(mask, bool)):
        rows = X[i][keep].astype(np.longdouble)
        w = np.arange(1, len(rows) + 1) if mode == "weighted" else np.ones(len(rows))
        out[i] = rows[-1] if mode == "last" else (w[:, None] * rows).sum(0) / w.sum()
    return out


def moments(X):
    """Mean and unbiased variance of each column."""
    x = X.astype(np.longdouble)
    mean = x.mean(0)
    return mean.astype(float), (((x - mean) ** 2).sum(0) / (len(x) - 1)).astype(float)


# ---- subspaces ---------------------------------------------------------------------------------


def published_subspace(means, r):
    """M_s (d, r) and M_a (d, 1) of the released procedure: two full SVDs and a pseudo-inverse."""
    M = means.T
    w = M.mean(axis=1, keepdims=True)
    U, S, Vt = np.linalg.svd(M - w)
    B = w + U[:, :r] @ np.diag(S[:r]) @ Vt[:r]
    x = np.linalg.pinv(B.T) @ np.ones(M.shape[1])
    m_a = (x / (x @ x))[:, None]
    U, S, Vt = np.linalg.svd(B - m_a)
    return U[:, :r], m_a


def published(means, r):
    """Projectors P_s and P_a of the released procedure, for means (L, d)."""
    M_s, m_a = published_subspace(means, r)
    return M_s @ M_s.T, m_a @ m_a.T / (m_a.T @ m_a)


def subspace(means, r):
    """M_s (d, r) and M_a (d,) by one thin SVD of the centred means (L, d)."""
    w = means.mean(0)
    U = np.linalg.svd((means - w).T, full_matrices=False)[0][:, :r]
    return U, w - U @ (U.T @ w)


def thin_svd(X):
    """Left (n, k), values (k,), right (d, k) by one-sided Jacobi in long double, k = min(n, d)."""
    wide = X.shape[0] < X.shape[1]
    A = (X.T if wide else X).astype(np.longdouble)
    V = np.eye(A.shape[1], dtype=np.longdouble)
    for _ in range(40):
        for p in range(len(V)):
            for q in range(p + 1, len(V)):
                c, gap = A[:, p] @ A[:, q], A[:, q] @ A[:, q] - A[:, p] @ A[:, p]
                angle = np.arctan2(2 * c, gap) / 2
                turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
                A[:, [p, q]], V[:, [p, q]] = A[:, [p, q]] @ turn, V[:, [p, q]] @ turn
    values = np.sqrt((A * A).sum(0))
    order = np.argsort(-values, kind="stable")
    left, right = A[:, order] / values[order], V[:, order]
    return (right, values[order], left) if wide else (left, values[order], right)


def thin_qr(X):
    """Q (d, r) and R (r, r) by Gram and Schmidt, twice, in long double."""
    Q, R = X.astype(np.longdouble), np.zeros((X.shape[1],) * 2, np.longdouble)
    for k in range(len(R)):
        for _ in range(2):
            part = Q[:, :k].T @ Q[:, k]
            R[:k, k] += part
            Q[:, k] -= Q[:, :k] @ part
        R[k, k] = np.sqrt(Q[:, k] @ Q[:, k])
        Q[:, k] /= R[k, k]
    return Q, R


def angles(A, B):
    """Principal angles, ascending, by Bjorck and Golub on orthonormal bases."""
    A, B = np.linalg.qr(A)[0], np.linalg.qr(B)[0]
    if A.shape[1] < B.shape[1]:
        A, B = B, A
    C = A.T @ B
    cosine = np.clip(np.linalg.svd(C, compute_uv=False), 0, 1)
    sine = np.clip(np.linalg.svd(B - A @ C, compute_uv=False)[::-1], 0, 1)
    return np.where(cosine**2 >= 0.5, np.arcsin(sine), np.arccos(cosine))


def project(X, basis, strength):
    """X - strength X M_s M_s^T."""
    return X - strength * (X @ basis) @ basis.T


# ---- losses: values only; gradients come from differences and from torch -----------------------


def separate(h, h0, basis, target, weights=None):
    """sum_b w_b |z_b - t_b|^2 / d."""
    w = np.full(len(h), 1 / len(h)) if weights is None else weights
    z = (h - h0) @ basis
    return float((w[:, None] * (z - target) ** 2).sum() / h.shape[1])


def align(h, pivot, direction=None, basis=None, weights=None):
    """Mean form for a direction, complement form for a basis."""
    w = np.full(len(h), 1 / len(h)) if weights is None else weights
    g = h - pivot
    if basis is None:
        g = g @ (direction / np.linalg.norm(direction))[:, None]
    else:
        g = g - g @ basis @ basis.T
    return float((w[:, None] * g**2).sum() / h.shape[1])


def retain(h, h0, mask, form):
    """Every token, or the means over tokens."""
    m = np.asarray(mask, float)[..., None]
    if form == "token":
        return float((m * (h - h0) ** 2).sum() / (m.sum() * h.shape[2]))
    mean = (m * (h - h0)).sum(1) / m.sum(1)
    return float((mean**2).mean())


# ---- neurons and metrics -----------------------------------------------------------------------


def lape(counts, tokens, quantile, share):
    """Threshold, entropy and members of (L, m) counts, one neuron after the other."""
    p = np.array([[int(c) / int(n) for c in row] for row, n in zip(counts, tokens, strict=True)])
    tau = sorted(p.ravel())[max(1, round(quantile * p.size)) - 1]
    entropy = np.full(p.shape[1], np.inf)
    for j, column in enumerate(p.T):
        if column.max() > tau:
            q = column[column > 0] / column.sum()
            entropy[j] = -(q * np.log(q)).sum()
    best = np.argsort(entropy, kind="stable")[: round(share * len(entropy))]
    members = np.zeros(p.shape, bool)
    for j in best:
        members[:, j] = (p[:, j] > tau) & np.isfinite(entropy[j])
    return tau, entropy, members


def lane_products(A, B):
    """A B^T as the lanes add it: 16 sums of the rows' own type over 512 columns, then double."""
    total = np.zeros((len(A), len(B)))
    for c in range(0, A.shape[1], 512):
        fill = ((0, 0), (0, -A[:, c : c + 512].shape[1] % 16))
        x, y = np.pad(A[:, c : c + 512], fill), np.pad(B[:, c : c + 512], fill)
        lane = np.zeros((len(A), len(B), 16), A.dtype)
        for i in range(0, x.shape[1], 16):
            lane += x[:, None, i : i + 16] * y[None, :, i : i + 16]
        for half in (8, 4, 2, 1):
            lane = lane[..., :half] + lane[..., half : 2 * half]
        total += lane[..., 0]
    return total


def strict_places(s):
    """Place of the strict maximum of each row of a square s, its length where that is tied."""
    tied = (s == s.max(1, keepdims=True)).sum(1) > 1
    return np.where(tied, len(s), s.argmax(1))


def mexa(pivot, other):
    """Share of diagonal cosines that are strictly the largest of their row and column."""
    a = pivot / np.linalg.norm(pivot, axis=1, keepdims=True)
    b = other / np.linalg.norm(other, axis=1, keepdims=True)
    s, n = a @ b.T, len(a)
    alone = [
        all(s[i, i] > s[i, k] and s[i, i] > s[k, i] for k in range(n) if k != i) for i in range(n)
    ]
    return float(np.mean(alone))


def separability(states, folds):
    """Accuracy of the nearest mean of the other folds, by row number."""
    right = []
    for truth, x in enumerate(states):
        for i, row in enumerate(x):
            means = [y[np.arange(len(y)) % folds != i % folds].mean(0) for y in states]
            right.append(int(np.argmin([((row - m) ** 2).sum() for m in means])) == truth)
    return float(np.mean(right))


# ---- weights -----------------------------------------------------------------------------------


def delta(a, b, dtype):
    """a - b of storage: float32, or float64 for float64; b None for zeros."""
    acc = np.float64 if dtype == "float64" else np.float32
    x = value(a, dtype).astype(acc)
    return x if b is None else x - value(b, dtype).astype(acc)


def delta_histogram(x):
    """Nonzero |x| by the top 16 of the 31 bits of |float32 x|."""
    size = np.abs(x.astype(np.float32)).ravel()
    return np.bincount(size[size != 0].view(np.uint32) >> 15, minlength=1 << 16)


def topk(deltas, k, keys=np.float32):
    """Masks of the k largest |delta| other than zero, by one stable sort over sorted names."""
    names = sorted(deltas)
    size = np.concatenate([np.abs(deltas[n].astype(keys)).ravel() for n in names])
    order = np.argsort(-size, kind="stable")[:k]
    mask = np.zeros(size.size, bool)
    mask[order[size[order] > 0]] = True
    ends = np.cumsum([deltas[n].size for n in names])[:-1]
    parts = np.split(mask, ends)
    return {n: part.reshape(deltas[n].shape) for n, part in zip(names, parts, strict=True)}


def combine(values, weights, out_dtype):
    """Sum of float64 values in order, rounded once; storage of the output dtype."""
    total = None
    for x, w in zip(values, weights, strict=True):
        if w != 0:
            total = w * x if total is None else total + w * x
    if total is None:
        total = np.zeros_like(values[0])
    if out_dtype != "bfloat16":
        return total.astype(out_dtype)
    near = total.astype(np.float32)  # correct the second rounding where the first met a tie
    bits = near.view(np.uint32).copy()
    tie = (bits & 0xFFFF) == 0x8000
    bits += (tie & (np.abs(total) > np.abs(near))).astype(np.uint32)
    bits -= (tie & (np.abs(total) < np.abs(near))).astype(np.uint32)
    return float_to_bf16(bits.view(np.float32))


# ---- resampling --------------------------------------------------------------------------------


def refit(states, rows, r):
    """Singular values, M_s and M_a of the means of chosen rows of each language."""
    means = np.stack(
        [x[i].astype(np.longdouble).mean(0) for x, i in zip(states, rows, strict=True)]
    )
    centred = (means - means.mean(0)).astype(float)
    basis, m_a = subspace(means.astype(float), r)
    return np.linalg.svd(centred, compute_uv=False)[: len(means) - 1], basis, m_a


def shuffled_spectrum(states, labels):
    """Singular values of the centred means of all rows under other labels."""
    x = np.concatenate(states).astype(np.longdouble)
    means = np.stack([x[labels == a].mean(0) for a in range(labels.max() + 1)])
    return np.linalg.svd((means - means.mean(0)).astype(float), compute_uv=False)[:-1]
