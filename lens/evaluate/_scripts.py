"""Writing systems: which script a text is written in, and which a language uses."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

# ISO 15924 code -> first word of the Unicode names of its letters
_NAMES: dict[str, tuple[str, ...]] = {
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Beng": ("BENGALI",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",),
    "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",),
    "Gujr": ("GUJARATI",),
    "Guru": ("GURMUKHI",),
    "Hang": ("HANGUL",),
    "Hans": ("CJK",),
    "Hant": ("CJK",),
    "Hebr": ("HEBREW",),
    "Jpan": ("CJK", "HIRAGANA", "KATAKANA"),
    "Khmr": ("KHMER",),
    "Knda": ("KANNADA",),
    "Laoo": ("LAO",),
    "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",),
    "Mymr": ("MYANMAR",),
    "Olck": ("OL",),
    "Orya": ("ORIYA",),
    "Sinh": ("SINHALA",),
    "Taml": ("TAMIL",),
    "Telu": ("TELUGU",),
    "Tfng": ("TIFINAGH",),
    "Thai": ("THAI",),
    "Tibt": ("TIBETAN",),
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
