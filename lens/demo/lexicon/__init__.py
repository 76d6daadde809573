"""Words and sentence patterns of the sample world, one hand-written JSON file per language.

Each file has the same shape::

    attributes.<attribute>.answer       the pattern every answer follows; its first word names
                                        the attribute, then comes the name, then the value
    attributes.<attribute>.statements   two more ways of stating the fact, for running text
    attributes.<attribute>.questions    three ways of asking for it
    attributes.<attribute>.values       value id -> the form that fits every pattern above
    numbers.patterns, numbers.objects   sentences with numbers and no arithmetic

Patterns use ``{name}``, ``{value}`` and, in Turkish, ``{name_gen}`` (the name in the genitive).
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lens.demo.languages import LANGUAGES, PIVOT


@dataclass(frozen=True, slots=True)
class AttributeWords:
    """How one language speaks about one attribute."""

    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: dict[str, str]

    @property
    def patterns(self) -> tuple[str, ...]:
        """Every way of stating the fact, the answer pattern first."""
        return (self.answer, *self.statements)


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All words and patterns of one language."""

    language: str
    attributes: dict[str, AttributeWords]
    number_patterns: tuple[str, ...]
    objects: dict[str, str]


@cache
def lexicon(language: str) -> Lexicon:
    """Read the words and patterns of one language.

    Parameters
    ----------
    language : str
        FLORES code, one of `lens.demo.LANGUAGES`.

    Returns
    -------
    Lexicon
        Shared object; do not change it.
    """
    source = files("lens.demo.lexicon").joinpath(f"{language}.json")
    data = json.loads(source.read_text(encoding="utf-8"))
    attributes = {
        name: AttributeWords(
            answer=words["answer"],
            statements=tuple(words["statements"]),
            questions=tuple(words["questions"]),
            values=words["values"],
        )
        for name, words in data["attributes"].items()
    }
    numbers = data["numbers"]
    return Lexicon(language, attributes, tuple(numbers["patterns"]), numbers["objects"])


def attributes() -> tuple[str, ...]:
    """Return the names of the attributes, in the order of the pivot's lexicon."""
    return tuple(lexicon(PIVOT).attributes)


def value_forms(attribute: str, value: str) -> dict[str, tuple[str, ...]]:
    """Return how each language writes one value.

    Parameters
    ----------
    attribute, value : str
        Ids, such as ``"home"`` and ``"forest"``.

    Returns
    -------
    dict of str to tuple of str
        FLORES code -> accepted forms.
    """
    return {code: (lexicon(code).attributes[attribute].values[value],) for code in LANGUAGES}
