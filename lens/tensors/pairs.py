"""Sums to about twice the precision of float32, for devices without float64.

A number is held as the unevaluated sum of two of float32, high and low, with an error of about
2^-45 of the largest term: Knuth's two-sum and Dekker's product, whose rounding errors are numbers
of float32 themselves. It needs each operation rounded to nearest on its own, as eager torch does;
a compiler that rearranges sums would undo it. Products of more than about 1e34 lose their low part.
"""

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def two_sum(a: Tensor, b: Tensor) -> Pair:
    """Return a + b rounded, and its rounding error."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def _split(a: Tensor) -> Pair:
    """Return two numbers of 12 bits each whose sum is a."""
    big = a * 4097.0
    high = big - (big - a)
    return high, a - high


def two_product(a: Tensor, b: Tensor) -> Pair:
    """Return a * b rounded, and its rounding error."""
    high = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    low = ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2
    return high, torch.where(low.isfinite(), low, 0.0)


def add(x: Pair, y: Pair) -> Pair:
    """Sum of two pairs."""
    high, low = two_sum(x[0], y[0])
    return two_sum(high, low + (x[1] + y[1]))


def multiply(x: Pair, b: Tensor) -> Pair:
    """Product of a pair and a number."""
    high, low = two_product(x[0], b)
    return two_sum(high, low + x[1] * b)


def fold(x: Pair) -> Pair:
    """Sum over the first dimension, two halves at a time, in an order of its length alone."""
    high, low = x
    if not len(high):
        return high.sum(0), low.sum(0)
    while len(high) > 1:
        half = (len(high) + 1) // 2
        rest = len(high) - half
        first, second = (high[:rest], low[:rest]), (high[half:], low[half:])
        done = add(first, second)
        high, low = (torch.cat([d, h[rest:half]]) for d, h in zip(done, (high, low), strict=True))
    return high[0], low[0]
