"""Rows of text as a plan sees them: which languages, how many rows, how many tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens.errors import InputError
from lens.planning.checkpoints import Checkpoint
from lens.planning.plans import Problem

if TYPE_CHECKING:
    from lens.models.chat import ChatOptions, Role

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


@dataclass(frozen=True, slots=True)
class Encoding:
    """How rows become tokens; as in `lens.models.encode`."""

    role: Role = "text"
    chat: ChatOptions | None = None
    prompts: Rows | None = None
    max_tokens: int | None = None

    def cut(self, tokens: int) -> int:
        """Length of a row of so many tokens; the end of a user prompt is never cut off."""
        longest = None if self.role == "user" else self.max_tokens
        return tokens if longest is None else min(tokens, longest)


def lengths_of(
    rows: Rows,
    checkpoint: Checkpoint,
    *,
    pivot: str | None,
    tokens: int | None,
    encoding: Encoding,
    quick: bool,
    what: str,
    fewest: int,
    problems: list[Problem],
) -> Lengths | None:
    """Count tokens by the model's own tokenizer and template, where they are there."""
    from lens.data.languages import canonical

    named = {canonical(lang): list(texts) for lang, texts in rows.items()}
    pivot = None if pivot is None else canonical(pivot)
    noun = "rows" if what == "rows" else "prompts"
    problems += [Problem(what, text) for text in _wrong(named, pivot, noun, fewest)]
    named = {lang: texts for lang, texts in named.items() if texts}
    if not named:
        return None
    if pivot in named:
        named = {pivot: named[pivot]} | named
    count = min(len(texts) for texts in named.values())
    named = {lang: texts[:count] for lang, texts in named.items()}
    if not isinstance(next(iter(named.values()))[0], str):
        return Lengths({lang: [len(ids) for ids in given] for lang, given in named.items()}, "ids")
    if tokens is not None:
        return Lengths({lang: [encoding.cut(tokens)] * count for lang in named}, "given")
    counted = None if quick else _encoded(named, checkpoint, encoding, what, problems)
    if counted is not None:
        return Lengths(counted, "tokenizer")
    sizes = {
        lang: [encoding.cut(max(1, len(text.encode()) // _BYTES_PER_TOKEN)) for text in texts]
        for lang, texts in named.items()
    }
    return Lengths(sizes, "bytes")


def read_rows(
    given: Rows | str | Path,
    *,
    languages: Sequence[str] | None,
    limit: int | None,
    split: str | None = None,
    column: str | None = None,
    incomplete: Literal["refuse", "drop"] = "refuse",
    min_rows: int = 2,
) -> Rows:
    """Rows from a file or folder, or as they are."""
    if isinstance(given, Mapping):
        return given
    from lens.data import read_parallel

    return read_parallel(
        given, languages=languages, limit=limit, split=split, column=column,
        incomplete=incomplete, min_rows=min_rows,
    ).rows  # fmt: skip


def _wrong(
    named: Mapping[str, Sequence[Any]], pivot: str | None, noun: str, fewest: int
) -> Iterator[str]:
    """Say what is wrong with the numbers of rows, and with the languages."""
    counts = {lang: len(texts) for lang, texts in named.items()}
    listed = ", ".join(f"{lang}: {n}" for lang, n in counts.items())
    if len(set(counts.values())) > 1 or not all(counts.values()):
        yield (
            f"{noun} are not parallel, row counts are {listed}; row i must say the same in every "
            "language"
        )
    few = [lang for lang, n in counts.items() if n < fewest]
    if few:
        yield f"too few {noun} of {', '.join(few)} ({listed}); expected at least {fewest} of each"
    if pivot is not None and pivot not in named:
        yield f"the pivot {pivot} has no {noun}; add them"
    if len(named) < 2:
        yield f"{noun} in at least one language besides the pivot are needed"


def _encoded(
    named: Mapping[str, Sequence[str]],
    checkpoint: Checkpoint,
    encoding: Encoding,
    what: str,
    problems: list[Problem],
) -> dict[str, list[int]] | None:
    """Lengths of rows as they will be encoded; None where there is no tokenizer."""
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
    wrong = []
    for lang, texts in named.items():
        try:
            encoded = encode(
                tokenizer, texts, role=encoding.role, prompts=(encoding.prompts or {}).get(lang),
                chat=encoding.chat, max_tokens=encoding.max_tokens,
            )  # fmt: skip
        except InputError as error:
            wrong.append(Problem(what, f"{lang}: {error}"))
            continue
        found[lang] = [len(row.ids) for row in encoded]
    problems += wrong
    return None if wrong else found
