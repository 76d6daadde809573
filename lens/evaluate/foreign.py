"""Find texts that are surely in another language than they should be.

`identify` chooses among a few languages; this asks among all that the library knows, and accuses a
text only when another language is a thousand times likelier than the one expected, so that close
relatives (Indonesian and Malay) are not accused of each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version as installed
from typing import Any

from lens.data.languages import canonical
from lens.errors import InputError, MissingExtraError
from lens.evaluate.identify import content_words

LIKELIER = 1e3
"""How many times likelier than the expected language another one must be."""
LEAST_BYTES = 20
"""Shorter texts (in UTF-8, without digits and punctuation) are not judged."""


def foreign_languages(texts: Iterable[str], expected: str) -> list[str | None]:
    """Say of each text in which other language it surely is.

    Parameters
    ----------
    texts : iterable of str
        Plain text.
    expected : str
        Language it should be in, in any spelling, one that the library knows.

    Returns
    -------
    list of str or None
        Code of the other language; ``""`` for a text that fits, ``None`` for one too short to be
        judged.

    Raises
    ------
    InputError
        If the library does not know the language, or `texts` is one string.
    MissingExtraError
        If py3langid is not installed.

    Notes
    -----
    py3langid's naive Bayes over byte n-grams (after langid.py, Lui and Baldwin 2012) gives
    probabilities p over all its languages. A text is foreign when max p >= 1000 times p of the
    expected language.
    """
    if isinstance(texts, str):
        raise InputError("texts is one string, expected a list of texts; pass [text]")
    label = _labels().get(canonical(expected).partition("_")[0])
    if label is None:
        raise InputError(
            f"py3langid does not know {canonical(expected)}; check its script and length instead"
        )
    return [_foreign(text, label) for text in texts]


def can_judge(language: str) -> bool:
    """Whether `foreign_languages` knows a language."""
    return canonical(language).partition("_")[0] in _labels()


def judge_version() -> str:
    """Name and version of the library, to stand beside what it says."""
    _model()
    return f"py3langid {installed('py3langid')}"


def _foreign(text: str, label: str) -> str | None:
    kept = " ".join(content_words(text))
    if len(kept.encode("utf-8", "ignore")) < LEAST_BYTES:
        return None
    ranked = _model().rank(kept)
    (best, chance), expected = ranked[0], dict(ranked)[label]
    if chance < LIKELIER * expected:
        return ""
    try:
        return canonical(best)
    except InputError:
        return str(best)


@cache
def _model() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise MissingExtraError("py3langid", "langid", "finding rows in other languages") from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@cache
def _labels() -> dict[str, str]:
    """Language part of a FLORES code to the library's label."""
    found: dict[str, str] = {}
    for label in _model().nb_classes:
        try:
            found.setdefault(canonical(label).partition("_")[0], label)
        except InputError:
            continue  # "zxx", no language
    return found
