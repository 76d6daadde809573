"""Random numbers that depend on seed, tensor, model and slice alone, never on who draws them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, name: str, model: int, number: int, n: int) -> NDArray[np.float32]:
    """N numbers in [0, 1) for slice ``number`` of a tensor of one model."""
    text = f"{seed}\0{name}\0{model}".encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    bits = np.random.Philox(key=key, counter=[0, 0, 0, number])
    return np.random.Generator(bits).random(n, dtype=np.float32)


def signs(seed: int, name: str, number: int, n: int) -> NDArray[np.float32]:
    """N signs, 1 or −1, for slice ``number`` of a tensor."""
    drawn = uniform(seed, f"signs {name}", -1, number, n)
    return np.where(drawn < 0.5, np.float32(-1), np.float32(1))


def normal(name: str, n: int) -> NDArray[np.float32]:
    """N numbers of a normal distribution that the name alone decides."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    drawn = np.random.Generator(np.random.Philox(key=key))
    return drawn.standard_normal(n, dtype=np.float32)
