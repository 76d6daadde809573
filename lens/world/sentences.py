"""Turn facts and numbers into sentences, in any language of the sample world."""

from lens.world.facts import Fact
from lens.world.lexicon import lexicon

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
