"""Raw bits of stored elements as float32."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array
from lens.stored import Dtype
from lens.weights import delta

Float32 = NDArray[np.float32]


@functools.cache
def _table(name: str) -> Float32:
    """Values of the 256 bit patterns of an 8-bit float (arXiv 2209.05433).

    E4M3 has no infinity: only S.1111.111 is NaN. E5M2 is half of an IEEE float16.
    """
    bits = np.arange(256, dtype=np.uint16)
    if name == "float8_e5m2":
        return (bits << 8).view(np.float16).astype(np.float32)
    exponent, fraction = (bits >> 3 & 15).astype(np.int32), (bits & 7).astype(np.float32)
    size = np.where(
        exponent > 0, np.ldexp(1 + fraction / 8, exponent - 7), np.ldexp(fraction / 8, -6)
    )
    size[(bits & 0x7F) == 0x7F] = np.nan
    return np.where(bits & 0x80, -size, size).astype(np.float32)


def is_8_bit(kind: Dtype) -> bool:
    """Whether elements are 8-bit floats, which NumPy and the C core do not know."""
    return kind.floating and kind.size == 1


def as_float32(raw: Array, kind: Dtype, *, out: Float32 | None = None) -> Float32:
    """Decode raw elements to float32, exactly but for float64.

    Parameters
    ----------
    raw : numpy.ndarray
        In the storage dtype.
    out : numpy.ndarray, float32, same shape, optional
        Where to write.
    """
    if is_8_bit(kind):
        found: Float32 = np.take(_table(kind.name or ""), raw, out=out, mode="clip")
        return found
    return delta(raw, out=out, dtype="bfloat16" if kind.name == "bfloat16" else None)
