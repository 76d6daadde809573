"""Give the memory of weights that are not needed for now back to the system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from lens.errors import InputError
from lens.models.residence import lying_in_files, release


def spill(modules: Iterable[nn.Module]) -> int:
    """Move the weights of modules from memory to unnamed temporary files, mapped in their place.

    The modules stay usable, and give the same results: a weight that is read comes back from the
    file, page by page, and the system may drop it again. The files have no names and vanish with
    the process. Weights that lie in a file already, as those of a checkpoint loaded in its own
    dtype do, stay there.

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
    for parameter in _movable(list(parameters.values())):
        parameter.data = _mapped(parameter.data.contiguous())
        moved += parameter.numel() * parameter.element_size()
    return moved


def set_aside(parameters: Mapping[str, nn.Parameter], *, in_files: bool) -> dict[str, torch.Tensor]:
    """Keep what parameters hold now, before they are trained.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        Parameters that will be written to. Those in a checkpoint's file get memory of their own
        with ``in_files``, so that the file's values can be kept instead.
    in_files : bool
        Keep values on the CPU in mapped files; `lens.models.residence.release` drops them from
        memory after they have been read. Otherwise they are copied in memory.

    Returns
    -------
    dict of str to Tensor
        Their values.

    Raises
    ------
    InputError
        If there is no room for a file.
    """
    if not in_files:
        return {name: p.detach().clone() for name, p in parameters.items()}
    kept = {}
    in_memory = {id(p) for p in _movable(list(parameters.values()))}
    for name, parameter in parameters.items():
        values = parameter.detach()
        kept[name] = _mapped(values.contiguous()) if id(parameter) in in_memory else values
        if kept[name] is values:
            parameter.data = values.clone()
        release([kept[name]])
    return kept


def _movable(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those whose values take ordinary memory."""
    mapped = lying_in_files(parameters)
    pairs = zip(parameters, mapped, strict=True)
    return [p for p, in_file in pairs if not in_file and p.device.type == "cpu" and p.numel()]


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
