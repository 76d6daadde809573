"""Checks of single rows: empty, repeated, damaged, or equal in two languages."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from lens.data.quality.report import Finding, Level
from lens.stats import wilson

_SHOWN = 3
_WIDTH = 70
# A text is compared across languages only when it is long enough not to be a name or a title.
_LETTERS = 20


def normalised(text: str) -> str:
    """Return text with its spaces and composed characters in one spelling."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def clearly_more(count: int, n: int, share: float) -> bool:
    """Whether a share of rows is above a limit beyond what chance would give (Wilson, 95 %)."""
    return n > 0 and bool(wilson(count, n)[0] > share)


def sample(rows: Sequence[str], where: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Numbers from 1 and beginnings of some rows, the last fields of a finding."""
    chosen = list(where[:_SHOWN])
    return tuple(i + 1 for i in chosen), tuple(_short(rows[i]) for i in chosen)


def of_rows(
    check: str,
    code: str,
    rows: Sequence[str],
    where: Sequence[int],
    message: str,
    advice: str,
    *,
    n: int,
    limit: float,
) -> Finding:
    """Report some of n rows: a warning where their share is clearly above a limit, else a note."""
    level: Level = "warning" if clearly_more(len(where), n, limit) else "note"
    return Finding(level, check, code, message, advice, *sample(rows, where))


def empty_rows(rows: Sequence[str]) -> list[int]:
    """Rows without text."""
    return [i for i, row in enumerate(rows) if not row.strip()]


def damaged_rows(rows: Sequence[str]) -> list[int]:
    """Rows with the mark of undecodable bytes, or with control characters."""
    return [i for i, row in enumerate(rows) if "\ufffd" in row or any(map(_is_control, row))]


def repeated_rows(rows: Sequence[str]) -> list[int]:
    """Rows with the text of an earlier row."""
    seen: set[str] = set()
    found = []
    for i, row in enumerate(rows):
        text = normalised(row)
        if text and text in seen:
            found.append(i)
        seen.add(text)
    return found


def merged_rows(rows: Sequence[str], pivot: Sequence[str]) -> list[int]:
    """Rows that repeat an earlier one though the pivot's row says something new."""
    fresh = set(range(len(pivot))) - set(repeated_rows(pivot))
    return [i for i in repeated_rows(rows) if i in fresh]


def same_text(rows: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[int, str]]]:
    """Rows that are the same in another language: language to (row, the other language).

    Of two languages the later one is named, so that the pivot, which comes first, is not.
    """
    found: dict[str, list[tuple[int, str]]] = {code: [] for code in rows}
    for i in range(min(map(len, rows.values()), default=0)):
        owners: dict[str, str] = {}
        for code, texts in rows.items():
            text = normalised(texts[i]).casefold()
            if sum(map(str.isalpha, text)) < _LETTERS:
                continue
            if text in owners:
                found[code].append((i, owners[text]))
            owners.setdefault(text, code)
    return found


def check_rows(code: str, rows: Sequence[str], pivot: Sequence[str]) -> list[Finding]:
    """Find repeated and damaged rows of one language."""
    found = []
    damaged = damaged_rows(rows)
    if damaged:
        message = f"{len(damaged)} row(s) hold control characters or the mark of undecodable bytes"
        advice = "decode the source again as UTF-8, or leave these rows out"
        n = len(rows)
        found.append(of_rows("characters", code, rows, damaged, message, advice, n=n, limit=0.001))
    merged = merged_rows(rows, pivot)
    if merged:
        n = len(rows) - len(empty_rows(rows))
        message = (
            f"{len(merged)} row(s) ({len(merged) / max(1, n):.1%}) repeat an earlier one though "
            "the pivot's do not"
        )
        advice = (
            "look whether they were copied; repeated rows count twice and make means look surer "
            "than they are"
        )
        found.append(of_rows("repeated", code, rows, merged, message, advice, n=n, limit=0.05))
    return found


def check_same_text(rows: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, list[Finding]]]:
    """Count rows that are the same in another language, with a finding where there are some."""
    out: dict[str, tuple[int, list[Finding]]] = {}
    for code, hits in same_text(rows).items():
        findings = []
        if hits:
            other = Counter(owner for _, owner in hits).most_common(1)[0][0]
            n, where = len(rows[code]), [i for i, _ in hits]
            message = (
                f"{len(hits)} row(s) ({len(hits) / n:.1%}) are the same text as in {other}: not "
                "translated"
            )
            advice = "translate them, or leave them out in every language"
            findings.append(
                of_rows("same text", code, rows[code], where, message, advice, n=n, limit=0.01)
            )
        out[code] = (len(hits), findings)
    return out


def _is_control(char: str) -> bool:
    return unicodedata.category(char) == "Cc" and char not in "\t\n\r\x85"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
