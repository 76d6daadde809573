"""Differences between the weights of models: size, likeness, the largest elements, combinations.

A delta is a - b of two tensors of one shape and dtype, taken in float32 (float64 for float64) and
never stored unless it is the result; b = None stands for zeros. NumPy arrays or CPU torch tensors
in, NumPy arrays out; bfloat16 results come as their raw bits in uint16. Tensors on another device
stay there, and results are tensors of their dtype (see `lens.tensors`).
"""

from lens.weights._combine import MAX_SOURCES, combine
from lens.weights._deltas import (
    Comparison,
    NonFinite,
    Pair,
    compare,
    count_nonfinite,
    delta,
    histogram,
    sum_of_squares,
)
from lens.weights._masks import Unit, importance, topk_masks, topk_units
from lens.weights._topk import TopK, TopKResult

__all__ = [
    "MAX_SOURCES",
    "Comparison",
    "NonFinite",
    "Pair",
    "TopK",
    "TopKResult",
    "Unit",
    "combine",
    "compare",
    "count_nonfinite",
    "delta",
    "histogram",
    "importance",
    "sum_of_squares",
    "topk_masks",
    "topk_units",
]
