"""The identifiers themselves: each turns cleaned text into a FLORES code or ``None``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as installed
from typing import Any

from lens.errors import InputError, MissingExtraError
from lens.evaluate._scripts import UNSPACED, main_script, script_of

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
    try:
        from py3langid import langid
    except ImportError:
        raise MissingExtraError("py3langid", "langid", "identifier 'py3langid'") from None
    # an instance of its own: the module's global one would be shared with the caller's code
    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
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
    """Map the language part of a FLORES code to a library's label, through our own table."""
    from lens.data.languages import canonical

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
