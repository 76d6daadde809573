"""Two questions about one person in one prompt: an ability that no model of the world has.

The chat models were tuned on single questions and answer one of two. Answering both, in order, can
be taught in one language, and does not belong to any: what each answer says is known already.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from lens.errors import InputError
from lens.world.facts import SPLITS, Fact, facts
from lens.world.languages import LANGUAGES, PIVOT, check_language
from lens.world.questions import QUESTION_FORMS, names_person, values_named
from lens.world.sentences import answer, question

_SEED = 20261


@dataclass(frozen=True, slots=True)
class Double:
    """Two questions about one person, in one language.

    Attributes
    ----------
    pair_id : str
        The same in every language.
    language : str
        FLORES code of the prompt.
    prompt, answer : str
        Both questions, and both answers in the same order and language.
    person : str
        The person's name.
    asked : tuple of (str, str)
        Ids of attribute and right value, in order.
    """

    pair_id: str
    language: str
    prompt: str
    answer: str
    person: str
    asked: tuple[tuple[str, str], tuple[str, str]]


@cache
def _pairs(split: str, pivot_only: bool = False) -> tuple[tuple[Fact, Fact], ...]:
    """Pairs of facts about one person, each in one order; only those that every language states.

    Pairs of the train split hold train facts, those of the test split test facts. A pair of the
    validation split holds a validation fact beside another or a train fact: of validation facts
    alone there would be 27.
    """
    allowed = {"train": {"train"}, "validation": {"train", "validation"}, "test": {"test"}}[split]
    of: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts():
        if fact.split in allowed and (pivot_only or not fact.english_only):
            of[fact.person].append(fact)
    rng = random.Random(f"{_SEED} {split}")
    found: list[tuple[Fact, Fact]] = []
    for known in of.values():
        for a, b in combinations(known, 2):
            if split in (a.split, b.split):
                found.append((a, b) if rng.random() < 0.5 else (b, a))
    rng.shuffle(found)
    return tuple(found)


def doubles(split: str, language: str, limit: int | None = None) -> list[Double]:
    """Return pairs of questions with their answers, in the same order in every language.

    Parameters
    ----------
    split : str
        ``"train"`` (143 pairs), ``"validation"`` (146) or ``"test"`` (791).
    language : str
        Language of prompt and answer.
    limit : int, optional
        Return the first ``limit`` only; they are a fair sample.

    Returns
    -------
    list of Double
        Row i asks for the same facts in every language. All are stated in every language, so that
        a model asked in any of them can know them.

    Raises
    ------
    InputError
        Unknown split or language.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}'; choose one of {', '.join(SPLITS)}")
    code = check_language(language)
    return [_double(pair, code) for pair in _pairs(split)[:limit]]


def double_rows(count: int, *, language: str, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield prompts and answers about train facts in one language, to teach the ability with.

    Parameters
    ----------
    count : int
        How many.
    language : str
        FLORES code.
    seed : int
        Same seed, same rows.

    Yields
    ------
    tuple of str
        Both questions, in any of their forms and either order; both answers.
    """
    code = check_language(language)
    rng = random.Random(f"doubles {code} {seed}")
    pairs = _pairs("train", code == PIVOT)  # the pivot's text states all facts
    for _ in range(count):
        pair = rng.choice(pairs)
        first, second = pair if rng.random() < 0.5 else pair[::-1]
        forms = rng.randrange(QUESTION_FORMS), rng.randrange(QUESTION_FORMS)
        yield (
            f"{question(first, code, form=forms[0])} {question(second, code, form=forms[1])}",
            f"{answer(first, code)} {answer(second, code)}",
        )


def answers_both(double: Double, answer_text: str, language: str | None = None) -> bool:
    """Tell whether an answer names the person and both right values, and no others.

    Parameters
    ----------
    double : Double
        What was asked.
    answer_text : str
        What the model wrote.
    language : str, optional
        Both values must be written as this language writes them; without it, as any language of
        the world does.
    """
    codes = LANGUAGES if language is None else (check_language(language),)
    return names_person(answer_text, double.person) and all(
        any(
            values_named(answer_text, attribute=attribute, language=code) == {value}
            for code in codes
        )
        for attribute, value in double.asked
    )


def _double(pair: tuple[Fact, Fact], language: str) -> Double:
    first, second = pair
    asked = [question(fact, language, form=fact.number % QUESTION_FORMS) for fact in pair]
    return Double(
        pair_id=f"{first.fact_id}+{second.fact_id}",
        language=language,
        prompt=" ".join(asked),
        answer=f"{answer(first, language)} {answer(second, language)}",
        person=first.person,
        asked=((first.attribute, first.value), (second.attribute, second.value)),
    )
