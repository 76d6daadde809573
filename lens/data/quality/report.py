"""Results of the text checks: one row per language, and findings with advice."""

import html
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Level: TypeAlias = Literal["error", "warning", "note"]

_LEVELS: tuple[Level, ...] = ("error", "warning", "note")
_HEAD = (
    "language",
    *("rows", "empty", "repeated", "other language", "other script", "same text"),
    *("odd length", "length", "tokens", "cut"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, or note, about the text.

    Attributes
    ----------
    level : str
        ``"error"``: the text cannot be used as it is; ``"warning"``: results would suffer;
        ``"note"``: good to know.
    check : str
        Which check found it, such as ``"identity"``.
    language : str
        Canonical code, or empty where it concerns all.
    message, advice : str
        What was found, and what to do next.
    rows : tuple of int
        Numbers of rows to look at, from 1.
    examples : tuple of str
        Beginnings of such rows.
    """

    level: Level
    check: str
    language: str
    message: str
    advice: str
    rows: tuple[int, ...] = ()
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line, then what to do, then examples."""
        where = f"{self.language}: " if self.language else ""
        lines = [f"{self.level}: {where}{self.message}", f"  -> {self.advice}"]
        for row, text in zip(self.rows, self.examples, strict=False):
            lines.append(f"  row {row}: {text}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class LanguageText:
    """Numbers of one language.

    Attributes
    ----------
    code, typed : str
        Canonical code, and as the user or the data spells it.
    rows, empty : int
        Rows that were checked, and those without text.
    repeated : int
        Rows with the text of an earlier row.
    judged, foreign : int
        Rows whose language was judged, and those that are in another one.
    other_script : int
        Rows written mostly in another script.
    same_text : int
        Rows that are the same, letter by letter, in another language.
    odd_length : int
        Rows more than three times as long or short, against the pivot's, as is usual.
    length_ratio : float or None
        Characters per character of the pivot, median over rows.
    tokens_ratio : float or None
        Tokens per token of the pivot, over all rows; None without a tokenizer.
    cut : int or None
        Rows longer than the model or ``max_tokens`` takes.
    """

    code: str
    typed: str
    rows: int
    empty: int = 0
    repeated: int = 0
    judged: int = 0
    foreign: int = 0
    other_script: int = 0
    same_text: int = 0
    odd_length: int = 0
    length_ratio: float | None = None
    tokens_ratio: float | None = None
    cut: int | None = None


@dataclass(frozen=True, slots=True)
class TextReport:
    """Result of all checks of a text.

    Attributes
    ----------
    source : str
        Name of the data.
    languages : tuple of LanguageText
        One entry per language.
    findings : tuple of Finding
        Errors first, then warnings, then notes.
    about : dict
        Which identifier, tokenizer and limits were used.
    """

    source: str
    languages: tuple[LanguageText, ...]
    findings: tuple[Finding, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def of_level(self, level: Level) -> tuple[Finding, ...]:
        """Return the findings of one level."""
        return tuple(found for found in self.findings if found.level == level)

    def passes(self, *, strict: bool = False) -> bool:
        """Whether the text can be used: no errors, and with ``strict`` no warnings either."""
        return not (self.of_level("error") or (strict and self.of_level("warning")))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def summary(self, *, notes: bool = False) -> str:
        """Return the table and the findings as text; notes only when asked for."""
        table = [_HEAD, *map(_cells, self.languages)]
        shown = [i for i in range(len(_HEAD)) if any(row[i] for row in table[1:])]
        widths = {i: max(len(row[i]) for row in table) for i in shown}
        lines = [
            "  ".join(
                row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i]) for i in shown
            ).rstrip()
            for row in table
        ]
        listed = [found for found in self.findings if notes or found.level != "note"]
        return "\n".join([*lines, *(f"\n{found}" for found in listed), "", self.verdict()])

    def verdict(self) -> str:
        """One line that counts the findings."""
        counts = [(level, len(self.of_level(level))) for level in _LEVELS]
        listed = ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts if n)
        return f"{self.source}: {listed or 'nothing to complain about'}"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(entry)) + "</tr>"
            for entry in self.languages
        )
        findings = "".join(f"<pre>{html.escape(str(found))}</pre>" for found in self.findings)
        return (
            f"<p>{html.escape(self.verdict())}</p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{findings}"
        )


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors first; within a level in the order they were found, each once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda found: _LEVELS.index(found.level)))


def _cells(entry: LanguageText) -> tuple[str, ...]:
    name = entry.typed if entry.typed == entry.code else f"{entry.typed} ({entry.code})"
    judged = f"{entry.foreign} of {entry.judged}" if entry.judged else "not judged"
    ratios = (entry.length_ratio, entry.tokens_ratio)
    length, tokens = (f"{value:.2f}" if value else "" for value in ratios)
    cut = "" if entry.cut is None else str(entry.cut)
    counts = map(str, (entry.rows, entry.empty, entry.repeated))
    more = map(str, (entry.other_script, entry.same_text, entry.odd_length))
    return (name, *counts, judged, *more, length, tokens, cut)
