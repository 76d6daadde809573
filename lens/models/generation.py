"""Greedy answers of any Hugging Face causal model, the same for every batch size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lens.errors import InputError
from lens.utils.progress import bar

if TYPE_CHECKING:
    from lens.models.tokenization import Batch, ChatOptions

_OPEN, _CLOSE = "<think>", "</think>"


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 32,
    chat: ChatOptions | None = None,
    label: str = "Answering",
    quiet: bool = False,
) -> list[str]:
    """Answer each prompt greedily.

    Parameters
    ----------
    model, tokenizer : transformers model and tokenizer
        Hooks on the model (steering) apply. The model's mode is restored afterwards.
    prompts : sequence of str
        User messages, or plain text where the chat options switch the template off.
    max_new_tokens : int
        Answers stop at an end-of-sequence token or at this length.
    batch_size : int
        Prompts per batch; batches are made of prompts of similar length.
    chat : ChatOptions, optional
        Template, system message, ``enable_thinking``; by default the tokenizer's template.
    label : str
        Label of the progress bar, for example ``"Answering spa_Latn"``.
    quiet : bool
        No progress bar; without a terminal or notebook there is none anyway.

    Returns
    -------
    list of str
        One answer per prompt, in the order given, without special tokens and without a thinking
        block; empty where the answer never got past thinking.

    Raises
    ------
    InputError
        If a prompt is empty or not a string, or a size is not positive.

    Notes
    -----
    Left-padded with an explicit attention mask, from which position ids follow, so that padding
    changes an answer no more than float rounding does.
    """
    import torch

    from lens.models.tokenization import encode_prompts

    _check(prompts, max_new_tokens, batch_size)
    rows = encode_prompts(tokenizer, prompts, chat=chat)
    settings = _settings(model, tokenizer, max_new_tokens)
    device = next(model.parameters()).device
    answers = [""] * len(rows)
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            bar(len(rows), label, unit="row", drawn=False if quiet else None) as shown,
        ):
            for batch in length_batches([len(row) for row in rows], batch_size):
                padded = left_batch([rows[i] for i in batch], settings.pad_token_id)
                output = model.generate(
                    input_ids=padded.input_ids.to(device),
                    attention_mask=padded.attention_mask.to(device),
                    generation_config=settings,
                )
                start = padded.input_ids.shape[1]
                for i, new in zip(batch, output[:, start:].tolist(), strict=True):
                    answers[i] = _decode(tokenizer, rows[i], _until(new, settings.eos_token_id))
                shown.update(len(batch))
    finally:
        model.train(was_training)
    return answers


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first (memory peaks at the start)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def left_batch(rows: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Left-padded batch of token ids: the next token of every row is in the same column."""
    from lens.models.tokenization import EncodedRow, pad

    return pad([EncodedRow(tuple(row), 0, len(row)) for row in rows], pad_id=pad_id, side="left")


def strip_thinking(text: str, *, opened: bool = False) -> str:
    """Cut off a thinking block.

    Parameters
    ----------
    text : str
        Generated text.
    opened : bool
        Whether the prompt itself opened the block, so that ``text`` starts inside it.

    Returns
    -------
    str
        What follows the last ``</think>``; empty where a block is opened and never closed.
    """
    _, close, after = text.rpartition(_CLOSE)
    if close:
        return after.strip()
    return "" if opened or _OPEN in text else text.strip()


def _decode(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Turn new tokens into text; thinking marks can be special tokens, so they are cut first."""
    raw = str(tokenizer.decode(new, skip_special_tokens=False))
    if _OPEN not in raw and _CLOSE not in raw and not _opened(tokenizer, prompt):
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip()
    answer = strip_thinking(raw, opened=_opened(tokenizer, prompt))
    special = sorted(set(tokenizer.all_special_tokens), key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in special)
    return re.sub(pattern, "", answer).strip() if pattern else answer


def _until(new: list[int], ends: Sequence[int] | None) -> list[int]:
    """Drop the end token and the padding after it, which need not be special tokens."""
    stop = next((i for i, token in enumerate(new) if token in (ends or ())), len(new))
    return new[:stop]


def _opened(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether the prompt ends inside a thinking block that the template opened."""
    tail = str(tokenizer.decode(list(prompt)[-8:], skip_special_tokens=False))
    return tail.rfind(_OPEN) > tail.rfind(_CLOSE)


def _settings(model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    """Greedy settings that override whatever sampling the checkpoint recommends."""
    from transformers import GenerationConfig

    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        ends.update([value] if isinstance(value, int) else value or ())
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = min(ends, default=0)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
    )


def _check(prompts: Sequence[str], max_new_tokens: int, batch_size: int) -> None:
    if isinstance(prompts, str):
        raise InputError("prompts is one string; expected a list of prompts: pass [prompt]")
    bad = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, str) or not prompt]
    if bad:
        raise InputError(f"prompts {bad[:5]} are empty or not strings; every prompt needs text")
    for name, size in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if size < 1:
            raise InputError(f"{name} is {size}; expected a positive integer")
