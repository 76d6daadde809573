"""Importance of elements, rows and columns, and masks of the most important."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import Array, ArrayIn, block, core_errors, host, is_elsewhere, threads
from lens.errors import InputError
from lens.weights._deltas import delta, flat
from lens.weights._topk import TopK, amount, check_amount

Unit: TypeAlias = Literal["element", "row", "column"]
"""What is selected as a whole; a row of a weight (out, in) is an output neuron."""

_UNITS = ("element", "row", "column")


def importance(
    a: ArrayIn,
    b: ArrayIn = None,
    *,
    unit: Unit = "row",
    n_threads: int = 1,
    dtype: str | None = None,
) -> Array:
    """Mean |a - b| of each row or column of a tensor, or |a - b| of each element.

    Parameters
    ----------
    a : array, float32, float64, float16 or bfloat16
        Weights, (out, in) as in torch.nn.Linear. A layer that stores its weight the other way, such
        as Conv1D of GPT-2, is transposed by the caller first.
    b : array, same shape and dtype, optional
        Weights to subtract; None for zeros.
    unit : {"row", "column", "element"}
        Rows are along the last axis, columns along the last but one; leading axes are kept, so each
        expert of an (experts, out, in) tensor has rows and columns of its own. A tensor of fewer
        than two axes goes by element.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when a is raw uint16.

    Returns
    -------
    numpy.ndarray, float64 (float32 by element)
        Shaped as a, with the axis of the mean of length 1, so that it broadcasts against a.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If the unit is unknown, the mean is over nothing, or a delta is NaN or infinite; the message
        names row and column.

    Notes
    -----
    Deltas are float32 (float64 for float64); their absolute values are summed in float64, in a
    fixed order.

    Examples
    --------
    >>> import numpy as np
    >>> importance(np.float32([[1, -3], [0, 1]])).tolist()
    [[2.0], [0.5]]
    >>> importance(np.float32([[1, -3], [0, 1]]), unit="column").tolist()
    [[0.5, 2.0]]
    """
    _check_unit(unit)
    if is_elsewhere(a):  # the difference comes to the CPU; what is left of it is small
        a, b, dtype = host(delta(a, b, dtype=dtype)), None, None
    x, y, code = flat(a, b, "ab", dtype)
    shape = tuple(np.shape(a))
    if unit == "element" or len(shape) < 2:
        size: Array = delta(a, b, n_threads=n_threads, dtype=dtype)
        np.abs(size, out=size)
        _check_finite(size, "a - b")
        return size
    n, d = shape[-2:]
    row = unit == "row"
    out = np.empty((*shape[:-1], 1) if row else (*shape[:-2], 1, d))
    mean = _core.weights_row_means if row else _core.weights_column_means
    if out.size == 0:
        return out
    if x.size == 0:
        raise InputError(f"a: shape {shape}, expected rows and columns of at least one element")
    parts = out.reshape(-1, n if row else d)
    for i, part in enumerate(parts):
        at = slice(i * n * d, (i + 1) * n * d)
        first, second = x[at].reshape(n, d), None if y is None else y[at].reshape(n, d)
        with core_errors(a=first, b=second):
            mean(part, first, second, code, threads(n_threads))
    return out


def topk_units(
    sizes: Mapping[str, ArrayIn], *, k: int | None = None, share: float | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Masks of the k most important units over all tensors.

    Parameters
    ----------
    sizes : mapping of str to array
        Importance by name of tensor, not negative, as from `importance`; float32 and float64.
    k : int, optional
        Units to select.
    share : float in [0, 1], optional
        Share of all units instead: k = floor(share n + 1/2).

    Returns
    -------
    dict of str to numpy.ndarray, bool
        A mask in the shape of each array, in sorted order of names.

    Raises
    ------
    DtypeError
        If an array holds no floating-point numbers.
    InputError
        If an importance is negative, NaN or infinite, or k and share do not say how many.

    Notes
    -----
    Equal to a stable descending sort in float64: of equal ones, the lowest flat index in the first
    tensor of the sorted names wins. An importance of zero is never selected. Twelve bytes are held
    for each unit; for single elements of large tensors use `TopK`.

    References
    ----------
    MAEC, arXiv:2410.07825.

    Examples
    --------
    >>> import numpy as np
    >>> topk_units({"w": np.array([[2.0], [0.0], [3.0]])}, k=1)["w"].tolist()
    [[False], [False], [True]]
    """
    check_amount("topk_units", k, share)
    names = sorted(sizes)
    arrays = [block(sizes[name], f"sizes['{name}']").data for name in names]
    for name, x in zip(names, arrays, strict=True):
        _check_finite(x, f"sizes['{name}']")
    flat_sizes = np.concatenate([np.empty(0), *(x.reshape(-1).astype(np.float64) for x in arrays)])
    if (flat_sizes < 0).any():
        raise InputError("sizes: a negative importance, expected numbers of at least 0")
    want = min(amount(flat_sizes.size, k, share), int(np.count_nonzero(flat_sizes)))
    mask = np.zeros(flat_sizes.size, np.bool_)
    if want > 0:
        cut = np.partition(flat_sizes, flat_sizes.size - want)[flat_sizes.size - want]
        np.greater(flat_sizes, cut, out=mask)
        mask[np.flatnonzero(flat_sizes == cut)[: want - int(mask.sum())]] = True
    parts = np.split(mask, np.cumsum([x.size for x in arrays])[:-1]) if arrays else []
    return {name: part.reshape(x.shape) for name, x, part in zip(names, arrays, parts, strict=True)}


def topk_masks(
    a: Mapping[str, ArrayIn],
    b: Mapping[str, ArrayIn] | None = None,
    *,
    k: int | None = None,
    share: float | None = None,
    unit: Unit = "element",
    per_tensor: bool = False,
    n_threads: int = 1,
    dtype: str | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Masks of the k largest |delta| over all tensors held in memory.

    Parameters
    ----------
    a : mapping of str to array
        Weights by name.
    b : mapping of str to array, optional
        Weights to subtract, with the same names; None for zeros.
    k, share
        As in `TopK`, in units.
    unit : {"element", "row", "column"}
        What is selected as a whole, by its mean |delta|, as in `importance`; tensors of fewer than
        two axes go by element, and each of their elements counts as one unit.
    per_tensor : bool
        Select k units, or this share, of each tensor instead of all together.
    n_threads : int
        Threads to use; any number gives the same masks.
    dtype : {"bfloat16"}, optional
        Needed when the arrays are raw uint16.

    Returns
    -------
    dict of str to numpy.ndarray, bool
        A mask for each tensor, in sorted order of names. It broadcasts against the tensor: by row
        its last axis has length 1, by column the last but one, which is as good as the whole and
        costs nothing; numpy.broadcast_to gives the whole.

    Raises
    ------
    ShapeError, DtypeError
        If two arrays do not fit together.
    InputError
        If the names differ, a delta is NaN or infinite, the unit is unknown, or k and share do not
        say how many.

    Notes
    -----
    Ties go to the lowest flat index of the first tensor in sorted order; units of importance zero
    are never selected.

    References
    ----------
    MAEC, arXiv:2410.07825.

    Examples
    --------
    >>> import numpy as np
    >>> topk_masks({"w": np.float32([3, -4, 0])}, k=1)["w"]
    array([False,  True, False])
    >>> w = np.float32([[1, 1], [3, 0]])
    >>> (w * topk_masks({"w": w}, k=1, unit="row")["w"]).tolist()
    [[0.0, 0.0], [3.0, 0.0]]
    """
    _check_unit(unit)
    if b is not None and set(a) != set(b):
        name = min(set(a) ^ set(b))
        raise InputError(f"b: tensor '{name}' is in one of a and b only, expected the same names")
    names = sorted(a)
    groups = [[name] for name in names] if per_tensor else [names]
    masks: dict[str, NDArray[np.bool_]] = {}
    check_amount("topk_masks", k, share)
    how: dict[str, Any] = {"n_threads": n_threads, "dtype": dtype}
    for group in groups:
        pairs = {name: (a[name], None if b is None else b[name]) for name in group}
        if unit == "element":
            masks |= _element_masks(pairs, TopK(k, share=share, n_threads=n_threads), dtype)
        else:
            sizes = {name: importance(*pair, unit=unit, **how) for name, pair in pairs.items()}
            masks |= topk_units(sizes, k=k, share=share)
    return masks


def _element_masks(
    pairs: Mapping[str, tuple[ArrayIn, ArrayIn]], top: TopK, dtype: str | None
) -> dict[str, NDArray[np.bool_]]:
    for name, pair in pairs.items():
        top.add(name, *pair, dtype=dtype)
    marks = {name: top.select(name, *pair, dtype=dtype) for name, pair in pairs.items()}
    result = top.finish()
    return {name: result.apply(name, mark) for name, mark in marks.items()}


def _check_unit(unit: str) -> None:
    if unit not in _UNITS:
        raise InputError(f"unit: got {unit!r}, expected one of {', '.join(_UNITS)}")


def _check_finite(x: Array, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise InputError(f"{name}: NaN or infinite value, element {bad[0]}")
