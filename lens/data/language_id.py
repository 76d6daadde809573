"""Identify the language and script of a text, with named and versioned identifiers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.metadata import version as installed
from typing import Any

from lens.data.languages import canonical
from lens.errors import InputError, MissingExtraError

# ISO 15924 code to the first words of the Unicode names of its letters
_NAMES: dict[str, tuple[str, ...]] = {
    code: tuple(names.split(","))
    for code, _, names in (
        entry.partition(":")
        for entry in (
            "Arab:ARABIC Armn:ARMENIAN Beng:BENGALI Cyrl:CYRILLIC Deva:DEVANAGARI Ethi:ETHIOPIC "
            "Geor:GEORGIAN Grek:GREEK Gujr:GUJARATI Guru:GURMUKHI Hang:HANGUL Hans:CJK Hant:CJK "
            "Hebr:HEBREW Jpan:CJK,HIRAGANA,KATAKANA Khmr:KHMER Knda:KANNADA Laoo:LAO Latn:LATIN "
            "Mlym:MALAYALAM Mymr:MYANMAR Olck:OL Orya:ORIYA Sinh:SINHALA Taml:TAMIL Telu:TELUGU "
            "Tfng:TIFINAGH Thai:THAI Tibt:TIBETAN"
        ).split()
    )
}

UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
"""Scripts that put no spaces between words."""


def script_of(code: str) -> frozenset[str]:
    """Names of the scripts that the language of a FLORES code is written in."""
    tag = code.partition("_")[2]
    return frozenset(_NAMES.get(tag, (tag.upper(),)))


def share_in_script(text: str, code: str, *, by_bytes: bool = False) -> float:
    """Share of the letters of ``text`` that are in a script of the language; 0 for no letters.

    ``by_bytes`` counts a letter by its bytes in UTF-8, so that one Chinese character weighs as
    much as three Latin letters, about what it says.
    """
    counts = {
        char: n * len(char.encode("utf-8", "replace")) if by_bytes else n
        for char, n in Counter(text).items()
        if char.isalpha()
    }
    scripts = script_of(code)
    inside = sum(n for char, n in counts.items() if _letter_script(char) in scripts)
    return inside / max(1, sum(counts.values()))


def main_script(text: str) -> str:
    """Return the script of most letters of ``text`` (empty for no letters; ties: the first)."""
    counts = Counter(_letter_script(char) for char in text if char.isalpha())
    if {"HIRAGANA", "KATAKANA"} & counts.keys():  # kanji beside kana is Japanese, not Chinese
        counts["HIRAGANA"] += counts.pop("CJK", 0) + counts.pop("KATAKANA", 0)
    return counts.most_common(1)[0][0] if counts else ""


@lru_cache(maxsize=65536)
def _letter_script(char: str) -> str:
    name = unicodedata.name(char, "")
    return name.replace("-", " ").split(" ", 1)[0]


Decide = Callable[[str], str | None]
Vocabulary = Mapping[str, frozenset[str]]
Backend = Callable[[Sequence[str], Vocabulary | None, float], tuple[str, Decide]]


def _lingua(
    languages: Sequence[str], vocabulary: Vocabulary | None, min_confidence: float
) -> tuple[str, Decide]:
    try:
        import lingua
    except ImportError:
        raise MissingExtraError(
            "lingua-language-detector", "langid", "identifier 'lingua'"
        ) from None
    members = sorted(_members(lingua.Language), key=lambda member: member.name)
    by_code = _labels(
        {m: (m.iso_code_639_3.name.lower(), m.iso_code_639_1.name.lower()) for m in members}
    )
    chosen = _pick(languages, by_code, "lingua-language-detector")
    detector = lingua.LanguageDetectorBuilder.from_languages(*chosen).build()

    def decide(text: str) -> str | None:
        ranked = detector.compute_language_confidence_values(text)
        if not ranked or ranked[0].value <= max(min_confidence, 1e-12):
            return None
        if len(ranked) > 1 and ranked[0].value == ranked[1].value:
            return None
        return chosen[ranked[0].language]

    return installed("lingua-language-detector"), decide


def _members(enumeration: Any) -> list[Any]:
    """List lingua's languages: its enum comes from Rust and cannot be iterated everywhere."""
    return [getattr(enumeration, name) for name in dir(enumeration) if name.isupper()]


def _py3langid(
    languages: Sequence[str], vocabulary: Vocabulary | None, min_confidence: float
) -> tuple[str, Decide]:
    # an instance of its own: `set_languages` changes it
    model = _py3langid_model("identifier 'py3langid'")
    by_code = _labels({label: (label,) for label in model.nb_classes})
    chosen = _pick(languages, by_code, "py3langid")
    model.set_languages(list(chosen))

    def decide(text: str) -> str | None:
        ranked = model.rank(text)
        if ranked[0][1] < min_confidence or ranked[0][1] == ranked[1][1]:
            return None
        return chosen[ranked[0][0]]

    return installed("py3langid"), decide


def _strict(
    languages: Sequence[str], vocabulary: Vocabulary | None, min_confidence: float
) -> tuple[str, Decide]:
    missing = [code for code in languages if not (vocabulary or {}).get(code)]
    if vocabulary is None or missing:
        raise InputError(
            f"identifier 'strict' has no words for {missing or list(languages)}; "
            "pass vocabulary={language: words} with every language, or use 'lingua'"
        )
    words = vocabulary
    longest = {code: max(map(len, words[code])) for code in languages}

    def decide(text: str) -> str | None:
        fitting = [
            code
            for code in languages
            if all(
                word in words[code] or _covered(word, words[code], longest[code])
                for word in text.casefold().split()
            )
        ]
        return fitting[0] if len(fitting) == 1 else None

    return "1", decide


def _covered(run: str, words: frozenset[str], longest: int) -> bool:
    """Whether a run of an unspaced script can be cut into words of the vocabulary."""
    if main_script(run) not in UNSPACED:
        return False
    reachable = [True] + [False] * len(run)
    for end in range(1, len(run) + 1):
        reachable[end] = any(
            reachable[start] and run[start:end] in words
            for start in range(max(0, end - longest), end)
        )
    return reachable[-1]


def _script(
    languages: Sequence[str], vocabulary: Vocabulary | None, min_confidence: float
) -> tuple[str, Decide]:
    def decide(text: str) -> str | None:
        script = main_script(text)
        fitting = [code for code in languages if script in script_of(code)]
        return fitting[0] if len(fitting) == 1 else None

    return "1", decide


def _labels(spellings: Mapping[Any, tuple[str, ...]]) -> dict[str, Any]:
    """Map the language part of a FLORES code to a library's label; first labels win."""
    by_code: dict[str, Any] = {}
    for label, codes in spellings.items():
        for code in codes:
            try:
                by_code.setdefault(canonical(code).partition("_")[0], label)
            except InputError:
                continue
    return by_code


def _pick(languages: Sequence[str], by_code: Mapping[str, Any], library: str) -> dict[Any, str]:
    """Return label -> FLORES code of the wanted languages, in their order."""
    unknown = [code for code in languages if code.partition("_")[0] not in by_code]
    if unknown:
        raise InputError(
            f"{library} does not know {unknown}; drop them or choose another identifier "
            "(lingua, py3langid, strict with a vocabulary, script)"
        )
    chosen = {by_code[code.partition("_")[0]]: code for code in languages}
    if len(chosen) < len(languages):
        raise InputError(
            f"{library} cannot tell some of {list(languages)} apart (one label for two of them); "
            "give one language per label, or use identifier 'script'"
        )
    return chosen


BACKENDS: dict[str, Backend] = {
    "lingua": _lingua,
    "py3langid": _py3langid,
    "strict": _strict,
    "script": _script,
}


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
        Name and version of the identifier; report both with every number made with it.
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


LIKELIER = 1e3
"""How many times likelier than the expected language another one must be."""
LEAST_BYTES = 20
"""Shorter texts (in UTF-8, without digits and punctuation) are not judged."""


def foreign_languages(texts: Iterable[str], expected: str) -> list[str | None]:
    """For each text, the other language that it is in almost certainly.

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
    label = _judge_labels().get(canonical(expected).partition("_")[0])
    if label is None:
        raise InputError(
            f"py3langid does not know {canonical(expected)}; check its script and length instead"
        )
    return [_foreign(text, label) for text in texts]


def can_judge(language: str) -> bool:
    """Whether `foreign_languages` knows a language."""
    return canonical(language).partition("_")[0] in _judge_labels()


def judge_version() -> str:
    """Name and version of the library behind `foreign_languages`, to be recorded with results."""
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


def _py3langid_model(purpose: str) -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise MissingExtraError("py3langid", "langid", purpose) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@cache
def _model() -> Any:
    return _py3langid_model("finding rows in other languages")


@cache
def _judge_labels() -> dict[str, str]:
    """Language part of a FLORES code to the label of py3langid."""
    return _labels({label: (label,) for label in _model().nb_classes})
