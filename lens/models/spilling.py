"""Give the memory of weights that are not needed for now back to the system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from lens.errors import InputError


def spill(modules: Iterable[nn.Module]) -> int:
    """Move the weights of modules from memory to an unnamed temporary file, mapped in their place.

    The modules stay usable, and give the same results: a weight that is read comes back from the
    file, page by page, and the system may drop it again. The file has no name and vanishes with
    the process.

    Parameters
    ----------
    modules : iterable of torch.nn.Module
        Modules on the CPU; parameters on other devices are left alone.

    Returns
    -------
    int
        Bytes moved.

    Raises
    ------
    InputError
        If there is no room for the file.
    """
    parameters = {id(p): p for module in modules for p in module.parameters()}
    moved = 0
    for parameter in parameters.values():
        if parameter.device.type == "cpu" and parameter.numel():
            parameter.data = _mapped(parameter.data.contiguous())
            moved += parameter.numel() * parameter.element_size()
    return moved


def _mapped(values: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor that lives in a mapped, already unlinked file."""
    with tempfile.NamedTemporaryFile(prefix="lens-", delete=False) as file:
        path = Path(file.name)
        try:
            values.view(-1).view(torch.uint8).numpy().tofile(file)
            file.flush()
        except OSError as error:
            path.unlink()
            raise InputError(
                f"cannot move {values.numel() * values.element_size()} bytes of weights to "
                f"{path.parent}: {error}; free some space, or train without low_memory"
            ) from None
    try:
        flat = torch.from_file(str(path), shared=True, size=values.numel(), dtype=values.dtype)
    finally:
        path.unlink()
    return flat.view(values.shape)
