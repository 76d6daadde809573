"""Linear combinations of tensors, rounded once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lens import _core
from lens.arrays import BF16, Array, ArrayIn, anywhere, block, core_errors, float64, threads
from lens.errors import InputError, ShapeError
from lens.weights._deltas import output

MAX_SOURCES = 16
"""Sources that one call of `combine` takes."""

_OUT: dict[str, tuple[int, Any]] = {
    "float32": (0, np.float32),
    "float64": (1, np.float64),
    "float16": (2, np.float16),
    "bfloat16": (BF16, np.uint16),
}


@anywhere
def combine(
    sources: Sequence[ArrayIn],
    weights: ArrayIn,
    *,
    out: Array | None = None,
    out_dtype: str | None = None,
    n_threads: int = 1,
    dtype: str | None = None,
) -> Array:
    """Linear combination of tensors, rounded once to the output dtype.

    Parameters
    ----------
    sources : sequence of 1 to 16 arrays of one shape
        float32, float64, float16 or bfloat16, also mixed.
    weights : array (len(sources),)
        Finite numbers. A source of weight 0 is not read.
    out : numpy.ndarray of the output dtype, same shape, optional
        Where to write, apart from every source; bfloat16 as uint16.
    out_dtype : {"float32", "float64", "float16", "bfloat16"}, optional
        Default: that of the first source.
    n_threads : int
        Threads to use; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when a source is raw uint16.

    Returns
    -------
    numpy.ndarray
        sum_s weights[s] sources[s], which is out where that is given; bfloat16 as raw bits in
        uint16.

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If there are no sources or more than 16, a weight is not finite, or out_dtype is unknown.

    Notes
    -----
    Summed in float64 in the given order, then rounded to nearest, ties to even. A lone source of
    weight 1 and of the output dtype is copied byte by byte.

    Examples
    --------
    >>> import numpy as np
    >>> combine([np.float32([1, 2]), np.float32([1, 1])], [1, -0.5])
    array([0.5, 1.5], dtype=float32)
    """
    single = hasattr(sources, "ndim")
    if single or not 1 <= len(sources) <= MAX_SOURCES:
        count = "one array" if single else f"{len(sources)} sources"
        raise InputError(f"sources: got {count}, expected a sequence of 1 to {MAX_SOURCES} arrays")
    blocks = []
    for i, source in enumerate(sources):
        raw = getattr(source, "dtype", None) == np.uint16  # dtype says what raw bits hold
        blocks.append(block(source, f"sources[{i}]", dtype=dtype if raw else None))
        if blocks[i].data.shape != blocks[0].data.shape:
            raise ShapeError(
                f"sources[{i}]: shape {blocks[i].data.shape}, expected {blocks[0].data.shape} as "
                "sources[0] has"
            )
    w = float64(weights, "weights", shape=(len(blocks),))
    kind = out_dtype or blocks[0].dtype_name
    if kind not in _OUT:
        raise InputError(f"out_dtype: got {kind!r}, expected one of {', '.join(_OUT)}")
    code, storage = _OUT[kind]
    result = output(out, blocks[0].data.shape, np.dtype(storage))
    flat = tuple(x.data.reshape(-1) for x in blocks)
    with core_errors():
        _core.weights_combine(result.reshape(-1), flat, w, code, threads(n_threads))
    return result
