"""The optimizer loop shared by Lens training and its controls."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lens.errors import InputError
from lens.lsm.config import LensConfig
from lens.lsm.distribution import Processes
from lens.lsm.precision import LossScale, Masters
from lens.lsm.sharding import Shards
from lens.progress import progress

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
    config : LensConfig
        Steps, batch size, learning rate, decay, clipping, warm-up.
    count : int
        Number of prompts to draw from.
    seed : int
        Decides the order of prompts.
    dtype : torch.dtype
        What the model computes in; float16 gets loss scaling.
    processes : Processes
        Those that share the work of each step.
    shard : bool
        Each of them keeps a part of the gradients, master weights and moments only.
    masters : Masters, optional
        What the optimizer changes in place of ``parameters``.
    order : iterator of list of int, optional
        Batches of indices, in place of a new shuffle each time all prompts were used.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        config: LensConfig,
        *,
        count: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        processes: Processes | None = None,
        shard: bool = False,
        masters: Masters | None = None,
        order: Iterator[list[int]] | None = None,
    ) -> None:
        self.config, self.processes = config, processes or Processes()
        sharded = shard and self.processes.count > 1
        self.masters: Masters | Shards = (
            Shards(parameters, self.processes) if sharded else masters or Masters(parameters)
        )
        self.scale = LossScale.of(dtype)
        self.optimizer = torch.optim.AdamW(
            self.masters.tensors, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.done = 0
        self._draws = order or draws(count, config.batch_size, seed)

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
        size = self.config.micro_batch or self.config.batch_size
        entry = evaluated(
            loss_of, drawn, size, number, self.processes,
            backward=self._backward, after=self.masters.collect,
        )  # fmt: skip
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
        for i, kept in self.optimizer.state_dict()["state"].items():
            for key, value in kept.items():
                tensors[f"adam.{i}.{key}"] = self.masters.whole(i, value) if value.dim() else value
        plain = {"done": self.done, "loss_scale": [self.scale.value, self.scale.good]}
        return tensors, plain

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go on from what `state` returned; the parameters must hold their weights already."""
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
        scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return float(norm)


def optimize(
    parameters: Sequence[Tensor],
    loss_of: Loss,
    config: LensConfig,
    *,
    count: int,
    seed: int,
    dtype: torch.dtype,
) -> Iterator[Entry]:
    """Run `Optimization` for ``config.steps`` steps and yield one log entry per step.

    Raises
    ------
    DivergedError
        If the loss is not finite; names the step and the terms.
    """
    optimization = Optimization(parameters, config, count=count, seed=seed, dtype=dtype)
    for _ in progress(range(config.steps), "Training", unit="step"):
        yield optimization.step(loss_of)


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
        problem = next((said for _, said in found if said), None)
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


def _schedule(step: int, config: LensConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine decay."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))
