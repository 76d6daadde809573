"""Supervised tuning of the same blocks on real answers: the upper line beside every Lens run.

It sees what Lens never sees, target-language answers, and gets the same blocks, steps, rows per
step and schedule, from the same kind of prefix cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lens.errors import InputError
from lens.lsm.adapters import Lora
from lens.lsm.config import LensConfig
from lens.lsm.optimizing import only_trainable, optimize
from lens.lsm.trainable import Trainable
from lens.models.blocks import locate
from lens.models.chat import ChatOptions, EncodedRow, encode
from lens.models.heads import logits
from lens.models.prefix import PrefixCache
from lens.models.sites import resolve_layers


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A finished tuning; the model holds its weights, or carries its adapters.

    Attributes
    ----------
    log : list of dict
        One entry per step, with ``loss``.
    trainable : Trainable
        What was trained.
    """

    log: list[dict[str, float]]
    trainable: Trainable

    def release(self) -> None:
        """Take adapters off; weights that were tuned themselves stay as they are."""
        self.trainable.release()


def finetune(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]],
    answers: Mapping[str, Sequence[str]],
    *,
    layers: str = "-2:",
    train: str = "full",
    lora: int | Lora | None = None,
    config: LensConfig,
    chat: ChatOptions | None = None,
    seed: int = 0,
) -> Finetuned:
    """Tune a band of blocks in place to answer prompts with given answers.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder and its tokenizer; the model is trained in place.
    prompts, answers : mapping of str to sequence of str
        Per language, row i of answers answers row i of prompts; parallel across languages.
    layers : str
        Blocks to train.
    train : str
        What of them, as in `LensTrainer`.
    lora : int or Lora, optional
        Train adapters of this rank on their linear layers instead; they stay on the model until
        the result's ``release``.
    config : LensConfig
        Its steps, batch size, rates and clipping are used; its loss terms are not.
    chat : ChatOptions, optional
        Chat template flags.
    seed : int
        Decides the order of prompts.

    Returns
    -------
    Finetuned

    Raises
    ------
    InputError
        If answers are missing for a language or not as many as its prompts, ``train`` selects
        nothing, or the loss stops being finite (adapters are then taken off).
    """
    for lang, rows in prompts.items():
        if len(answers.get(lang, ())) != len(rows):
            raise InputError(
                f"{lang} has {len(rows)} prompts and {len(answers.get(lang, ()))} answers; "
                "give one answer per prompt"
            )
    parts = locate(model)
    chosen = resolve_layers(layers, len(parts.blocks))
    trainable = Trainable(model, parts, chosen, train=train, lora=lora)
    cache = PrefixCache(model, parts, first_block=min(chosen))
    encoded: list[list[EncodedRow]] = []
    end = tokenizer.eos_token_id
    for lang, rows in prompts.items():
        turns = encode(tokenizer, answers[lang], role="assistant", prompts=rows, chat=chat)
        encoded.append(turns)
        cache.add([(*row.ids, end) for row in turns], label=f"Caching answers {lang}")
    count = len(encoded[0])
    flat = [row for turns in encoded for row in turns]

    def answer_tokens(drawn: list[int]) -> int:
        return sum(len(_predicting(turns[i])) for turns in encoded for i in drawn)

    def loss_of(drawn: list[int], whole: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        indices = [k * count + i for k in range(len(encoded)) for i in drawn]
        batch = cache.batch(indices)
        states = cache.forward(batch)["final"]
        picked = [(b, t) for b, i in enumerate(indices) for t in _predicting(flat[i])]
        where = torch.tensor(picked, device=states.device).T
        found = logits(model, parts, states[where[0], where[1]])
        value = cross_entropy(found, batch.input_ids[where[0], where[1] + 1])
        if len(drawn) < len(whole):  # a mean over tokens, shared out by prompts
            value = value * (answer_tokens(drawn) / answer_tokens(whole) * len(whole) / len(drawn))
        return value, {"loss": float(value.detach())}

    parameters = list(trainable.activate().values())
    try:
        with only_trainable(model, parameters):
            steps = optimize(parameters, loss_of, config, count=count, seed=seed, dtype=model.dtype)
            return Finetuned(list(steps), trainable)
    except BaseException:
        trainable.release()
        raise


def _predicting(row: EncodedRow) -> range:
    """Positions whose next token is the answer's, its end included."""
    return range(row.pool_start, row.pool_stop + 1)
