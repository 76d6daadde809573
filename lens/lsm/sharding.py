"""Gradients, master weights and moments of the trained band, each process with its part.

As in ZeRO stage 2 (arXiv 1910.02054) and in FSDP's ``SHARD_GRAD_OP``: parameters stay whole, since
the frozen blocks below them are whole too, and what training adds to them is divided. Every tensor
is cut along its flattened elements, so that all processes hold equally much whatever the sizes of
the tensors; AdamW works element by element and never sees the cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lens.lsm.distribution import Processes
from lens.lsm.precision import norm_of


class Shards:
    """One process's part of what the optimizer changes, in float32.

    Parameters
    ----------
    parameters : sequence of Tensor
        What is trained; the same in all processes.
    processes : Processes
        Those that share it.
    """

    def __init__(self, parameters: Sequence[Tensor], processes: Processes) -> None:
        self.parameters, self.processes = list(parameters), processes
        self.tensors = [self.part(p.detach()).float() for p in self.parameters]

    @property
    def copies(self) -> list[Tensor]:
        """The float32 part of each parameter."""
        return self.tensors

    @torch.no_grad()
    def collect(self) -> None:
        """Send gradients to whom they belong, add up there in float32, and clear them.

        All processes must call it equally often; one without a gradient gives zeros.
        """
        for parameter, mine in zip(self.parameters, self.tensors, strict=True):
            whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
            # 16-bit gradients are sent in float32: added up in 16 bits, they would lose digits
            parts = list(self._padded(whole).float().chunk(self.processes.count))
            added = torch.empty_like(mine)
            dist.reduce_scatter(added, parts)
            mine.grad = added if mine.grad is None else mine.grad + added

    def gradients(self, processes: Processes) -> list[Tensor]:
        """Return the step's gradients, as far as they are here; `collect` has added them up."""
        return [tensor.grad for tensor in self.tensors if tensor.grad is not None]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Norm of all gradients together, over all processes."""
        square = norm_of(gradients).square()
        self.processes.add_up([square])
        return square.sqrt()

    @torch.no_grad()
    def publish(self) -> None:
        """Put the parts of all processes together in the model, rounded to its dtype."""
        for parameter, mine in zip(self.parameters, self.tensors, strict=True):
            rounded = mine.to(parameter.dtype)
            parts = [torch.empty_like(rounded) for _ in range(self.processes.count)]
            dist.all_gather(parts, rounded)
            parameter.copy_(_joined(parts, parameter))

    @torch.no_grad()
    def whole(self, index: int, tensor: Tensor) -> Tensor:
        """Return the optimizer's tensor of a parameter, put together in the main process."""
        parts = [torch.empty_like(tensor) for _ in range(self.processes.count)]
        dist.gather(tensor, parts if self.processes.main else None)
        return _joined(parts, self.parameters[index]).cpu() if self.processes.main else tensor

    def part(self, tensor: Tensor) -> Tensor:
        """Return what this process keeps of a whole tensor: a copy of equal length everywhere."""
        return self._padded(tensor).chunk(self.processes.count)[self.processes.rank].clone()

    def _padded(self, tensor: Tensor) -> Tensor:
        """Elements in order, followed by zeros up to a multiple of the number of processes."""
        missing = -tensor.numel() % self.processes.count
        return torch.nn.functional.pad(tensor.reshape(-1), (0, missing))


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts))[: like.numel()].view(like.shape)
