"""C core of lens; positional arguments, no copies.

Arrays are aligned, native-endian, C-contiguous and of the exact dtype. ``dtype`` is a position in
``dtypes()``; bf16 travels as uint16. Outputs come first and may not overlap any other array.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_F64: TypeAlias = NDArray[np.float64]
_F32: TypeAlias = NDArray[np.float32]
_U8: TypeAlias = NDArray[np.uint8]
_U64: TypeAlias = NDArray[np.uint64]
_Any: TypeAlias = NDArray[Any]

def dtype_load(out: NDArray[np.float32], x: _Any, dtype: int, /) -> None: ...
def dtype_store(out: _Any, x: NDArray[np.float32], dtype: int, /) -> None: ...
def pool(out: _F64, states: _Any, mask: _U8, dtype: int, mode: int, n_threads: int, /) -> None: ...
def moments_update(
    mean_out: _F64,
    m2_out: _F64,
    mean: _F64 | None,
    m2: _F64 | None,
    X: _Any,
    count: int,
    dtype: int,
    n_threads: int,
    /,
) -> None: ...
def moments_merge(
    mean_out: _F64,
    m2_out: _F64,
    mean_a: _F64,
    m2_a: _F64,
    mean_b: _F64,
    m2_b: _F64,
    count_a: int,
    count_b: int,
    /,
) -> None: ...
def subspace_fit(
    basis: _F64, sigma: _F64, mean: _F64, route: _U8, means: _F64, n_threads: int, /
) -> None: ...
def principal_angles(angles: _F64, A: _F64, B: _F64, /) -> None: ...
def thin_svd(left: _F64, sigma: _F64, right: _F64, X: _F64, /) -> None: ...
def thin_qr(Q: _F64, R: _F64, X: _F64, /) -> None: ...
def matmul_nt(out: _F32, X: _F32, B: _F32, /) -> None: ...
def matmul_tn(out: _F32, Y: _F32, X: _F32, /) -> None: ...
def project(
    out: _Any, X: _Any, basis: _Any, strength: float, dtype: int, n_threads: int, /
) -> None: ...
def separate(
    grad: _Any,
    h: _Any,
    h0: _Any,
    basis: _Any,
    target: _Any,
    weights: _F64 | None,
    dtype: int,
    n_threads: int,
    /,
) -> float: ...
def align_mean(
    grad: _Any,
    grad_pivot: _Any | None,
    h: _Any,
    pivot: _Any,
    direction: _Any,
    weights: _F64 | None,
    dtype: int,
    n_threads: int,
    /,
) -> float: ...
def align_complement(
    grad: _Any,
    grad_pivot: _Any | None,
    h: _Any,
    pivot: _Any,
    basis: _Any,
    weights: _F64 | None,
    dtype: int,
    n_threads: int,
    /,
) -> float: ...
def retain_token(
    grad: _Any, h: _Any, h0: _Any, mask: _U8, dtype: int, n_threads: int, /
) -> float: ...
def retain_mean(
    grad: _Any, h: _Any, h0: _Any, mask: _U8, dtype: int, n_threads: int, /
) -> float: ...
def dtypes() -> tuple[str, ...]: ...
def isa() -> str: ...
def isas() -> tuple[str, ...]: ...
def force_isa(name: str, /) -> None: ...
def blas_config() -> str: ...
def fail_allocation(n: int, /) -> int: ...
def live_blocks() -> int: ...
def neuron_count(
    out: _U64, counts: _U64 | None, X: _Any, mask: _U8 | None, dtype: int, n_threads: int, /
) -> None: ...
def lape(p: _F64, entropy: _F64, counts: _U64, tokens: _U64, /) -> None: ...
def lape_select(
    member: _U8, entropy_out: _F64, p: _F64, entropy: _F64, rank: int, keep: int, /
) -> float: ...
def unit_rows(out: _Any, X: _Any, dtype: int, n_threads: int, /) -> None: ...
def match_rows(
    row_best: _U64, column_best: _U64, A: _Any, B: _Any, dtype: int, n_threads: int, /
) -> None: ...
def nearest_mean(label: _U64, X: _Any, means: _Any, dtype: int, n_threads: int, /) -> None: ...
def resample_gram(
    G: _F64, drift: _F64, mean: _F64, X: _Any, dtype: int, n_threads: int, /
) -> None: ...
def resample_refits(
    K: _F64, cross: _F64, G: _F64, fixed: _F64, weights: _F64, rows: _U64, n_threads: int, /
) -> None: ...
def resample_labels(K: _F64, G: _F64, labels: _U64, n_threads: int, /) -> None: ...
def resample_angles(
    angles: _F64 | None,
    agnostic: _F64 | None,
    sigma: _F64,
    K: _F64,
    cross: _F64 | None,
    fit: _F64 | None,
    mean_square: float,
    n_threads: int,
    /,
) -> None: ...
def weights_delta(
    out: NDArray[np.float32], a: _Any, b: _Any | None, dtype: int, n_threads: int, /
) -> None: ...
def weights_dots(
    sums: _F64,
    a: _Any,
    b: _Any | None,
    c: _Any | None,
    d: _Any | None,
    dtype: int,
    n_threads: int,
    /,
) -> None: ...
def weights_histogram(
    counts: NDArray[np.uint64], a: _Any, b: _Any | None, dtype: int, n_threads: int, /
) -> None: ...
def weights_select(
    marks: _U8,
    lows: NDArray[np.uint16],
    a: _Any,
    b: _Any | None,
    low: int,
    high: int,
    dtype: int,
    n_threads: int,
    /,
) -> tuple[int, int, int]: ...
def weights_settle(marks: _U8, keep: _U8, /) -> None: ...
def weights_row_means(
    out: _F64, a: _Any, b: _Any | None, dtype: int, n_threads: int, /
) -> None: ...
def weights_column_means(
    out: _F64, a: _Any, b: _Any | None, dtype: int, n_threads: int, /
) -> None: ...
def weights_combine(
    out: _Any, sources: tuple[_Any, ...], weights: _F64, dtype: int, n_threads: int, /
) -> None: ...
def weights_nonfinite(x: _Any, dtype: int, n_threads: int, /) -> tuple[int, int]: ...
