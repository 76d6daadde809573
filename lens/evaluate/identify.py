"""Name the language of a text, with a named and versioned identifier.

Every identifier chooses among the languages it was given, never among all it knows: an answer is
one of them or undecided (``None``). Digits, punctuation and the words given as ``neutral`` (names
of people, say) carry no language and are removed before anything is decided.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lens.errors import InputError
from lens.evaluate._backends import BACKENDS, Decide
from lens.evaluate._scripts import UNSPACED, main_script, share_in_script

DEFAULT = "py3langid"
"""The better of the two libraries on short answers; docs/language-identification.md."""

_LEAST_SHARE = 0.25
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019\u02bc-][^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Identifier:
    """A language identifier restricted to some languages.

    Parameters
    ----------
    name, version : str
        Which identifier this is; both belong beside every number made with it.
    languages : tuple of str
        FLORES codes it chooses among.
    neutral : frozenset of str
        Case-folded words that carry no language.
    """

    name: str
    version: str
    languages: tuple[str, ...]
    neutral: frozenset[str] = frozenset()
    _unspaced: tuple[str, ...] = field(default=(), repr=False)
    _decide: Decide = field(default=lambda text: None, repr=False, compare=False)

    def identify(self, texts: Iterable[str]) -> list[str | None]:
        """Return one FLORES code per text, ``None`` where undecided.

        Parameters
        ----------
        texts : iterable of str
            Plain text without markup; a lone string is refused.

        Raises
        ------
        InputError
            If ``texts`` is one string.
        """
        if isinstance(texts, str):
            raise InputError("identify expects a list of texts, found one string; pass [text]")
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> str | None:
        words = [rest for word in content_words(text) if (rest := self._without_name(word))]
        kept = " ".join(words)
        for name in self._unspaced:  # names inside a run of Chinese are no words of their own
            kept = kept.replace(name, " ")
        return self._decide(kept) if kept.strip() else None

    def _without_name(self, word: str) -> str:
        """Drop a neutral word, and the name before an apostrophe (Turkish "Kenji'nin")."""
        if word.casefold() in self.neutral:
            return ""
        name, _, ending = word.replace("\u2019", "'").partition("'")
        return ending if name.casefold() in self.neutral else word


def identifier(
    name: str,
    languages: Sequence[str],
    *,
    neutral: Iterable[str] = (),
    vocabulary: Mapping[str, Iterable[str]] | None = None,
    min_confidence: float = 0.0,
) -> Identifier:
    """Make a language identifier that chooses among ``languages``.

    Parameters
    ----------
    name : str
        ``"lingua"`` (lingua-language-detector), ``"py3langid"``, ``"strict"`` (every word must be
        in the vocabulary of exactly one language) or ``"script"`` (by writing system alone).
        ``"default"`` is the better of the two libraries.
    languages : sequence of str
        At least two languages, in any spelling; answers come as FLORES codes.
    neutral : iterable of str
        Words that carry no language, such as names of people.
    vocabulary : mapping of str to iterable of str, optional
        Words of each language; for ``"strict"`` only, and required there.
    min_confidence : float
        Below this probability the answer is ``None``; for the two libraries only.

    Returns
    -------
    Identifier

    Raises
    ------
    InputError
        If the name is unknown, fewer than two or repeated languages are given, a language is not
        known to the library, or a vocabulary is missing.
    MissingExtraError
        If the library is not installed.

    Notes
    -----
    Whatever a library answers, a text with less than a quarter of its letters in the script of
    the answer's language stays undecided (a quarter, because names are often left in Latin).
    """
    backend = DEFAULT if name == "default" else name
    if backend not in BACKENDS:
        raise InputError(
            f"no identifier called '{name}'; expected one of {', '.join(BACKENDS)} or default"
        )
    codes = _canonical(languages)
    words = frozenset(part.casefold() for text in neutral for part in content_words(text))
    known: dict[str, frozenset[str]] | None = None
    if vocabulary is not None:
        pairs = zip(_canonical(tuple(vocabulary)), vocabulary.values(), strict=True)
        known = {code: frozenset(_vocabulary_words(items)) for code, items in pairs}
    version, decide = BACKENDS[backend](codes, known, min_confidence)
    runs = sorted((word for word in words if main_script(word) in UNSPACED), key=len, reverse=True)
    return Identifier(backend, version, codes, words, tuple(runs), _in_right_script(decide))


def agreement(found: Sequence[str | None], expected: Sequence[str]) -> tuple[int, int, int]:
    """Count texts that were identified right, wrong, and not at all.

    Raises
    ------
    InputError
        If the two lengths differ.
    """
    if len(found) != len(expected):
        raise InputError(f"{len(found)} identified texts but {len(expected)} expected languages")
    right = sum(a == b for a, b in zip(found, expected, strict=True))
    undecided = sum(a is None for a in found)
    return right, len(found) - right - undecided, undecided


def content_words(text: str) -> list[str]:
    """Split text into runs of letters: what is left without digits, marks and punctuation."""
    # words of scripts with combining vowels (Devanagari, Thai) hold marks that \w leaves out
    kept = unicodedata.normalize("NFC", text).translate(_KEPT)
    return [word for word in kept.split() if _WORD.search(word) or any(map(str.isalpha, word))]


class _Kept(dict[int, str]):
    """Table for `str.translate`: what is no letter or mark becomes a space."""

    def __missing__(self, point: int) -> str:
        char = chr(point)
        kept = unicodedata.category(char)[0] in "LM" or char in "'\u2019\u02bc-"
        self[point] = char if kept else " "
        return self[point]


_KEPT = _Kept()


def _vocabulary_words(items: Iterable[str]) -> Iterable[str]:
    for item in items:
        for word in content_words(item):
            yield word.casefold()


def _canonical(languages: Sequence[str]) -> tuple[str, ...]:
    from lens.data.languages import canonical

    if isinstance(languages, str):
        raise InputError(f"languages is one string '{languages}'; expected a list of codes")
    codes = tuple(canonical(code) for code in languages)
    repeated = sorted({code for code in codes if codes.count(code) > 1})
    if repeated or len(codes) < 2:
        raise InputError(
            f"languages are {list(languages)} (repeated: {repeated}); an identifier chooses among "
            "at least two different languages: add the pivot to the list"
        )
    return codes


def _in_right_script(decide: Decide) -> Callable[[str], str | None]:
    def checked(text: str) -> str | None:
        code = decide(text)
        return code if code is not None and share_in_script(text, code) >= _LEAST_SHARE else None

    return checked
