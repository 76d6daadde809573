"""Prompts as a plan sees them: which languages, how many rows, how many tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.errors import InputError
from lens.planning.checkpoints import Checkpoint
from lens.planning.plans import Problem

if TYPE_CHECKING:
    from lens.models.chat import ChatOptions

Rows = Mapping[str, Sequence[Any]]
_BYTES_PER_TOKEN = 3  # where there is no tokenizer: coarse, and said so
_DRAWS = 64


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of every row, by language; row i says the same in each.

    Attributes
    ----------
    tokens : dict of str to list of int
        The pivot first.
    source : str
        ``"tokenizer"``, ``"bytes"``, ``"given"`` or ``"ids"``.
    """

    tokens: dict[str, list[int]]
    source: str

    @property
    def count(self) -> int:
        """Prompts in each language."""
        return len(next(iter(self.tokens.values())))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(max(lengths) for lengths in self.tokens.values())

    def padded(self, batch: int) -> int:
        """Tokens that go through the model when each language is cached, rows of like length."""
        total = 0
        for lengths in self.tokens.values():
            ordered = sorted(lengths, reverse=True)
            for at in range(0, len(ordered), batch):
                total += len(ordered[at : at + batch]) * ordered[at]
        return total

    def drawn(self, prompts: int) -> float:
        """Mean length that rows of so many drawn prompts, in all languages, are padded to."""
        rng = random.Random(0)
        longest: list[int] = [max(row) for row in zip(*self.tokens.values(), strict=True)]
        size = min(prompts, len(longest))
        total: int = sum(max(rng.sample(longest, size)) for _ in range(_DRAWS))
        return total / _DRAWS


def lengths_of(
    rows: Rows,
    checkpoint: Checkpoint,
    *,
    pivot: str | None,
    tokens: int | None,
    chat: ChatOptions | None,
    quick: bool,
    problems: list[Problem],
) -> Lengths | None:
    """Count tokens by the model's own tokenizer and template, where they are there."""
    from lens.data.languages import canonical

    named = {canonical(lang): list(texts) for lang, texts in rows.items()}
    pivot = None if pivot is None else canonical(pivot)
    _check(named, pivot, problems)
    named = {lang: texts for lang, texts in named.items() if texts}
    if not named:
        return None
    if pivot in named:
        named = {pivot: named[pivot]} | named
    fewest = min(len(texts) for texts in named.values())
    named = {lang: texts[:fewest] for lang, texts in named.items()}
    if not isinstance(next(iter(named.values()))[0], str):
        return Lengths({lang: [len(ids) for ids in given] for lang, given in named.items()}, "ids")
    if tokens is not None:
        return Lengths({lang: [tokens] * fewest for lang in named}, "given")
    counted = None if quick else _encoded(named, checkpoint, chat, problems)
    if counted is not None:
        return Lengths(counted, "tokenizer")
    sizes = {
        lang: [max(1, len(text.encode()) // _BYTES_PER_TOKEN) for text in texts]
        for lang, texts in named.items()
    }
    return Lengths(sizes, "bytes")


def read_rows(
    prompts: Rows | str | Path, *, languages: Sequence[str] | None, limit: int | None
) -> Rows:
    """Prompts from a file or folder, or as they are."""
    if isinstance(prompts, Mapping):
        return prompts
    from lens.data import read_parallel

    return read_parallel(prompts, languages=languages, limit=limit).rows


def _check(named: Mapping[str, Sequence[Any]], pivot: str | None, problems: list[Problem]) -> None:
    counts = {lang: len(texts) for lang, texts in named.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        listed = ", ".join(f"{lang}: {n}" for lang, n in counts.items())
        problems.append(
            Problem("prompts", f"prompts are not parallel, row counts are {listed}; row i must say "
                    "the same in every language")
        )  # fmt: skip
    if pivot is not None and pivot not in named:
        problems.append(Problem("prompts", f"the pivot {pivot} has no prompts; add them"))
    if len(named) < 2:
        problems.append(
            Problem("prompts", "prompts in at least one language besides the pivot are needed")
        )


def _encoded(
    named: Mapping[str, Sequence[str]],
    checkpoint: Checkpoint,
    chat: ChatOptions | None,
    problems: list[Problem],
) -> dict[str, list[int]] | None:
    """Lengths of prompts as training encodes them; None where there is no tokenizer."""
    if not checkpoint.tokenizer_files():
        return None
    from transformers import AutoTokenizer

    from lens.models.chat import encode

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # whatever a broken tokenizer file makes the library raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        problems.append(Problem("tokenizer", f"the tokenizer cannot be loaded: {first}"))
        return None
    found: dict[str, list[int]] = {}
    for lang, texts in named.items():
        try:
            found[lang] = [len(row.ids) for row in encode(tokenizer, texts, role="user", chat=chat)]
        except InputError as error:
            problems.append(Problem("prompts", f"{lang}: {error}"))
            return None
    return found
