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
from lens.progress import progress

_ADVICE = "training diverged: lower the learning rate or the strength"
Loss = Callable[[list[int]], tuple[Tensor, dict[str, float]]]


class DivergedError(InputError):
    """The loss stopped being finite."""


def optimize(
    parameters: Sequence[Tensor], loss_of: Loss, config: LensConfig, *, count: int, seed: int
) -> Iterator[dict[str, float]]:
    """Run AdamW for ``config.steps`` steps and yield one log entry per step.

    Parameters
    ----------
    parameters : sequence of Tensor
        What is trained.
    loss_of : callable
        Takes the indices of a step's prompts; returns the loss and its log entry.
    config : LensConfig
        Steps, batch size, learning rate, decay, clipping, warm-up.
    count : int
        Number of prompts to draw from.
    seed : int
        Decides the order of prompts.

    Raises
    ------
    DivergedError
        If the loss is not finite; names the step and the terms.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    draws = _draws(count, config.batch_size, seed)
    for number in progress(range(config.steps), "Training", unit="step"):
        rate = config.learning_rate * _schedule(number, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        entry = _accumulate(loss_of, next(draws), config.micro_batch or config.batch_size, number)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield {"step": number, "lr": rate, "grad_norm": float(norm), **entry}


def _accumulate(loss_of: Loss, drawn: list[int], size: int, number: int) -> dict[str, float]:
    """Add up the gradients of a step, ``size`` prompts at a time; return the mean log entry."""
    total: dict[str, float] = {}
    for at in range(0, len(drawn), size):
        part = drawn[at : at + size]
        share = len(part) / len(drawn)
        try:
            loss, entry = loss_of(part)
        except InputError as error:  # a kernel met a state that is not finite
            raise DivergedError(f"step {number}: {error}; {_ADVICE}") from None
        _check_finite(entry, number)
        (loss * share).backward()
        for name, value in entry.items():
            total[name] = total.get(name, 0.0) + share * value
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


def _check_finite(entry: dict[str, float], number: int) -> None:
    if math.isfinite(entry["loss"]):
        return
    bad = [name for name, value in entry.items() if not math.isfinite(value)]
    raise DivergedError(
        f"step {number}: the loss is {entry['loss']} (not finite: {', '.join(bad)}); {_ADVICE}"
    )


def _draws(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Batches of prompt indices: a new shuffle each time all prompts were used."""
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
