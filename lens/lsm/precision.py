"""Training in 16 bits: float32 master weights, and loss scaling for float16.

A step of learning rate 1e-5 is smaller than the distance between two bfloat16 numbers near one, so
a 16-bit weight would never move. The optimizer therefore changes a float32 copy, and the model
computes with that copy rounded. Float16 also loses small gradients; the loss is multiplied by a
power of two before the backward pass, and the gradients divided by it after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lens.lsm.distribution import Processes

_SHORT = (torch.float16, torch.bfloat16)


class Masters:
    """What the optimizer changes: parameters themselves, or float32 copies of 16-bit ones."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.tensors = [p.detach().float() if p.dtype in _SHORT else p for p in self.parameters]

    @property
    def copies(self) -> list[Tensor | None]:
        """The float32 copy of each parameter, None where it needs none."""
        pairs = zip(self.parameters, self.tensors, strict=True)
        return [None if master is p else master for p, master in pairs]

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of 16-bit parameters up in float32, and clear them."""
        for parameter, master in zip(self.parameters, self.tensors, strict=True):
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def gradients(self, processes: Processes) -> list[Tensor]:
        """Gradients of the step, added up over the processes."""
        if processes.count > 1:
            for tensor in self.tensors:  # a process may have had no prompts in this step
                tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        found = [tensor.grad for tensor in self.tensors if tensor.grad is not None]
        processes.add_up(found)
        return found

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Norm of all gradients together."""
        return norm_of(gradients)

    def whole(self, index: int, tensor: Tensor) -> Tensor:
        """Return the optimizer's tensor of a parameter as it goes into a checkpoint."""
        return tensor

    def part(self, tensor: Tensor) -> Tensor:
        """Return what this process keeps of a tensor that `whole` returned."""
        return tensor

    @torch.no_grad()
    def publish(self) -> None:
        """Round the copies into the model."""
        for parameter, master in zip(self.parameters, self.tensors, strict=True):
            if master is not parameter:
                parameter.copy_(master)


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of all gradients together; 0 when there is none."""
    if not gradients:
        return torch.zeros(())
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


@dataclass(slots=True)
class LossScale:
    """Power of two that keeps float16 gradients from vanishing; 1 for every other dtype.

    It is halved, and the step left out, when a gradient overflows; it is doubled after
    ``patience`` steps without overflow.
    """

    value: float = 1.0
    good: int = 0
    patience: int = 200

    @classmethod
    def of(cls, dtype: torch.dtype) -> LossScale:
        """Scale to begin with."""
        return cls(2.0**15 if dtype == torch.float16 else 1.0)

    @property
    def active(self) -> bool:
        """Whether there is anything to scale."""
        return self.value != 1.0

    def worked(self) -> None:
        """Note a step without overflow."""
        self.good += 1
        if self.active and self.good % self.patience == 0:
            self.value *= 2

    def overflowed(self) -> bool:
        """Halve the scale; False when it cannot get smaller, so that something else is wrong."""
        self.good = 0
        self.value /= 2
        return self.value > 1.0
