"""How much memory a run may take, and what of it is left for cached states."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from lens.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
# Beside the weights, in float32: the copy that undoes training, gradients, and two moments. With
# 16-bit weights copy and gradients are smaller, and a float32 copy for the optimizer is added.
_PER_TRAINED = 4


def size_in_bytes(size: str | int) -> int:
    """Read a size such as ``"12GB"``, ``"500MiB"`` or a number of bytes.

    Raises
    ------
    InputError
        If it is not a size above zero.
    """
    found = _SIZE.fullmatch(str(size))
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{size!r} is not a size; expected for instance 12GB, 500MiB or bytes")
    unit = found[2].lower()
    return int(float(found[1]) * (_BINARY[unit] if found[3] and unit else _UNITS[unit]))


def memory_for_states(
    model: nn.Module,
    *,
    trained_bytes: int,
    idle: Iterable[nn.Module] = (),
    max_memory: str | int | None,
) -> int | None:
    """Bytes of memory left for cached states; None when there is no limit.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights in main memory count, those on other devices do not.
    trained_bytes : int
        Size of what is trained, in float32; gradients, optimizer state and a copy come to four
        times that.
    idle : iterable of torch.nn.Module
        Modules whose weights are in files, and in memory one at a time while they are used.
    max_memory : str, int or None
        The limit. Activations and the libraries themselves are not counted.

    Raises
    ------
    InputError
        If weights and optimizer alone pass the limit.
    """
    if max_memory is None:
        return None
    limit = size_in_bytes(max_memory)
    weights = _bytes_of([model])
    idle = list(idle)
    largest = max((_bytes_of([module]) for module in idle), default=0)
    needed = weights - _bytes_of(idle) + max(largest, _PER_TRAINED * trained_bytes)
    if needed > limit:
        raise InputError(
            f"max_memory is {_said(limit)}, but the weights take {_said(weights)} and training "
            f"what was chosen another {_said(_PER_TRAINED * trained_bytes)}; train fewer blocks, "
            "use lora, load the model in 16 or 8 bit, or allow more"
        )
    return limit - needed


def _said(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters in main memory, each counted once."""
    found = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in found.values() if p.device.type == "cpu")
