"""Check text before anything is computed from it: the data doctor."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens.checking.alignment import check_alignment
from lens.checking.findings import Finding, LanguageText, TextReport, ordered
from lens.checking.languages import check_language
from lens.checking.rows import check_rows, check_same_text, empty_rows, repeated_rows, sample
from lens.checking.tokens import (
    Counted,
    check_special,
    check_template,
    check_tokens,
    count_tokens,
    parity,
)
from lens.data.corpora import Source, read_found
from lens.data.found import Found
from lens.data.languages import canonical
from lens.errors import InputError, MissingExtraError
from lens.models.chat import ChatOptions
from lens.progress import progress

_FEW = 100


def check_text(
    source: Source,
    *,
    languages: Sequence[str] | None = None,
    pivot: str = "eng_Latn",
    tokenizer: Any = None,
    max_tokens: int | None = None,
    longest: int | None = None,
    chat: ChatOptions | None = None,
    limit: int | None = None,
    judge: int | None = None,
    split: str | None = None,
    column: str | None = None,
    incomplete: str = "refuse",
) -> TextReport:
    """Check parallel text: what it is, whether its rows fit together, and what a model reads.

    Parameters
    ----------
    source, languages, split, column, limit
        As in `lens.data.read_parallel`; rows that it refuses are findings here.
    pivot : str
        Language the others are compared with; the first one where it is absent.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Count tokens with it, and look at its chat template.
    max_tokens : int, optional
        Length that rows will be cut to.
    longest : int, optional
        Length that the model takes.
    chat : ChatOptions, optional
        Options of the chat template.
    judge : int, optional
        Judge the language of so many rows per language, evenly spread; all by default.
    incomplete : str
        ``"drop"`` when rows that are empty in some language will be left out: they are a note
        then, and left out here.

    Returns
    -------
    TextReport
        A table with one entry per language, and findings that say what to do.

    Raises
    ------
    InputError
        When the source does not exist, or a number makes no sense.

    Notes
    -----
    Language: `lens.evaluate.foreign_languages`. Alignment: lengths, numbers and question marks of
    a row against the pivot's, in windows of 50 rows shifted by up to 3 (`lens.checking.alignment`).
    A share of rows is a warning when its 95 % Wilson interval lies above the limit of the check,
    and a note below.
    """
    for name, value in (("limit", limit), ("judge", judge), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected a number from 1")
    found = read_found(source, languages=languages, split=split, column=column)
    findings = [_unreadable(problem) for problem in found.problems]
    most = limit if incomplete == "refuse" else None
    rows = {code: found.rows[code][:most] for code in found.typed if code in found.rows}
    about = {"pivot": canonical(pivot), "judge": judge, "max_tokens": max_tokens}
    if not rows:
        return TextReport(found.source, (), tuple(findings), about)
    centre = about["pivot"] if about["pivot"] in rows else next(iter(rows))
    findings += _counts(rows, incomplete)
    empty = {code: len(empty_rows(texts)) for code, texts in rows.items()}
    if incomplete == "drop":
        rows = _blanked(rows, limit)
        if not any(map(str.strip, rows[centre])):
            findings.append(_nothing_left(empty, found))
    counted: dict[str, Counted] = {}
    if tokenizer is not None:
        limits = [number for number in (max_tokens, longest) if number is not None]
        cap = min(limits, default=None)
        for code, texts in rows.items():
            said = [text for text in texts if text.strip()]
            counted[code] = count_tokens(tokenizer, said, max_tokens=cap)
        findings += check_template(tokenizer, chat)
        findings += check_tokens(counted, centre, max_tokens=cap, given=cap == max_tokens)
        for code, texts in rows.items():
            findings += check_special(tokenizer, code, texts)
    entries, more = _each(rows, found, centre, judge, counted, empty)
    return TextReport(found.source, entries, ordered([*findings, *more]), about | _judge(entries))


def _each(
    rows: Mapping[str, list[str]],
    found: Found,
    centre: str,
    judge: int | None,
    counted: Mapping[str, Counted],
    empty: Mapping[str, int],
) -> tuple[tuple[LanguageText, ...], list[Finding]]:
    """Check every language."""
    ordered_rows = {centre: rows[centre], **rows}  # the pivot first: others are the same as it
    same = check_same_text(ordered_rows)
    entries, findings = [], []
    for code in progress(list(rows), "Checking", unit="language"):
        texts = rows[code]
        judged = check_language(code, texts, most=judge)
        aligned: tuple[list[Finding], int, float | None] = ([], 0, 1.0)
        if code != centre:
            aligned = check_alignment(code, texts, centre, rows[centre])
        findings += [*judged.findings, *check_rows(code, texts, rows[centre])]
        findings += [*same[code][1], *aligned[0]]
        mine = counted.get(code)
        entries.append(
            LanguageText(
                code=code,
                typed=found.typed[code],
                rows=sum(map(bool, map(str.strip, texts))),
                empty=empty[code],
                repeated=len(repeated_rows(texts)),
                judged=judged.judged,
                foreign=judged.foreign,
                other_script=judged.other_script,
                same_text=same[code][0],
                odd_length=aligned[1],
                length_ratio=aligned[2],
                tokens_ratio=None if mine is None else parity(mine, counted[centre]),
                cut=None if mine is None else mine.cut,
            )
        )
    return tuple(entries), findings


def _counts(rows: Mapping[str, list[str]], incomplete: str) -> list[Finding]:
    """Look at numbers of rows and rows without text."""
    found = []
    counts = {code: len(texts) for code, texts in rows.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{code} {count}" for code, count in counts.items())
        found.append(Finding(
            "error", "counts", "", f"unequal numbers of rows: {listed}",
            "row i must say the same in every language: find the row that is missing or too many "
            "(the checks below compare rows up to the shorter end)",
        ))  # fmt: skip
    if len(rows) < 2:
        found.append(Finding(
            "warning", "counts", "", f"one language only: {next(iter(rows))}",
            "a language space is made of differences: add the pivot or another language",
        ))  # fmt: skip
    few = min(counts.values())
    if few < 2:
        found.append(Finding(
            "error", "counts", "", f"too few rows: {few}", "give at least 2, better some hundreds",
        ))  # fmt: skip
    elif few < _FEW:
        found.append(Finding(
            "note", "counts", "", f"{few} rows in a language",
            f"means of fewer than {_FEW} rows are unsure; lens inspect tells how unsure",
        ))  # fmt: skip
    for code, texts in rows.items():
        where = empty_rows(texts)
        if where:
            found.append(Finding(
                "note" if incomplete == "drop" else "error", "empty", code,
                f"{len(where)} of {len(texts)} rows are empty",
                "left out in every language" if incomplete == "drop" else
                "fill them, or leave them out in every language: --incomplete drop",
                sample(texts, where)[0],
            ))  # fmt: skip
    return found


def _blanked(rows: Mapping[str, list[str]], limit: int | None) -> dict[str, list[str]]:
    """Empty every row that is empty in some language, so that the others keep their numbers."""
    few = min(map(len, rows.values()))
    kept = [i for i in range(few) if all(texts[i].strip() for texts in rows.values())][:limit]
    stop, chosen = (kept[-1] + 1 if kept else 0), set(kept)
    return {
        code: [text if i in chosen else "" for i, text in enumerate(texts[:stop])]
        for code, texts in rows.items()
    }


def _nothing_left(empty: Mapping[str, int], found: Found) -> Finding:
    emptiest = sorted(empty, key=lambda code: -empty[code])[:3]
    listed = ", ".join(f"{found.typed[code]} {empty[code]}" for code in emptiest)
    return Finding(
        "error", "empty", "", f"no row has text in every language; empty rows: {listed}",
        "choose languages that share rows with --langs",
    )  # fmt: skip


def _unreadable(problem: str) -> Finding:
    return Finding("error", "reading", "", problem, "repair the source, then check it again")


def _judge(entries: Sequence[LanguageText]) -> dict[str, str]:
    from lens.evaluate.foreign import judge_version

    try:
        return {"identifier": judge_version()}
    except MissingExtraError:
        return {}
