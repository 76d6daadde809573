"""Angles between subspaces, and states moved out of one."""

import numpy as np

from lens import _core
from lens.arrays import (
    Array,
    ArrayIn,
    Float64,
    anywhere,
    block,
    core_errors,
    is_tensor,
    rows_of,
    threads,
)
from lens.errors import InputError, ShapeError


@anywhere
def principal_angles(A: ArrayIn, B: ArrayIn) -> Float64:
    """Angles between two subspaces.

    Parameters
    ----------
    A : array (d, a), float
        Columns span the first subspace; they need not be orthonormal.
    B : array (d, b), float
        Columns span the second.

    Returns
    -------
    numpy.ndarray (min(a, b),), float64
        Radians, ascending, from 0 to pi/2.

    Raises
    ------
    ShapeError
        If the widths differ, or there are no columns, or more columns than rows.
    InputError
        If columns of A or of B are linearly dependent, or a value is not finite.

    Notes
    -----
    Small angles come from sines, large ones from cosines (Björck and Golub, 1973), so that both are
    right to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> principal_angles(np.eye(3)[:, :1], np.eye(3)[:, 1:])
    array([1.57079633])
    """
    shape = np.shape(A)
    if len(shape) != 2 or 0 in shape:
        raise ShapeError(f"A: shape {tuple(shape)}, expected (d, a) with at least one column")
    d = int(shape[0])
    rows_a = rows_of(A, "A", d, np.dtype(np.float64))
    rows_b = rows_of(B, "B", d, np.dtype(np.float64))
    for name, rows in (("A", rows_a), ("B", rows_b)):
        if not 1 <= len(rows) <= d:
            raise ShapeError(f"{name}: shape ({d}, {len(rows)}), expected 1 to {d} columns")
    angles = np.empty(min(len(rows_a), len(rows_b)))
    with core_errors():
        _core.principal_angles(angles, rows_a, rows_b)
    return angles


@anywhere
def project(
    X: ArrayIn,
    basis: ArrayIn,
    *,
    strength: float = 1.0,
    n_threads: int = 1,
    dtype: str | None = None,
) -> Array:
    """Move states out of a subspace, or further into it.

    Parameters
    ----------
    X : array (..., d), float32, float64, float16 or bfloat16
        States.
    basis : array (d, r), float
        Orthonormal M_s; cast to float32, or float64 for float64 states.
    strength : float
        1 removes the part inside the subspace, a negative value adds to it, 0 changes no bit.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when X is raw uint16.

    Returns
    -------
    numpy.ndarray
        X - strength X M_s M_s^T, in the dtype and shape of X (bfloat16 as raw uint16).

    Raises
    ------
    ShapeError, DtypeError, InputError
        If the arrays do not fit together, or strength is not finite.

    References
    ----------
    arXiv:2505.15257.
    """
    x = block(X, "X", dtype=dtype)
    if x.data.ndim < 1:
        raise ShapeError("X: a scalar, expected (..., d)")
    if isinstance(strength, bool) or is_tensor(strength) or not np.isfinite(strength):
        raise InputError(f"strength: got {strength!r}, expected a finite number")
    d = x.data.shape[-1]
    rows = rows_of(basis, "basis", d, x.accumulator)
    n = x.data.size // d if d else 0
    out = np.empty((n, d), dtype=x.data.dtype)
    flat = x.data.reshape(n, d)
    with core_errors():
        _core.project(out, flat, rows, float(strength), x.code, threads(n_threads))
    return out.reshape(x.data.shape)
