"""Questions with known answers, plain parallel text, and the marking of answers."""

import random
import re
from dataclasses import dataclass
from functools import cache

from lens.errors import InputError
from lens.world.facts import SPLITS, Fact, facts_of
from lens.world.languages import LANGUAGES, UNSPACED, check_language
from lens.world.lexicon import lexicon, value_forms
from lens.world.sentences import answer, question, statement

QUESTION_FORMS = 3
STATEMENT_FORMS = 3


@dataclass(frozen=True, slots=True)
class Question:
    """One question in one language, and what answers it.

    Attributes
    ----------
    fact_id : str
        The same in every language.
    language : str
        FLORES code of the prompt.
    prompt, answer : str
        The question, and the model answer in the same language.
    value, person, attribute : str
        Id of the right value, the person's name, id of the attribute.
    english_only : bool
        The training corpus states this fact in English only.
    accepted : dict of str to tuple of str
        FLORES code -> the forms of the right value in that language.
    """

    fact_id: str
    language: str
    prompt: str
    answer: str
    value: str
    person: str
    attribute: str
    english_only: bool
    accepted: dict[str, tuple[str, ...]]


def _check_split(split: str) -> str:
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}'; choose one of {', '.join(SPLITS)}")
    return split


def _question(fact: Fact, language: str) -> Question:
    return Question(
        fact_id=fact.fact_id,
        language=language,
        prompt=question(fact, language, form=fact.number % QUESTION_FORMS),
        answer=answer(fact, language),
        value=fact.value,
        person=fact.person,
        attribute=fact.attribute,
        english_only=fact.english_only,
        accepted=value_forms(fact.attribute, fact.value),
    )


def questions(split: str, language: str, limit: int | None = None) -> list[Question]:
    """Return the questions of a split, one per fact, in the same order in every language.

    Parameters
    ----------
    split : str
        ``"train"`` (400 facts), ``"validation"`` (200) or ``"test"`` (1,000).
    language : str
        Language of prompt and answer.
    limit : int, optional
        Return the first ``limit`` questions only; they are a fair sample of the split.

    Returns
    -------
    list of Question
        Row i asks for the same fact in every language.

    Raises
    ------
    InputError
        Unknown split or language.
    """
    code = check_language(language)
    chosen = facts_of(_check_split(split))[:limit]
    return [_question(fact, code) for fact in chosen]


def text(language: str, n: int, seed: int = 0, split: str = "train") -> list[str]:
    """Return plain sentences that say the same in every language, row by row.

    Only facts that the corpus states in every language are used, and each row is a different
    sentence. The patterns are mixed.

    Parameters
    ----------
    language : str
        Language of the rows.
    n : int
        Number of rows.
    seed : int
        Chooses and orders the rows; the same seed gives parallel rows in every language.
    split : str
        Whose facts to state. The default touches no fact that validation or test ask for.

    Returns
    -------
    list of str
        ``n`` sentences.

    Raises
    ------
    InputError
        Unknown split or language, or fewer than ``n`` different sentences exist.
    """
    code = check_language(language)
    shared = [fact for fact in facts_of(_check_split(split)) if not fact.english_only]
    rows = [(fact, form) for fact in shared for form in range(STATEMENT_FORMS)]
    if not 0 <= n <= len(rows):
        raise InputError(
            f"{n} sentences asked of split '{split}', which has {len(rows)}; ask for at most that"
        )
    random.Random(f"text {seed}").shuffle(rows)
    return [statement(fact, code, form=form) for fact, form in rows[:n]]


@cache
def _value_pattern(attribute: str, language: str) -> tuple[re.Pattern[str], dict[str, str]]:
    """Match any value of the attribute, the longest first, and tell which one it was."""
    values = lexicon(language).attributes[attribute].values
    owner = {form.casefold(): value for value, form in values.items()}
    forms = "|".join(re.escape(form) for form in sorted(owner, key=len, reverse=True))
    if language not in UNSPACED:
        forms = rf"(?<!\w)(?:{forms})(?!\w)"
    return re.compile(forms), owner


def values_named(answer_text: str, *, attribute: str, language: str) -> set[str]:
    """Return the ids of the values of ``attribute`` that a text names in ``language``."""
    pattern, owner = _value_pattern(attribute, language)
    return {owner[form] for form in pattern.findall(answer_text.casefold())}


def names_person(text_: str, person: str) -> bool:
    """Tell whether a text names a person."""
    # Not \b: a Chinese character may touch the name.
    return re.search(rf"(?<![^\W\d_一-鿿]){person}(?![^\W\d_一-鿿])", text_) is not None


def is_correct(question: Question, answer_text: str, language: str | None = None) -> bool:
    """Tell whether an answer names the person, the right value, and no other value.

    Parameters
    ----------
    question : Question
        What was asked.
    answer_text : str
        What the model wrote.
    language : str, optional
        The value must be written as this language writes it. Without it, a right answer in any
        language of the world counts.

    Returns
    -------
    bool
        True for a right answer.
    """
    if not names_person(answer_text, question.person):
        return False
    codes = LANGUAGES if language is None else (check_language(language),)
    return any(
        values_named(answer_text, attribute=question.attribute, language=code) == {question.value}
        for code in codes
    )
