"""The processes that train together: which prompts each owns, sums and waits over all of them."""

from __future__ import annotations

import atexit
import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lens.errors import InputError
from lens.utils.progress import set_quiet


@dataclass(frozen=True, slots=True)
class Processes:
    """The rank of this process among those that train together; alone by default."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Return the process group that is running, if there is one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def own(self, indices: Iterable[int]) -> list[int]:
        """Return the ``indices`` that this process caches and computes."""
        return [i for i in indices if i % self.count == self.rank]

    def most(self, indices: Sequence[int]) -> int:
        """Return the largest number of ``indices`` that any process owns."""
        owners = [i % self.count for i in indices]
        return max((owners.count(rank) for rank in range(self.count)), default=0)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        self.gather(None)


def start(device: str) -> tuple[Processes, str]:
    """Join the process group that ``torchrun`` or ``accelerate launch`` announced, if any.

    Returns this process and its device: ``"cuda"`` becomes its own GPU. ``"auto"`` is refused, as
    it would spread one model over all GPUs in every process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return Processes(), device
    if device == "auto":
        raise InputError(
            "--device auto spreads one model over all GPUs, which several processes cannot share; "
            "use --device cuda, one process per GPU, or start a single process"
        )
    # Its functions bind the world's group as a default when they are imported. Imported once the
    # group is there, as Transformers does on demand, they keep it and its threads alive past
    # ``finish``, and a thread that wakes while the interpreter goes down aborts the process.
    importlib.import_module("torch.distributed.nn")
    from accelerate import PartialState

    atexit.register(_leave)
    state = PartialState(cpu=torch.device(device).type == "cpu")
    if not state.is_main_process:
        set_quiet(True)
    return Processes.current(), str(state.device) if device == "cuda" else device


def finish() -> None:
    """Leave the process group once all processes have reached this call."""
    if dist.is_available() and dist.is_initialized():
        Processes.current().wait()
    _leave()


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
