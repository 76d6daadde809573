"""The three losses of Lens, each a value and its gradient in one call.

NumPy arrays or CPU torch tensors in, NumPy arrays out. Tensors on another device stay there (see
`lens.torch_ops`), and a value is then a tensor that autograd can differentiate. Gradients have the
dtype and shape of the states; a bfloat16 gradient comes as its raw bits in uint16. Names follow
``docs``: the released code calls ``separate`` "pull" and ``align`` "push", the paper the reverse.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lens import _core
from lens.arrays import (
    Array,
    ArrayIn,
    Block,
    Float64,
    Result,
    anywhere,
    block,
    core_errors,
    float64,
    mask01,
    rows_of,
    same,
    threads,
)
from lens.errors import InputError, ShapeError

__all__ = [
    "AlignResult",
    "LossResult",
    "align",
    "retain",
    "separate",
]


@dataclass(frozen=True, slots=True)
class LossResult(Result):
    """A loss and its gradient.

    Attributes
    ----------
    value : float
        The loss, accumulated in float64.
    grad : numpy.ndarray
        Gradient with respect to h, in its dtype and shape.
    """

    value: float
    grad: Array


@dataclass(frozen=True, slots=True)
class AlignResult(Result):
    """The align loss and its gradients.

    Attributes
    ----------
    value : float
        The loss, accumulated in float64.
    grad : numpy.ndarray
        Gradient with respect to h, in its dtype and shape.
    grad_pivot : numpy.ndarray or None
        Gradient with respect to the pivot's states; None unless ``two_sided``.
    """

    value: float
    grad: Array
    grad_pivot: Array | None


def _pair(
    h: ArrayIn, other: ArrayIn, name: str, ndim: int, dtype: str | None
) -> tuple[Block, Block]:
    a = block(h, "h", ndim=ndim, dtype=dtype)
    if 0 in a.data.shape:
        raise ShapeError(f"h: shape {a.data.shape}, expected no dimension of length 0")
    return a, same(other, a, name, "h", dtype=dtype)


def _weights(weights: ArrayIn, rows: int) -> Float64 | None:
    return None if weights is None else float64(weights, "weights", shape=(rows,))


@anywhere
def separate(
    h: ArrayIn,
    h0: ArrayIn,
    basis: ArrayIn,
    target: ArrayIn,
    *,
    weights: ArrayIn = None,
    n_threads: int = 1,
    dtype: str | None = None,
) -> LossResult:
    """Move states by a given step inside the language subspace.

    Parameters
    ----------
    h : array (B, d), float32, float64, float16 or bfloat16
        States of the trained model.
    h0 : array (B, d), same dtype
        Reference states: the frozen state of the same row (published, "shift") or of the pivot's
        row (ours, "absolute").
    basis : array (d, r), float
        Language subspace M_s; cast to float32, or float64 for float64 states.
    target : array (r,) or (B, r), float
        Step t in the coordinates of the basis.
    weights : array (B,), optional
        Weight of each row, default 1/B. A row of weight 0 is not read.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when h is raw uint16.

    Returns
    -------
    LossResult
        ``value`` and ``grad`` (B, d).

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If a term is not finite; the message names the row.

    Notes
    -----
    With z = (h - h0) M_s: value = sum_b w_b |z_b - t_b|^2 / d and grad_b = 2 w_b M_s (z_b - t_b)/d.
    Products are summed in float32 (float64 for float64 states) over 512 columns and then in
    float64.

    References
    ----------
    Lens, arXiv:2410.04407.

    Examples
    --------
    >>> import numpy as np
    >>> h, basis = np.ones((1, 4)), np.eye(4)[:, :1]
    >>> float(separate(h, 0 * h, basis, np.zeros(1)).value)
    0.25
    """
    a, b = _pair(h, h0, "h0", 2, dtype)
    rows, d = a.data.shape
    directions = rows_of(basis, "basis", d, a.accumulator)
    r = len(directions)
    if np.ndim(target) == 1:
        t = float64(target, "target", shape=(r,))[None, :]
    else:
        t = float64(target, "target", shape=(rows, r))
    w = _weights(weights, rows)
    t = np.ascontiguousarray(t, dtype=a.accumulator)
    grad = np.empty_like(a.data)
    with core_errors(h=a.data, h0=b.data):
        value = _core.separate(grad, a.data, b.data, directions, t, w, a.code, threads(n_threads))
    return LossResult(value, grad)


def _direction(direction: ArrayIn, d: int, dtype: Any) -> Array:
    u = float64(direction, "direction", shape=(d,))
    size = np.abs(u).max()
    if size == 0:
        raise InputError("direction: is zero; expected the agnostic direction M_a, not all zeros")
    u = u / size  # so that squares can neither overflow nor vanish
    return np.ascontiguousarray(u / np.linalg.norm(u), dtype=dtype)


def _orthonormal(basis: ArrayIn, d: int, dtype: Any) -> Array:
    rows = rows_of(basis, "basis", d, dtype)
    error = np.abs(rows @ rows.T - np.eye(len(rows))).max(initial=0.0)
    if error > 1e-4:
        raise InputError(
            f"basis: its columns are orthonormal only to {error:.1e}, expected 1e-4; pass the "
            "basis of lens.subspace.fit, or orthonormalise it with numpy.linalg.qr"
        )
    return rows


@anywhere
def align(
    h: ArrayIn,
    pivot: ArrayIn,
    *,
    direction: ArrayIn = None,
    basis: ArrayIn = None,
    weights: ArrayIn = None,
    two_sided: bool = False,
    n_threads: int = 1,
    dtype: str | None = None,
) -> AlignResult:
    """Bring states of a language to the pivot's in the agnostic part of the space.

    Parameters
    ----------
    h : array (B, d), float32, float64, float16 or bfloat16
        States of the trained model in a language.
    pivot : array (B, d), same dtype
        States of the pivot for the same prompts: frozen (ours), or those of the trained model
        together with ``two_sided=True`` (published).
    direction : array (d,), optional
        Form "mean": the agnostic direction M_a of any length.
    basis : array (d, r), optional
        Form "complement": an orthonormal M_s; everything outside it is agnostic.
        Exactly one of ``direction`` and ``basis`` is given.
    two_sided : bool
        Return the gradient with respect to ``pivot`` too.
    weights, n_threads, dtype
        As in `separate`.

    Returns
    -------
    AlignResult
        ``value``, ``grad`` (B, d) and ``grad_pivot`` (B, d) or None.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If both or neither of ``direction`` and ``basis`` are given, ``direction`` is zero, the
        basis is not orthonormal to 1e-4, or a term is not finite.

    Notes
    -----
    mean: a = (p - h).u with u = M_a/|M_a|; value = sum_b w_b a_b^2 / d, grad_b = -2 w_b a_b u / d.
    complement: g = (I - M_s M_s^T)(h - p); value = sum_b w_b |g_b|^2 / d, grad_b = 2 w_b g_b / d.
    Sums as in `separate`.

    References
    ----------
    Lens, arXiv:2410.04407.
    """
    if (direction is None) == (basis is None):
        given = "neither" if direction is None else "both"
        raise InputError(
            f"align: {given} of direction and basis were given, expected exactly one: direction "
            'for agnostic="mean", basis for agnostic="complement"'
        )
    a, b = _pair(h, pivot, "pivot", 2, dtype)
    rows, d = a.data.shape
    w = _weights(weights, rows)
    grad = np.empty_like(a.data)
    grad_pivot = np.empty_like(a.data) if two_sided else None
    n = threads(n_threads)
    if basis is None:
        u = _direction(direction, d, a.accumulator)
        with core_errors(h=a.data, pivot=b.data):
            value = _core.align_mean(grad, grad_pivot, a.data, b.data, u, w, a.code, n)
    else:
        m = _orthonormal(basis, d, a.accumulator)
        with core_errors(h=a.data, pivot=b.data):
            value = _core.align_complement(grad, grad_pivot, a.data, b.data, m, w, a.code, n)
    return AlignResult(value, grad, grad_pivot)


@anywhere
def retain(
    h: ArrayIn,
    h0: ArrayIn,
    mask: ArrayIn,
    *,
    form: Literal["token", "token_mean"] = "token",
    n_threads: int = 1,
    dtype: str | None = None,
) -> LossResult:
    """Hold the pivot's states where they were.

    Parameters
    ----------
    h : array (B, t, d), float32, float64, float16 or bfloat16
        States of the trained model on prompts in the pivot.
    h0 : array (B, t, d), same dtype
        The same of the frozen model.
    mask : array (B, t), bool or integer
        1 for a real token, 0 for padding, which is not read.
    form : {"token", "token_mean"}
        "token" (ours) compares every token, "token_mean" (published) the means over tokens.
    n_threads, dtype
        As in `separate`.

    Returns
    -------
    LossResult
        ``value`` and ``grad`` (B, t, d), zero where the mask is.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If no token is unmasked (token_mean: in any row), or a term is not finite.

    Notes
    -----
    token: value = sum m |h - h0|^2 / (sum m d), grad = 2 m (h - h0) / (sum m d).
    token_mean: value = sum_b |mean(h_b) - mean(h0_b)|^2 / (B d), grad = 2 m (difference of means) /
    (count_b B d). Sums as in `separate`; means in float64.

    References
    ----------
    Lens, arXiv:2410.04407.
    """
    forms = {"token": _core.retain_token, "token_mean": _core.retain_mean}
    if form not in forms:
        raise InputError(f"form: got {form!r}, expected 'token' or 'token_mean'")
    a, b = _pair(h, h0, "h0", 3, dtype)
    m = mask01(mask, "mask", a.data.shape[:2])
    grad = np.empty_like(a.data)
    with core_errors(h=a.data, h0=b.data, mask=m):
        value = forms[form](grad, a.data, b.data, m, a.code, threads(n_threads))
    return LossResult(value, grad)
