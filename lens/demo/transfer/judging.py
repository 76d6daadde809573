"""Ask double questions in a language and in the pivot, and measure perplexity of plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lens.data.language_id import Identifier, identifier
from lens.demo.languages import LANGUAGES, PIVOT
from lens.demo.questions import PEOPLE, Double, answers_both, doubles
from lens.errors import InputError
from lens.evaluation.accuracy import outcomes
from lens.models.generation import generate
from lens.models.tokenization import encode, pad, pad_id_of

_TOKENS = 24  # the longest answers have 20
_BATCH = 128


@dataclass(frozen=True, slots=True)
class TransferScore:
    """What one model does.

    Attributes
    ----------
    right : list of float
        Per question: 1 if both answers are right, in the language asked.
    right_any : float
        Share that is right in any language.
    fidelity : float
        Share of answers in the language asked.
    pivot : float
        Share of right answers to half as many questions in the pivot.
    perplexity : float
        Of held-out text in the language, a token.
    """

    right: list[float]
    right_any: float
    fidelity: float
    pivot: float
    perplexity: float

    @property
    def share(self) -> float:
        """Share of right answers in the language asked."""
        return sum(self.right) / len(self.right)


def judge(
    model: Any,
    tokenizer: Any,
    *,
    language: str,
    split: str,
    limit: int,
    text: Sequence[str],
    first: int = 0,
) -> TransferScore:
    """Ask a model ``limit`` double questions of a split in a language, and half in the pivot.

    Parameters
    ----------
    text : sequence of str
        Documents that perplexity is measured on.
    first : int
        Questions left out before those that are asked.

    Raises
    ------
    InputError
        If the split has fewer questions.
    """
    asked = [
        *_questions(split, language, first, limit),
        *_questions(split, PIVOT, first, max(limit // 2, 1)),
    ]
    answers = generate(
        model, tokenizer, [double.prompt for double in asked], max_new_tokens=_TOKENS,
        batch_size=_BATCH, label=f"Answering {language}", quiet=True,
    )  # fmt: skip
    found = outcomes(
        answers, asked, identified=_identifier().identify(answers), is_correct=answers_both
    )
    right = found.metric("accuracy_in_language")
    return TransferScore(
        right=[float(x) for x in right[:limit]],
        right_any=float(found.metric("accuracy_any")[:limit].mean()),
        fidelity=float(found.metric("fidelity")[:limit].mean()),
        pivot=float(right[limit:].mean()),
        perplexity=perplexity(model, tokenizer, text),
    )


def _questions(split: str, language: str, first: int, limit: int) -> list[Double]:
    found = doubles(split, language)[first : first + limit]
    if len(found) < limit:
        raise InputError(
            f"the {split} split has {len(doubles(split, language))} double questions, and {limit} "
            f"from number {first + 1} on are wanted; ask fewer"
        )
    return found


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: Sequence[str]) -> float:
    """Perplexity of documents, a token; each is read from its beginning."""
    rows = encode(tokenizer, text, role="text")
    total = count = 0.0
    for at in range(0, len(rows), _BATCH):
        batch = pad(rows[at : at + _BATCH], pad_id=pad_id_of(tokenizer), side="right")
        found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        learnt = batch.attention_mask[:, 1:].bool()
        lost = cross_entropy(
            found[:, :-1][learnt].float(), batch.input_ids[:, 1:][learnt], reduction="sum"
        )
        total, count = total + float(lost), count + float(learnt.sum())
    return math.exp(total / count)


@cache
def _identifier() -> Identifier:
    return identifier("default", list(LANGUAGES), neutral=PEOPLE)


@torch.no_grad()
def put(model: Any, folder: str | Path) -> None:
    """Give a model the weights of a checkpoint of the same shape, which is faster than loading."""
    from safetensors.torch import load_file

    named = dict(model.named_parameters())
    for file in Path(folder).glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if name in named:
                named[name].copy_(tensor)
