"""Canonical language codes: three letters and a script, as FLORES writes them (``swh_Latn``)."""

import difflib
import re
from collections.abc import Iterable
from functools import cache

import langcodes
from langcodes.tag_parser import LanguageTagError

from lens.errors import InputError

# FLORES names the individual language where the common code stands for a group, or was replaced.
_INDIVIDUAL = dict(
    pair.split(":")
    for pair in (
        "ara:arb aym:ayr aze:azj cmn:zho din:dik ekk:est fas:pes fil:tgl ful:fuv kau:knc kur:kmr "
        "lav:lvs mlg:plt mon:khk msa:zsm nep:npi nor:nob ori:ory orm:gaz pus:pbt que:quy sqi:als "
        "swa:swh uzb:uzn yid:ydd"
    ).split()
)

# The script FLORES writes a language in where the usual guess is another, or a rarer code.
_SCRIPTS = {"crh": "Latn", "kor": "Hang", "tzm": "Tfng"}
_SCRIPTS |= dict.fromkeys(("acm", "acq", "ajp", "azb", "pbt"), "Arab")
_CHARSET = re.compile(r"\.(utf-?8|iso-?8859-?\d+)$", re.IGNORECASE)  # "pt_BR.UTF-8"
_SAME_SCRIPT = {"Kore": "Hang"}
# Codes of FLORES that the registry takes for a region of another language (Dari, of Persian).
_KEPT = {"prs": ("prs_Arab", "Dari")}


class UnknownLanguageError(InputError):
    """A text does not name a language."""


@cache
def canonical(code: str) -> str:
    """Turn any spelling of a language into its FLORES code.

    Parameters
    ----------
    code : str
        ``"sw"``, ``"swa"``, ``"swh_Latn"``, ``"sw-KE"``, ``"Swahili"``, ``"Kiswahili"``, ...

    Returns
    -------
    str
        Three letters, an underscore and the script, such as ``"swh_Latn"``.

    Raises
    ------
    UnknownLanguageError
        When no language has this code or name; the message gives the nearest names.

    Examples
    --------
    >>> canonical("sw"), canonical("zh-TW"), canonical("English")
    ('swh_Latn', 'zho_Hant', 'eng_Latn')
    """
    text = _CHARSET.sub("", code.strip())
    first = text.replace("_", "-").partition("-")[0].lower()
    if first in _KEPT:
        return _KEPT[first][0]
    language = _parse(text)
    if language is None:
        raise UnknownLanguageError(
            f"unknown language {code!r}; expected a code such as 'sw', 'swh' or 'swh_Latn', or an "
            f"English name{_nearest(code)}"
        )
    letters = language.to_alpha3()
    individual = _INDIVIDUAL.get(letters, letters)
    usual = _SCRIPTS.get(individual) or language.maximize().script or "Latn"
    script = language.script or usual
    return f"{individual}_{_SAME_SCRIPT.get(script, script)}"


def canonical_all(codes: Iterable[str]) -> dict[str, str]:
    """Canonical codes of several languages, each with the spelling given; refuses repeats."""
    found: dict[str, str] = {}
    problems: list[str] = []
    for code in codes:
        try:
            name = canonical(code)
        except UnknownLanguageError as error:
            problems.append(str(error))
            continue
        if name in found:
            problems.append(
                f"duplicate language: {found[name]!r} and {code!r} are both {name}; keep one"
            )
        found.setdefault(name, code)
    if problems:
        raise InputError("\n".join(problems))
    return found


def english_name(code: str) -> str:
    """English name of a language.

    Parameters
    ----------
    code : str
        Any spelling.

    Returns
    -------
    str
        Such as ``"Swahili"``.

    Raises
    ------
    UnknownLanguageError
        When the language is unknown.
    """
    letters, _, script = canonical(code).partition("_")
    if letters in _KEPT:
        return _KEPT[letters][1]
    # The name of the group is the common one: "Persian", not "Iranian Persian".
    groups = {one: group for group, one in _INDIVIDUAL.items() if group not in ("cmn", "ekk")}
    name = langcodes.Language.get(groups.get(letters, letters)).display_name()
    if letters == "zho":
        return f"{name} ({'traditional' if script == 'Hant' else 'simplified'})"
    return str(name)


def is_language(code: str) -> bool:
    """Whether `canonical` understands the text."""
    try:
        canonical(code)
    except UnknownLanguageError:
        return False
    return True


def _parse(text: str) -> langcodes.Language | None:
    """Read a code, else a name in any language."""
    if len(text) < 2:  # one letter is a name of a column rather than of a language
        return None
    try:
        language = langcodes.Language.get(text.replace("_", "-"))
    except (LanguageTagError, ValueError):
        try:
            language = langcodes.find(text)
        except LookupError:
            return None
    # Codes kept for private use ("qaa" to "qtz") are valid and mean nothing.
    named = language.is_valid() and not language.display_name().startswith("Unknown")
    letters = language.language or ""
    private = len(letters) == 3 and "qaa" <= letters <= "qtz"
    special = letters in ("und", "mul", "mis", "zxx", "")
    return None if special or private or not named else language


def _nearest(code: str) -> str:
    names = {langcodes.Language.get(c).display_name(): c for c in _common_codes()}
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(code.lower(), lowered, n=3, cutoff=0.6)
    if not close and len(code) <= 3:
        return ""
    listed = ", ".join(f"{lowered[c]} ({canonical(names[lowered[c]])})" for c in close)
    return f"; nearest: {listed}" if listed else ""


@cache
def _common_codes() -> tuple[str, ...]:
    from langcodes.data_dicts import LANGUAGE_ALPHA3

    return tuple(code for code in LANGUAGE_ALPHA3 if len(code) == 2)
