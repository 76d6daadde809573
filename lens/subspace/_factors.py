"""Thin factorisations of one matrix, with signs that are settled."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lens import _core
from lens.arrays import ArrayIn, Float64, anywhere, core_errors, float64, to_dict
from lens.errors import InputError, ShapeError


@dataclass(frozen=True, slots=True)
class ThinSvd:
    """X = left · diag(singular_values) · rightᵀ.

    Attributes
    ----------
    left : numpy.ndarray (n, r)
        Orthonormal columns.
    singular_values : numpy.ndarray (r,)
        Descending.
    right : numpy.ndarray (d, r)
        Orthonormal columns, column-major; the largest component of each is positive.
    """

    left: Float64
    singular_values: Float64
    right: Float64

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, arrays as nested lists."""
        return to_dict(self)


@dataclass(frozen=True, slots=True)
class ThinQr:
    """X = Q · R.

    Attributes
    ----------
    Q : numpy.ndarray (d, r)
        Orthonormal columns, column-major, whatever the rank of X.
    R : numpy.ndarray (r, r)
        Upper triangular; its diagonal is not negative.
    """

    Q: Float64
    R: Float64

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, arrays as nested lists."""
        return to_dict(self)


@anywhere
def thin_svd(X: ArrayIn, *, rank: int | None = None) -> ThinSvd:
    """Singular values and vectors of a matrix, or the first of them.

    Parameters
    ----------
    X : array (n, d), float
        Any matrix; calculated in float64.
    rank : int, optional
        How many to give, from 1 to min(n, d), by default all.

    Returns
    -------
    ThinSvd

    Raises
    ------
    ShapeError, DtypeError
        If X is no matrix of real numbers, or has no element.
    InputError
        If a value is not finite, a singular value would not be, or the rank does not fit.

    Notes
    -----
    LAPACK's divide and conquer (dgesdd), of X divided by a power of two where its squares would
    overflow or vanish: errors are a few roundings of the largest singular value, at any scale.
    Signs are settled by the right vectors. Vectors of equal singular values are any basis of their
    span, and those of zeros any completion.

    Examples
    --------
    >>> import numpy as np
    >>> found = thin_svd(np.array([[0.0, -3.0], [2.0, 0.0]]))
    >>> found.singular_values.tolist(), found.right.tolist(), found.left.tolist()
    ([3.0, 2.0], [[0.0, 1.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, 1.0]])
    """
    data = float64(X, "X", shape=(None, None))
    n, d = data.shape
    check_rank(n, d, rank)
    k = min(n, d)
    left, sigma, right = np.empty((n, k)), np.empty(k), np.empty((k, d))
    with core_errors(X=data):
        _core.thin_svd(left, sigma, right, data)
    return ThinSvd(left[:, :rank], sigma[:rank], right[:rank].T)


@anywhere
def thin_qr(X: ArrayIn) -> ThinQr:
    """Orthonormal columns that span at least what the columns of a matrix span.

    Parameters
    ----------
    X : array (d, r), float
        Columns, no more of them than rows; calculated in float64.

    Returns
    -------
    ThinQr

    Raises
    ------
    ShapeError, DtypeError
        If X is no matrix of real numbers, or has no column, or more columns than rows.
    InputError
        If a value is not finite, or an element of R would not be.

    Notes
    -----
    Householder reflections (dgeqrf, dorgqr): Q is orthonormal to rounding even where columns depend
    on each other; their diagonal element of R is then about zero, and the column of Q some
    completion. With a positive diagonal both factors are unique.

    Examples
    --------
    >>> import numpy as np
    >>> found = thin_qr(np.array([[-3.0, 1.0], [0.0, 2.0], [-4.0, 3.0]]))
    >>> np.allclose(found.Q @ found.R, [[-3, 1], [0, 2], [-4, 3]]), np.diag(found.R)[0].tolist()
    (True, 5.0)
    """
    data = float64(X, "X", shape=(None, None))
    d, r = data.shape
    check_columns(d, r)
    rows = np.ascontiguousarray(data.T)
    Q, R = np.empty((r, d)), np.empty((r, r))
    with core_errors(X=rows):
        _core.thin_qr(Q, R, rows)
    return ThinQr(Q.T, R.T)


def check_rank(n: int, d: int, rank: int | None) -> None:
    """Refuse a matrix without elements, and a rank that it cannot have."""
    if not n or not d:
        raise ShapeError(f"X: shape ({n}, {d}), expected at least one row and one column")
    whole = isinstance(rank, int | np.integer) and not isinstance(rank, bool)
    if rank is not None and not (whole and 1 <= rank <= min(n, d)):
        raise InputError(
            f"rank: got {rank!r}, expected None or an integer from 1 to {min(n, d)}, the smaller "
            f"side of X ({n}, {d})"
        )


def check_columns(d: int, r: int) -> None:
    """Refuse a matrix whose columns cannot be independent, or that has none."""
    if not 1 <= r <= d:
        raise ShapeError(f"X: shape ({d}, {r}), expected 1 to {d} columns")
