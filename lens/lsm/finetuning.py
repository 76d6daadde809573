"""Supervised tuning of the same blocks on real answers: the upper line beside every Lens run.

It sees what Lens never sees, target-language answers, and gets the same blocks, steps, rows per
step and schedule, from the same kind of prefix cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lens.errors import InputError
from lens.lsm.config import LensConfig
from lens.lsm.optimizing import only_trainable, optimize
from lens.models.blocks import locate
from lens.models.chat import ChatOptions, EncodedRow, encode
from lens.models.heads import logits
from lens.models.prefix import PrefixCache
from lens.models.sites import resolve_layers


def finetune(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]],
    answers: Mapping[str, Sequence[str]],
    *,
    layers: str = "-2:",
    config: LensConfig,
    chat: ChatOptions | None = None,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Tune a band of blocks in place to answer prompts with given answers.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder and its tokenizer; the model is trained in place.
    prompts, answers : mapping of str to sequence of str
        Per language, row i of answers answers row i of prompts; parallel across languages.
    layers : str
        Blocks to train.
    config : LensConfig
        Its steps, batch size, rates and clipping are used; its loss terms are not.
    chat : ChatOptions, optional
        Chat template flags.
    seed : int
        Decides the order of prompts.

    Returns
    -------
    list of dict
        One entry per step, with ``loss``.

    Raises
    ------
    InputError
        If answers are missing for a language or not as many as its prompts.
    """
    for lang, rows in prompts.items():
        if len(answers.get(lang, ())) != len(rows):
            raise InputError(
                f"{lang} has {len(rows)} prompts and {len(answers.get(lang, ()))} answers; "
                "give one answer per prompt"
            )
    parts = locate(model)
    chosen = resolve_layers(layers, len(parts.blocks))
    cache = PrefixCache(model, parts, first_block=min(chosen))
    encoded: list[list[EncodedRow]] = []
    end = tokenizer.eos_token_id
    for lang, rows in prompts.items():
        turns = encode(tokenizer, answers[lang], role="assistant", prompts=rows, chat=chat)
        encoded.append(turns)
        cache.add([(*row.ids, end) for row in turns], label=f"Caching answers {lang}")
    count = len(encoded[0])
    flat = [row for turns in encoded for row in turns]

    def loss_of(drawn: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        indices = [k * count + i for k in range(len(encoded)) for i in drawn]
        batch = cache.batch(indices)
        states = cache.forward(batch)["final"]
        picked = [(b, t) for b, i in enumerate(indices) for t in _predicting(flat[i])]
        where = torch.tensor(picked, device=states.device).T
        found = logits(model, parts, states[where[0], where[1]])
        value = cross_entropy(found, batch.input_ids[where[0], where[1] + 1])
        return value, {"loss": float(value.detach())}

    parameters = [p for i in chosen for p in parts.blocks[i].parameters()]
    with only_trainable(model, parameters):
        return list(optimize(parameters, loss_of, config, count=count, seed=seed))


def _predicting(row: EncodedRow) -> range:
    """Positions whose next token is the answer's, its end included."""
    return range(row.pool_start, row.pool_stop + 1)
