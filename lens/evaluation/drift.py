"""Pivot drift: KL divergence of next-token distributions on pivot prompts and refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lens.errors import InputError
from lens.models.generation import left_batch, length_batches
from lens.stats import mean_interval, wilson
from lens.utils.progress import shown

if TYPE_CHECKING:
    from lens.models.tokenization import Batch, ChatOptions
    from lens.training.result import TrainResult

_TOKENS = 2048  # token rows of vocabulary size held in float64 at once


@dataclass(frozen=True, slots=True)
class PivotDrift:
    """Divergence on pivot prompts.

    Parameters
    ----------
    rows : (n,) array of float64, nats
        Mean over the prompt's tokens of KL(p⁰‖p), per prompt.
    last : (n,) array of float64, nats
        The same at the last prompt token alone, where the answer begins.
    changed : (n,) array of bool
        Whether the most likely token after the prompt is another one.
    mean, low, high : float, nats
        Mean over prompts and its 95 % bootstrap interval.
    n, n_tokens : int
        Prompts and tokens measured.
    """

    rows: NDArray[np.float64]
    last: NDArray[np.float64]
    changed: NDArray[np.bool_]
    mean: float
    low: float
    high: float
    n: int
    n_tokens: int


def pivot_kl(
    p_model: Any,
    q_model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    chat: ChatOptions | None = None,
    batch_size: int = 16,
    steered: Callable[[], AbstractContextManager[Any]] | None = None,
    seed: int = 0,
) -> PivotDrift:
    """KL(p⁰‖p) of the next-token distribution at every pivot prompt token.

    Parameters
    ----------
    p_model : transformers model
        The unchanged model, p⁰.
    q_model : transformers model
        The changed model, p; may be ``p_model`` itself when ``steered`` changes it.
    tokenizer : transformers tokenizer
        Shared by both.
    prompts : sequence of str
        Prompts in the pivot language.
    chat : ChatOptions, optional
        As in :func:`lens.models.generation.generate`.
    batch_size : int
        Prompts per forward pass.
    steered : callable returning a context manager, optional
        Entered around each forward pass of ``q_model`` only: ``lambda: steer(model, rules)``.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    PivotDrift

    Raises
    ------
    InputError
        If there are no prompts or the vocabularies differ.

    Notes
    -----
    Σ_v p⁰(v)·(ln p⁰(v) - ln p(v)), summed in float64; padding takes no part.
    """
    import torch
    from tqdm.auto import tqdm

    from lens.models.tokenization import encode_prompts, pad_id_of

    if isinstance(prompts, str) or not len(prompts):
        raise InputError("pivot_kl needs a list of at least one prompt in the pivot language")
    rows = encode_prompts(tokenizer, prompts, chat=chat)
    pad_id = pad_id_of(tokenizer)
    values, last = np.empty(len(rows)), np.empty(len(rows))
    changed = np.zeros(len(rows), dtype=bool)
    n_tokens = sum(map(len, rows))
    with (
        torch.inference_mode(),
        tqdm(total=len(rows), desc="Comparing the pivot", unit="row", disable=not shown()) as bar,
    ):
        for batch in length_batches([len(row) for row in rows], batch_size):
            padded = left_batch([rows[i] for i in batch], pad_id)
            mask = padded.attention_mask
            p = _logits(p_model, padded)
            with steered() if steered else nullcontext():
                q = _logits(q_model, padded)
            if p.shape != q.shape:
                raise InputError(
                    f"the models have vocabularies of {p.shape[-1]} and {q.shape[-1]} tokens; "
                    "pivot_kl compares models that share a tokenizer"
                )
            kl = _divergence(p, q, mask.bool())
            values[batch] = kl.sum(1) / mask.sum(1).numpy()
            last[batch] = kl[:, -1]
            changed[batch] = (p[:, -1].argmax(-1).cpu() != q[:, -1].argmax(-1).cpu()).numpy()
            bar.update(len(batch))
    low, high = mean_interval(values, seed)
    return PivotDrift(values, last, changed, float(values.mean()), low, high, len(rows), n_tokens)


def _logits(model: Any, batch: Batch) -> Any:
    """Logits (B, t, V), with position ids that do not see the padding."""
    device = next(model.parameters()).device
    extra: dict[str, Any] = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        extra["position_ids"] = batch.position_ids.to(device)
    was_training = model.training
    model.eval()
    try:
        return model(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            **extra,
        ).logits
    finally:
        model.train(was_training)


def _divergence(p: Any, q: Any, mask: Any) -> NDArray[np.float64]:
    """KL per token, (B, t) in nats, zero at padding; (tokens, V) slices bound the memory."""
    import torch

    real = mask.to(p.device)
    first, second = p[real], q[real.to(q.device)].to(p.device)
    parts = []
    for start in range(0, len(first), _TOKENS):
        a = torch.log_softmax(first[start : start + _TOKENS].double(), -1)
        b = torch.log_softmax(second[start : start + _TOKENS].double(), -1)
        # both are sums over the same vocabulary: rounding can leave -1e-17
        parts.append(torch.nn.functional.kl_div(b, a, reduction="none", log_target=True).sum(-1))
    kl = torch.zeros(mask.shape, dtype=torch.float64)
    kl[mask] = torch.cat(parts).clamp(min=0).cpu()
    return np.asarray(kl.numpy())


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
        result.load(result.weights)
        try:
            yield
        finally:
            result.load(result.original)

    model: Any = result.model
    result.load(result.original)
    try:
        drift = pivot_kl(
            model,
            model,
            result.tokenizer,
            prompts,
            chat=chat,
            batch_size=batch_size,
            steered=trained,
        )
    finally:
        result.load(result.weights)
    changed = int(drift.changed.sum())
    low, high = wilson(changed, drift.n)
    return RefusalDrift(
        drift.mean,
        drift.low,
        drift.high,
        float(drift.last.mean()),
        changed / drift.n,
        float(low),
        float(high),
        drift.n,
    )
