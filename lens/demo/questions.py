"""Facts of the sample world, and questions about them with known answers."""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from lens.demo.languages import LANGUAGES, PIVOT, UNSPACED, check_language
from lens.demo.lexicon import attributes, lexicon, value_forms
from lens.errors import InputError

# Personal names stay in Latin script in every language.
PEOPLE = tuple(
    """
Ada Adil Aiko Alan Alba Aldo Alex Alma Amal Amir Ana Anke Anton Arif Arne Asha Aya Azra Bela Beno
Berta Boris Brit Bruno Budi Carl Cara Cem Chen Ciro Clara Cleo Cora Dana Dani Daud Davi Deniz Dewi
Diana Dina Dora Edda Edgar Eka Elif Elsa Emil Emma Enzo Erik Erna Esra Eva Fadi Farah Fela Felix
Fiona Flora Frida Gala Gita Greta Gustav Hadi Hana Hans Hanif Heidi Helga Hugo Ida Igor Ilan Imani
Inga Ines Ira Iris Ivan Jaco Jana Jens Joana Joel Jonas Juan Juma Kai Karim Katya Kemal Kenji Kiran
Klara Kofi Lars Laila Lena Leon Lina Lola Luca Luis Luna Maja Malik Marco Marta Mateo Maya Mehmet
Mika Mila Mina Mira Moses Musa Nadia Nils Nisa Noah Noor Nora Olga Olaf Omar Onur Oscar Otto Pablo
Paula Pedro Petra Pia Pilar Putri Quin Rafi Ravi Rhea Rita Robin Rosa Ruben Rumi Sana Sara Selim
Sena Sina Sofia Sven Taro Tara Tessa Theo Tina Tomas Tuan Uma Umar Ursa Vera Vidal Wanda Wen Wira
Xena Yara Yoko Yuki Yusuf Zahra Zain Zara Zeki Zoe Zuri Bilal Nuno Oleg Pavel Samir Silas Tarek
Vito Wafa Agnes Basil Celia Darko Emre Fritz Gina Hilda Jorge Milan Nelson
""".split()
)

SPLITS = ("train", "validation", "test")
SPLIT_SIZE = {"train": 50, "validation": 25, "test": 125}  # people per attribute
PIVOT_ONLY_SHARE = 0.4
_SEED = 20260


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of one person.

    Attributes
    ----------
    fact_id : str
        ``"<attribute>:<person>"``.
    number : int
        Position among all facts; chooses the question form.
    person, attribute, value : str
        The person's name and the ids of attribute and value.
    split : str
        ``"train"``, ``"validation"`` or ``"test"``.
    english_only : bool
        The corpus states this fact in English only.
    """

    fact_id: str
    number: int
    person: str
    attribute: str
    value: str
    split: str
    english_only: bool


@cache
def facts() -> tuple[Fact, ...]:
    """Return every fact of the world: the same on every machine, in a fixed order."""
    rng = random.Random(_SEED)
    found: list[Fact] = []
    for attribute in attributes():
        values = list(lexicon(PIVOT).attributes[attribute].values)
        # Repeating the list before shuffling uses every value equally often.
        drawn = [values[i % len(values)] for i in range(len(PEOPLE))]
        rng.shuffle(drawn)
        value_of = dict(zip(PEOPLE, drawn, strict=True))
        people = list(PEOPLE)
        rng.shuffle(people)
        start = 0
        for split in SPLITS:
            group = people[start : start + SPLIT_SIZE[split]]
            start += len(group)
            pivot_only = round(PIVOT_ONLY_SHARE * len(group))
            for i, person in enumerate(group):
                found.append(
                    Fact(
                        fact_id=f"{attribute}:{person}",
                        number=len(found),
                        person=person,
                        attribute=attribute,
                        value=value_of[person],
                        split=split,
                        english_only=i < pivot_only,
                    )
                )
    return tuple(found)


@cache
def facts_of(split: str) -> tuple[Fact, ...]:
    """Return the facts of one split, shuffled so that any first n are a fair sample."""
    chosen = [fact for fact in facts() if fact.split == split]
    random.Random(f"{_SEED} {split}").shuffle(chosen)
    return tuple(chosen)


_BACK_VOWELS = {"a": "ı", "ı": "ı", "o": "u", "u": "u"}
_FRONT_VOWELS = {"e": "i", "i": "i", "ö": "ü", "ü": "ü"}
_HARMONY = _BACK_VOWELS | _FRONT_VOWELS


def turkish_genitive(name: str) -> str:
    """Put a personal name into the Turkish genitive.

    The suffix vowel follows the last vowel of the name (four-way vowel harmony); a name that
    ends in a vowel takes a linking *n*. Proper nouns are parted from the suffix by an apostrophe.

    Parameters
    ----------
    name : str
        A name in Latin script.

    Returns
    -------
    str
        The name with its suffix.

    Examples
    --------
    >>> turkish_genitive("Ana"), turkish_genitive("Igor"), turkish_genitive("Zoe")
    ("Ana'nın", "Igor'un", "Zoe'nin")
    """
    vowels = [letter for letter in name.lower() if letter in _HARMONY]
    suffix = _HARMONY[vowels[-1]] + "n" if vowels else "in"
    link = "n" if name[-1].lower() in _HARMONY else ""
    return f"{name}'{link}{suffix}"


def _fill(pattern: str, name: str, value: str = "") -> str:
    return pattern.format(name=name, value=value, name_gen=turkish_genitive(name))


def statement(fact: Fact, language: str, *, form: int = 0) -> str:
    """State a fact.

    Parameters
    ----------
    fact : Fact
        What to state.
    language : str
        FLORES code.
    form : int
        0 for the pattern of answers, 1 and up for the patterns of running text.

    Returns
    -------
    str
        One sentence.
    """
    words = lexicon(language).attributes[fact.attribute]
    return _fill(words.patterns[form], fact.person, words.values[fact.value])


def answer(fact: Fact, language: str) -> str:
    """Return the sentence that answers a question about ``fact`` in ``language``."""
    return statement(fact, language, form=0)


def question(fact: Fact, language: str, *, form: int = 0) -> str:
    """Ask for a fact; ``form`` is the number of one of the question patterns."""
    words = lexicon(language).attributes[fact.attribute]
    return _fill(words.questions[form], fact.person)


def number_sentence(
    name: str, language: str, *, thing: str, have: int, change: int, form: int
) -> str:
    """Write a sentence with one or two numbers in it, and nothing to reckon.

    Parameters
    ----------
    name, language : str
        Person and FLORES code.
    thing : str
        Id of an object, a key of the lexicon's ``numbers.objects``.
    have, change : int
        Numbers from 5 to 20: Russian nouns then keep one form (genitive plural).
    form : int
        0 has, 1 has and buys more, 2 has and sells some.

    Returns
    -------
    str
        One sentence.
    """
    words = lexicon(language)
    return words.number_patterns[form].format(
        name=name,
        name_gen=turkish_genitive(name),
        object=words.objects[thing],
        a=have,
        b=change,
    )


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


_DOUBLES_SEED = 20261


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
    rng = random.Random(f"{_DOUBLES_SEED} {split}")
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
