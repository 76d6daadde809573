"""The optimizer loop: AdamW with cosine decay, float32 master weights, sharding."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lens.errors import InputError
from lens.training.config import OptimizerSettings
from lens.training.processes import Processes
from lens.utils.progress import progress

_SHORT = (torch.float16, torch.bfloat16)


class MasterWeights:
    """Tensors the optimizer updates: the parameters, or float32 copies of 16-bit ones."""

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
        """Return this process's part of a tensor that `whole` returned."""
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


class Shards:
    """One process's part of the tensors that the optimizer updates, in float32."""

    def __init__(self, parameters: Sequence[Tensor], processes: Processes) -> None:
        self.parameters, self.processes = list(parameters), processes
        self.tensors = [self.part(p.detach()).float() for p in self.parameters]

    @property
    def copies(self) -> list[Tensor]:
        """The float32 part of each parameter."""
        return self.tensors

    @torch.no_grad()
    def collect(self) -> None:
        """Send gradients to the process that owns them, add them up in float32, and clear them.

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
        """Return this process's part of a whole tensor, a copy of equal length everywhere."""
        return self._padded(tensor).chunk(self.processes.count)[self.processes.rank].clone()

    def _padded(self, tensor: Tensor) -> Tensor:
        """Elements in order, followed by zeros up to a multiple of the number of processes."""
        missing = -tensor.numel() % self.processes.count
        return torch.nn.functional.pad(tensor.reshape(-1), (0, missing))


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts))[: like.numel()].view(like.shape)


_ADVICE = "training diverged: lower the learning rate or the strength"
Entry = dict[str, float]
# Takes the prompts of one pass and those of the whole step; the loss is the pass's own mean, so
# that the passes of a step, weighted by their prompts, add up to the loss of the step.
Loss = Callable[[list[int], list[int]], tuple[Tensor, Entry]]


class DivergedError(InputError):
    """The loss or its gradient stopped being finite; ``step`` is the number of steps before."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Optimization:
    """AdamW with warm-up, cosine decay and clipping, one step at a time.

    Parameters
    ----------
    parameters : sequence of Tensor
        What is trained; 16-bit ones get float32 master weights.
    config : OptimizerSettings
        Steps, batch size, learning rate, decay, clipping, warm-up.
    order : iterator of list of int
        Batches of indices, such as `draws`.
    dtype : torch.dtype
        What the model computes in; float16 gets loss scaling.
    processes : Processes
        Those that share the work of each step.
    shard : bool
        Each of them keeps a part of the gradients, master weights and moments only.
    masters : MasterWeights, optional
        What the optimizer changes in place of ``parameters``.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        config: OptimizerSettings,
        *,
        order: Iterator[list[int]],
        dtype: torch.dtype = torch.float32,
        processes: Processes | None = None,
        shard: bool = False,
        masters: MasterWeights | None = None,
    ) -> None:
        self.config, self.processes = config, processes or Processes()
        sharded = shard and self.processes.count > 1
        self.masters: MasterWeights | Shards = (
            Shards(parameters, self.processes) if sharded else masters or MasterWeights(parameters)
        )
        self.scale = LossScale.of(dtype)
        self.optimizer = torch.optim.AdamW(
            self.masters.tensors, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.done = 0
        self._draws = order

    def step(self, loss_of: Loss) -> Entry:
        """Draw prompts, take one optimizer step and return its log entry.

        Raises
        ------
        DivergedError
            If the loss or the gradient is not finite; names the step and the terms.
        """
        number, drawn = self.done, next(self._draws)
        rate = self.config.learning_rate * _schedule(number, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        entry = evaluated(
            loss_of,
            drawn,
            self.config.rows_per_pass,
            number,
            self.processes,
            backward=self._backward,
            after=self.masters.collect,
        )
        norm = self._gradient_norm()
        if self.scale.active:
            entry["loss_scale"] = self.scale.value
        if math.isfinite(norm):
            entry = {"step": number, "lr": rate, "grad_norm": norm, **entry}
            self.optimizer.step()
            self.masters.publish()
            self.scale.worked()
        else:
            entry = self._left_out({"step": number, "lr": rate, **entry})
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return entry

    def remaining(self, loss_of: Loss) -> Iterator[Entry]:
        """Take the steps that are left, with a progress bar; yield the log entry of each."""
        for _ in progress(range(self.done, self.config.steps), "Training", unit="step"):
            yield self.step(loss_of)

    def _left_out(self, entry: Entry) -> Entry:
        """Leave a step out whose gradient overflowed only because it was scaled."""
        if not (self.scale.active and self.scale.overflowed()):
            losses = ", ".join(f"{k} {v:.4g}" for k, v in entry.items() if k.startswith("loss_"))
            raise DivergedError(
                f"step {self.done}: the gradient is not finite ({losses}); {_ADVICE}", self.done
            )
        return {**entry, "left_out": 1.0}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything the next step depends on, apart from the parameters themselves.

        All processes must call it; what is returned is whole in the main one.
        """
        tensors = {"rng": torch.get_rng_state()}
        for i, copy in enumerate(self.masters.copies):
            if copy is not None:
                tensors[f"master.{i}"] = self.masters.whole(i, copy)
        for i, moments in self.optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"adam.{i}.{key}"] = self.masters.whole(i, value) if value.dim() else value
        plain = {"done": self.done, "loss_scale": [self.scale.value, self.scale.good]}
        return tensors, plain

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Resume from what `state` returned; the parameters must hold their weights already."""
        torch.set_rng_state(tensors["rng"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "master":
                self.masters.tensors[int(rest)].copy_(self.masters.part(tensor))
            elif kind == "adam":
                i, _, key = rest.partition(".")
                state.setdefault(int(i), {})[key] = (
                    self.masters.part(tensor) if tensor.dim() else tensor
                )
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.scale.value, self.scale.good = plain["loss_scale"]
        for _ in range(plain["done"]):
            next(self._draws)
        self.done = plain["done"]

    def _backward(self, loss: Tensor) -> None:
        (loss * self.scale.value).backward()

    def _gradient_norm(self) -> float:
        """Add gradients up over the processes, undo the scale, clip; return the norm before."""
        gradients = self.masters.gradients(self.processes)
        if self.scale.active:
            for gradient in gradients:
                gradient /= self.scale.value
        norm = self.masters.norm(gradients)
        scale = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return float(norm)


def evaluated(
    loss_of: Loss,
    drawn: list[int],
    size: int,
    number: int,
    processes: Processes,
    *,
    backward: Callable[[Tensor], None] | None = None,
    after: Callable[[], None] | None = None,
) -> Entry:
    """Mean log entry of the drawn prompts, ``size`` of them at a time, over all processes.

    Each pass's loss, weighted by its share of the prompts, is handed to ``backward``, and
    ``after`` is called. All processes call it equally often, however many prompts they own.
    """
    total: Entry = {}
    problem = None
    mine = processes.own(drawn)
    for at in range(0, processes.most(drawn), size):
        part = mine[at : at + size]
        share = len(part) / len(drawn)
        try:
            if part and problem is None:
                loss, entry = loss_of(part, drawn)
                _check_finite(entry)
                if backward is not None:
                    backward(loss * share)
                for name, value in entry.items():
                    total[name] = total.get(name, 0.0) + share * value
        except InputError as error:  # a kernel met a state that is not finite, or the loss is not
            problem = str(error)
        if after is not None:
            after()
    if processes.count > 1:  # all must know, or the others would wait for this one for ever
        found = processes.gather((total, problem))
        problem = next((message for _, message in found if message), None)
        total = _added(entry for entry, _ in found)
    if problem:
        raise DivergedError(f"step {number}: {problem}; {_ADVICE}", number)
    return total


def _added(entries: Iterator[Entry]) -> Entry:
    total: Entry = {}
    for entry in entries:
        for name, value in entry.items():
            total[name] = total.get(name, 0.0) + value
    return total


@contextmanager
def only_trainable(model: Any, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let only ``parameters`` require gradients, and put the flags back at the end."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _check_finite(entry: Entry) -> None:
    if math.isfinite(entry["loss"]):
        return
    bad = [name for name, value in entry.items() if not math.isfinite(value)]
    raise InputError(f"the loss is {entry['loss']} (not finite: {', '.join(bad)})")


def draws(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices: a new shuffle each time all prompts were used."""
    rng = random.Random(seed)
    pool: list[int] = []
    while True:
        while len(pool) < size:
            fresh = list(range(count))
            rng.shuffle(fresh)
            pool += fresh
        yield pool[:size]
        pool = pool[size:]


def _schedule(step: int, config: OptimizerSettings) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine decay."""
    warm = max(1, round(config.warmup_ratio * config.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))
