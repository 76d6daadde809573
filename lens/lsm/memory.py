"""How much memory a run may take, and what of it is left for cached states."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lens.errors import InputError
from lens.sizes import said, size_in_bytes

# Beside the weights, in float32: the copy that undoes training, gradients, and two moments. With
# 16-bit weights copy and gradients are smaller, and a float32 copy for the optimizer is added.
_PER_TRAINED = 4


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
            f"max_memory is {said(limit)}, but the weights take {said(weights)} and training "
            f"what was chosen another {said(_PER_TRAINED * trained_bytes)}; train fewer blocks, "
            "use lora, load the model in 16 or 8 bit, or allow more"
        )
    return limit - needed


def _bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters in main memory, each counted once."""
    found = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in found.values() if p.device.type == "cpu")
