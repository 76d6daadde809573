"""The training text of the sample world, generated from a seed.

About 70 % of it is English; the six other languages share the rest equally. No question about a
validation or test fact is ever written, in any language; their statements are, because a model
can only be asked for what it has read.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from lens.demo.languages import LANGUAGES, OTHERS, PIVOT, check_language
from lens.demo.lexicon import lexicon
from lens.demo.questions import (
    PEOPLE,
    QUESTION_FORMS,
    STATEMENT_FORMS,
    Fact,
    answer,
    facts,
    number_sentence,
    question,
    statement,
)

DOCUMENTS = 131_000  # a little more than the base model reads

# Up to this share of the documents the other languages state train facts only. When they then
# turn to the rest, English has those already, and a model that links languages need not learn
# them again; learnt side by side, each language would keep a store of its own.
PIVOT_FIRST = 0.6

# Kind of document, whether it is in English, and its share of all documents. A parallel
# document is half English, so English has .42 + .08 + .04 + .32 / 2 = .70 of the text.
MIXTURE = (
    ("statements", True, 0.42),
    ("statements", False, 0.06),
    ("answers", True, 0.08),
    ("answers", False, 0.06),
    ("numbers", True, 0.04),
    ("numbers", False, 0.02),
    ("parallel", True, 0.32),
)


@cache
def _facts_for(language: str, train_only: bool) -> tuple[Fact, ...]:
    return tuple(
        fact
        for fact in facts()
        if (language == PIVOT or not fact.english_only)
        and (fact.split == "train" or not train_only)
    )


def _statements(rng: random.Random, language: str, early: bool) -> list[str]:
    """Six facts, each in any of its patterns."""
    chosen = rng.sample(_facts_for(language, early and language != PIVOT), 6)
    return [statement(fact, language, form=rng.randrange(STATEMENT_FORMS)) for fact in chosen]


def _answers(rng: random.Random, language: str, early: bool) -> list[str]:
    """Three questions about train facts, each followed by its answer."""
    rows: list[str] = []
    for fact in rng.sample(_facts_for(language, True), 3):
        rows.append(question(fact, language, form=rng.randrange(QUESTION_FORMS)))
        rows.append(answer(fact, language))
    return rows


def _numbers(rng: random.Random, languages: Iterable[str]) -> list[str]:
    """One number sentence, the same in each language."""
    name, form = rng.choice(PEOPLE), rng.randrange(3)
    thing = rng.choice(list(lexicon(PIVOT).objects))
    have, change = rng.randrange(10, 21), rng.randrange(5, 10)
    return [
        number_sentence(name, language, thing=thing, have=have, change=change, form=form)
        for language in languages
    ]


def _pair(rng: random.Random, language: str, early: bool) -> tuple[str, str]:
    """Say the same in the pivot and in another language: a fact, a question or a number."""
    kind = rng.random()
    if kind < 0.12:
        first, second = _numbers(rng, (PIVOT, language))
        return first, second
    if kind < 0.25:
        fact = rng.choice(_facts_for(language, True))
        form = rng.randrange(QUESTION_FORMS)
        return question(fact, PIVOT, form=form), question(fact, language, form=form)
    fact, form = rng.choice(_facts_for(language, early)), rng.randrange(STATEMENT_FORMS)
    return statement(fact, PIVOT, form=form), statement(fact, language, form=form)


def _parallel(rng: random.Random, language: str, early: bool) -> list[str]:
    """Three sentence pairs, either side first."""
    rows = []
    for _ in range(3):
        first, second = _pair(rng, language, early)
        if rng.random() < 0.5:
            first, second = second, first
        rows.append(f"{first} = {second}")
    return rows


_WRITERS: dict[str, Callable[[random.Random, str, bool], list[str]]] = {
    "statements": _statements,
    "answers": _answers,
    "numbers": lambda rng, language, _: [_numbers(rng, (language,))[0] for _ in range(4)],
    "parallel": _parallel,
}


def documents(count: int = DOCUMENTS, *, seed: int = 0) -> Iterator[str]:
    """Yield the training documents, one string each.

    Parameters
    ----------
    count : int
        How many.
    seed : int
        Same seed, same text, on every machine.

    Yields
    ------
    str
        A document of three to six sentences or sentence pairs.
    """
    rng = random.Random(f"corpus {seed}")
    weights = [share for _, _, share in MIXTURE]
    for i in range(count):
        kind, in_pivot, _ = rng.choices(MIXTURE, weights)[0]
        language = PIVOT if in_pivot and kind != "parallel" else rng.choice(OTHERS)
        yield " ".join(_WRITERS[kind](rng, language, i < PIVOT_FIRST * count))


def plain_text(count: int, *, language: str, seed: int = 0) -> Iterator[str]:
    """Yield documents in one language alone, for continued pre-training.

    Half of them are statements, a quarter questions with answers about train facts, a quarter
    number sentences.

    Parameters
    ----------
    count : int
        How many.
    language : str
        FLORES code.
    seed : int
        Same seed, same documents.
    """
    code = check_language(language)
    rng = random.Random(f"plain {code} {seed}")
    kinds = ("statements", "statements", "answers", "numbers")
    for _ in range(count):
        yield " ".join(_WRITERS[rng.choice(kinds)](rng, code, False))


def balanced_rows(count: int = 60_000, *, seed: int = 0) -> Iterator[str]:
    """Yield documents in which every language has the same share, to train the tokenizer on.

    On the corpus itself the words of the six smaller languages would fall into many pieces.
    """
    rng = random.Random(f"balanced {seed}")
    kinds = ("statements", "answers", "numbers")
    for i in range(count):
        yield " ".join(_WRITERS[rng.choice(kinds)](rng, LANGUAGES[i % len(LANGUAGES)], False))


def digest(rows: Iterable[str]) -> str:
    """Return the SHA-256 of the documents, each ended by a newline."""
    total = hashlib.sha256()
    for row in rows:
        total.update(row.encode() + b"\n")
    return total.hexdigest()


def chat_pairs(
    count: int, *, mixture: dict[str, float], seed: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield question and answer about train facts, for chat tuning.

    Parameters
    ----------
    count : int
        How many pairs.
    mixture : dict of str to float
        FLORES code -> share of the pairs, for instance ``{"eng_Latn": 1.0}``.
    seed : int
        Same seed, same pairs.

    Yields
    ------
    tuple of str
        Prompt and answer, both in one language. Facts that the corpus states in English only
        are never asked for in another language.
    """
    rng = random.Random(f"chat {seed}")
    codes, weights = list(mixture), list(mixture.values())
    for _ in range(count):
        language = rng.choices(codes, weights)[0]
        fact = rng.choice(_facts_for(language, True))
        form = rng.randrange(QUESTION_FORMS)
        yield question(fact, language, form=form), answer(fact, language)
