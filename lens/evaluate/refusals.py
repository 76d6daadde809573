"""How far training moved a model on prompts it should go on refusing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens.evaluate.drift import pivot_kl
from lens.evaluate.intervals import wilson

if TYPE_CHECKING:
    from lens.lsm import TrainResult
    from lens.models import ChatOptions


@dataclass(frozen=True, slots=True)
class RefusalDrift:
    """Change of what a model says first to prompts it should refuse.

    Attributes
    ----------
    kl, kl_low, kl_high : float, nats
        Mean KL(p⁰‖p) of the next-token distribution over the prompts' tokens, with its 95 %
        bootstrap interval.
    first_kl : float, nats
        The same at the last prompt token, where the answer begins.
    changed, changed_low, changed_high : float
        Share of prompts whose most likely first token is another one, with its 95 % Wilson
        interval.
    n : int
        Prompts.
    """

    kl: float
    kl_low: float
    kl_high: float
    first_kl: float
    changed: float
    changed_low: float
    changed_high: float
    n: int


def refusal_drift(
    result: TrainResult,
    prompts: Sequence[str],
    *,
    chat: ChatOptions | None = None,
    batch_size: int = 16,
) -> RefusalDrift:
    """Compare a trained model with itself before training, on prompts it should refuse.

    Parameters
    ----------
    result : TrainResult
        A finished Lens run; its model holds the trained weights before and after the call.
    prompts : sequence of str
        Prompts that the model refused, in any language.
    chat : ChatOptions, optional
        As in training.
    batch_size : int
        Prompts per forward pass.

    Raises
    ------
    InputError
        If there are no prompts.
    """

    @contextmanager
    def trained() -> Iterator[None]:
        result.load(result.band)
        try:
            yield
        finally:
            result.load(result.original)

    model: Any = result.model
    result.load(result.original)
    try:
        drift = pivot_kl(
            model, model, result.tokenizer, prompts, chat=chat, batch_size=batch_size,
            steered=trained,
        )  # fmt: skip
    finally:
        result.load(result.band)
    changed = int(drift.changed.sum())
    low, high = wilson(changed, drift.n)
    return RefusalDrift(
        drift.mean, drift.low, drift.high, float(drift.last.mean()),
        changed / drift.n, float(low), float(high), drift.n,
    )  # fmt: skip
