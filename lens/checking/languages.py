"""Checks of what language and script rows are in."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lens.checking.findings import Finding
from lens.checking.rows import clearly_more, sample
from lens.data.languages import english_name
from lens.errors import InputError, MissingExtraError
from lens.evaluate._scripts import main_script, share_in_script
from lens.evaluate.foreign import can_judge, foreign_languages

_LETTERS = 10
_LEAST_SHARE = 0.25
_JOINED = 50


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found about the language of some rows: how many were judged, and findings."""

    judged: int
    foreign: int
    other_script: int
    findings: tuple[Finding, ...]


def check_language(code: str, rows: Sequence[str], *, most: int | None = None) -> Judged:
    """Judge the language and the script of rows.

    Parameters
    ----------
    code : str
        Canonical code the rows should be in.
    rows : sequence of str
        Text.
    most : int, optional
        Judge the language of so many rows at most, evenly spread.

    Returns
    -------
    Judged
        Counts and findings.
    """
    scripts, script_rows = _script(code, rows)
    where = _spread(len(rows), most)
    try:
        if not can_judge(code):
            raise InputError("the identifier does not know it")
        found = foreign_languages([rows[i] for i in where], code)
    except MissingExtraError as error:
        note = Finding("warning", "identity", "", "no language was judged", str(error))
        return Judged(0, 0, script_rows, (*scripts, note))
    except InputError:
        note = Finding(
            "note", "identity", code, "the identifier does not know this language",
            "only its script was judged; read a few rows yourself",
        )  # fmt: skip
        return Judged(0, 0, script_rows, (*scripts, note))
    together = _together(code, rows, where)
    if together is not None:
        scripts = [*scripts, together]
    judged = sum(other is not None for other in found)
    hits = [(i, other) for i, other in zip(where, found, strict=True) if other]
    return Judged(judged, len(hits), script_rows, (*scripts, *_identity(code, rows, hits, judged)))


def _identity(
    code: str, rows: Sequence[str], hits: list[tuple[int, str]], judged: int
) -> list[Finding]:
    if not hits:
        return []
    counts = Counter(other for _, other in hits)
    listed = ", ".join(f"{_name(other)} {n}" for other, n in counts.most_common(3))
    share = len(hits) / judged
    where = [i for i, _ in hits]
    return [Finding(
        "warning" if clearly_more(len(hits), judged, 0.01) else "note", "identity", code,
        f"{len(hits)} of {judged} rows judged ({share:.1%}) are in another language: {listed}",
        "translate these rows, or leave them out in every language", *sample(rows, where),
    )]  # fmt: skip


def _together(code: str, rows: Sequence[str], where: Sequence[int]) -> Finding | None:
    """Judge rows as one text, which is surer than any of them where they are short."""
    said = [i for i in where if rows[i].strip()]
    chosen = [said[i] for i in _spread(len(said), _JOINED)]
    [other] = foreign_languages([" ".join(rows[i] for i in chosen)], code)
    if not other:
        return None
    return Finding(
        "warning", "identity", code, f"taken together, its rows are in {_name(other)}",
        "correct the key or the name of the file, or replace these rows", *sample(rows, chosen),
    )  # fmt: skip


def _script(code: str, rows: Sequence[str]) -> tuple[list[Finding], int]:
    where = [
        i
        for i, row in enumerate(rows)
        if sum(map(str.isalpha, row)) >= _LETTERS
        and share_in_script(row, code, by_bytes=True) < _LEAST_SHARE
    ]
    if not where:
        return [], 0
    counts = Counter(main_script(rows[i]).capitalize() for i in where)
    listed = ", ".join(f"{script} {n}" for script, n in counts.most_common(3))
    n = sum(1 for row in rows if row.strip())
    finding = Finding(
        "warning" if clearly_more(len(where), n, 0.01) else "note", "script", code,
        f"{len(where)} of {n} rows ({len(where) / n:.1%}) are mostly in another script: {listed}",
        "translate these rows, or leave them out in every language; where all are, give the "
        "script in the code, such as srp_Latn", *sample(rows, where),
    )  # fmt: skip
    return [finding], len(where)


def _spread(n: int, most: int | None) -> list[int]:
    """Evenly spread row numbers, all of them where they are few."""
    if most is None or n <= most:
        return list(range(n))
    return [i * n // most for i in range(most)]


def _name(code: str) -> str:
    try:
        return f"{english_name(code)} ({code})"
    except InputError:
        return code
