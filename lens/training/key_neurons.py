"""Key neurons: which elements of a model are trained, and an optimizer that stores no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lens.errors import InputError
from lens.training.optimizer import MasterWeights


@dataclass(frozen=True, slots=True)
class KeyNeurons:
    """Places of key neurons.

    Attributes
    ----------
    places : dict of str to Tensor
        Tensor name -> flat places of its key elements, int64, ascending.
    shapes : dict of str to tuple of int
        Shapes of all tensors of the model they were located in.
    sha256 : str
        Hash of the file.
    """

    places: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    sha256: str

    @property
    def count(self) -> int:
        """Key elements in all."""
        return sum(found.numel() for found in self.places.values())

    def of(self, model: Any) -> dict[str, Tensor]:
        """Places by the names of a model's parameters.

        Raises
        ------
        InputError
            If they are those of another model.
        """
        named = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        prefix = getattr(model, "base_model_prefix", "")
        found: dict[str, Tensor] = {}
        for name, places in self.places.items():
            spelled = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
            mine = next((n for n in spelled if n in named), None)
            if mine is None or tuple(named[mine].shape) != self.shapes[name]:
                has = "no such tensor" if mine is None else f"{tuple(named[mine].shape)} there"
                raise InputError(
                    f"the key neurons are of another model: '{name}' of shape "
                    f"{self.shapes[name]} has {has}; extract them from this one"
                )
            found[mine] = places
        return found


class KeyNeuronMasters(MasterWeights):
    """Key elements as vectors of their own, all that the optimizer holds and changes.

    Weight decay and Adam's moments exist for nothing else, so all other elements keep their bits;
    a share k1 of the model takes a share k1 of the optimizer's memory.
    """

    def __init__(self, parameters: Sequence[Tensor], places: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.places = [at.to(p.device) for p, at in zip(parameters, places, strict=True)]
        self.tensors = [
            p.detach().reshape(-1)[at].float()
            for p, at in zip(self.parameters, self.places, strict=True)
        ]

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of key elements up in float32; drop all others."""
        for parameter, at, tensor in self._each():
            if parameter.grad is None:
                continue
            taken = parameter.grad.reshape(-1)[at].float()
            tensor.grad = taken if tensor.grad is None else tensor.grad + taken
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Write the key elements into the model."""
        for parameter, at, tensor in self._each():
            parameter.view(-1)[at] = tensor.to(parameter.dtype)

    def _each(self) -> zip[tuple[Tensor, Tensor, Tensor]]:
        return zip(self.parameters, self.places, self.tensors, strict=True)


@torch.no_grad()
def put_back(
    parameters: Mapping[str, Tensor], before: Mapping[str, Tensor], keys: Mapping[str, Tensor]
) -> None:
    """Give every element its value from ``before`` again, except for the key elements."""
    for name, parameter in parameters.items():
        restored = before[name].reshape(-1).clone()
        if name in keys:
            at = keys[name].to(parameter.device)
            restored[at] = parameter.reshape(-1)[at]
        parameter.copy_(restored.view_as(parameter))
