"""Check text before anything is computed from it: languages, tokens, rows, alignment."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens.data.corpora import Source, read_found
from lens.data.language_id import can_judge, foreign_languages, main_script, share_in_script
from lens.data.languages import canonical, english_name
from lens.data.quality.alignment import check_alignment
from lens.data.quality.config import CheckSettings
from lens.data.quality.report import Finding, LanguageText, Level, TextReport, ordered
from lens.data.quality.rows import (
    check_rows,
    check_same_text,
    clearly_more,
    empty_rows,
    of_rows,
    repeated_rows,
    sample,
)
from lens.data.readers import ReadResult
from lens.errors import InputError, MissingExtraError
from lens.models.tokenization import ChatOptions, encode_prompts, uses_template
from lens.utils.progress import progress
from lens.utils.settings import takes

_LETTERS = 10
_LEAST_SHARE = 0.25
_JOINED = 50


@dataclass(frozen=True, slots=True)
class LanguageVerdict:
    """Numbers of rows judged, foreign, and in another script, and the findings."""

    judged: int
    foreign: int
    other_script: int
    findings: tuple[Finding, ...]


def check_language(code: str, rows: Sequence[str], *, most: int | None = None) -> LanguageVerdict:
    """Judge the script of rows, and the language of at most ``most`` of them, evenly spread."""
    scripts, script_rows = _script(code, rows)
    where = _spread(len(rows), most)
    try:
        if not can_judge(code):
            raise InputError("the identifier does not know it")
        found = foreign_languages([rows[i] for i in where], code)
    except MissingExtraError as error:
        note = Finding("warning", "identity", "", "no language was judged", str(error))
        return LanguageVerdict(0, 0, script_rows, (*scripts, note))
    except InputError:
        message = "the identifier does not know this language"
        advice = "only its script was judged; read a few rows yourself"
        note = Finding("note", "identity", code, message, advice)
        return LanguageVerdict(0, 0, script_rows, (*scripts, note))
    together = _together(code, rows, where)
    if together is not None:
        scripts = [*scripts, together]
    judged = sum(other is not None for other in found)
    hits = [(i, other) for i, other in zip(where, found, strict=True) if other]
    return LanguageVerdict(
        judged, len(hits), script_rows, (*scripts, *_identity(code, rows, hits, judged))
    )


def _identity(
    code: str, rows: Sequence[str], hits: list[tuple[int, str]], judged: int
) -> list[Finding]:
    if not hits:
        return []
    counts = Counter(other for _, other in hits)
    listed = ", ".join(f"{_name(other)} {n}" for other, n in counts.most_common(3))
    message = (
        f"{len(hits)} of {judged} rows judged ({len(hits) / judged:.1%}) are in another language: "
        f"{listed}"
    )
    advice = "translate these rows, or leave them out in every language"
    where = [i for i, _ in hits]
    return [of_rows("identity", code, rows, where, message, advice, n=judged, limit=0.01)]


def _together(code: str, rows: Sequence[str], where: Sequence[int]) -> Finding | None:
    """Judge rows as one text, which is surer than any of them where they are short."""
    said = [i for i in where if rows[i].strip()]
    chosen = [said[i] for i in _spread(len(said), _JOINED)]
    [other] = foreign_languages([" ".join(rows[i] for i in chosen)], code)
    if not other:
        return None
    message = f"taken together, its rows are in {_name(other)}"
    advice = "correct the key or the name of the file, or replace these rows"
    return Finding("warning", "identity", code, message, advice, *sample(rows, chosen))


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
    message = (
        f"{len(where)} of {n} rows ({len(where) / n:.1%}) are mostly in another script: {listed}"
    )
    advice = (
        "translate these rows, or leave them out in every language; where all are, give the "
        "script in the code, such as srp_Latn"
    )
    found = of_rows("script", code, rows, where, message, advice, n=n, limit=0.01)
    return [found], len(where)


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


PARITY = 4.0
"""Tokens per token of the pivot from which a warning is given."""
_UNKNOWN = 0.01


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens of one language: per row, unknown ones, and rows that are cut."""

    lengths: list[int]
    unknown: int
    cut: int


def count_tokens(tokenizer: Any, rows: Sequence[str], *, max_tokens: int | None = None) -> Counted:
    """Count the tokens of rows, with the special ones that the tokenizer adds."""
    encoded = tokenizer(list(rows), add_special_tokens=True)["input_ids"] if rows else []
    unknown = getattr(tokenizer, "unk_token_id", None)
    lengths = [len(ids) for ids in encoded]
    return Counted(
        lengths,
        0 if unknown is None else sum(list(ids).count(unknown) for ids in encoded),
        0 if max_tokens is None else sum(length > max_tokens for length in lengths),
    )


def check_tokens(
    counts: Mapping[str, Counted], pivot: str, *, max_tokens: int | None, given: bool
) -> list[Finding]:
    """Judge numbers of tokens, against the pivot's and a limit (``given`` by the user or not)."""
    found = []
    for code, counted in counts.items():
        ratio = parity(counted, counts[pivot])
        if ratio is not None and ratio > PARITY:
            message = (
                f"{ratio:.1f} tokens for each of {pivot}: the tokenizer hardly knows this language"
            )
            advice = (
                "means run over many more tokens than in the pivot: prefer --pooling last or "
                "weighted, and compare with a model whose tokenizer knows it"
            )
            found.append(Finding("warning", "tokens", code, message, advice))
        total = sum(counted.lengths)
        if clearly_more(counted.unknown, total, _UNKNOWN):
            message = f"{counted.unknown / total:.1%} of its tokens are unknown to the tokenizer"
            advice = "the model cannot read them; choose a model made for this language"
            found.append(Finding("warning", "tokens", code, message, advice))
        if counted.cut:
            limit = "max_tokens" if given else "what the model takes"
            message = (
                f"{counted.cut} of {len(counted.lengths)} rows "
                f"({counted.cut / len(counted.lengths):.1%}) are longer than {limit}, {max_tokens} "
                f"tokens (the longest: {max(counted.lengths)})"
            )
            advice = "shorten these rows in every language, or cut them by --max-tokens"
            if given:
                advice = "raise --max-tokens, or shorten these rows in every language"
            found.append(Finding("warning", "cut", code, message, advice))
    return found


def parity(counted: Counted, pivot: Counted) -> float | None:
    """Tokens per token of the pivot, over all rows."""
    below = sum(pivot.lengths)
    return sum(counted.lengths) / below if below and counted.lengths else None


def check_special(tokenizer: Any, code: str, rows: Sequence[str]) -> list[Finding]:
    """Find rows that hold the text of a special token, which the tokenizer would obey."""
    special = [str(token) for token in getattr(tokenizer, "all_special_tokens", []) if token]
    where = [i for i, row in enumerate(rows) if any(token in row for token in special)]
    if not where:
        return []
    message = f"{len(where)} row(s) hold the text of a special token ({', '.join(special[:6])})"
    advice = "remove it from the text: the tokenizer would read it as a command"
    return [Finding("warning", "special tokens", code, message, advice, *sample(rows, where))]


def check_template(tokenizer: Any, chat: ChatOptions | None = None) -> list[Finding]:
    """Find a chat template that writes the beginning-of-sequence token the tokenizer adds too."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or not uses_template(tokenizer, chat):
        return []
    begins = list(tokenizer("a", add_special_tokens=True)["input_ids"])[:1] == [bos]
    ours = encode_prompts(tokenizer, ["a"], chat=chat)[0]
    if ours[:2] == [bos, bos]:
        message = "the chat template writes the beginning-of-sequence token twice"
        advice = "repair the template: keep its first {{ bos_token }} only"
        return [Finding("warning", "template", "", message, advice)]
    if begins and ours[:1] == [bos]:
        message = (
            "the chat template writes the beginning-of-sequence token, and the tokenizer adds one"
        )
        advice = (
            "lens adds none to a rendered prompt; elsewhere pass add_special_tokens=False, or "
            "there are two"
        )
        return [Finding("note", "template", "", message, advice)]
    return []


_FEW = 100


@takes(CheckSettings)
def check_text(
    source: Source,
    *,
    tokenizer: Any = None,
    longest: int | None = None,
    settings: CheckSettings,
) -> TextReport:
    """Check parallel text: what it is, whether its rows fit together, and what a model reads.

    Rows that `lens.data.read_parallel` refuses are findings here. With ``missing_rows="drop"`` rows
    that are empty in some language will be left out: they are a note then, and left out here.

    Parameters
    ----------
    source
        As in `lens.data.read_parallel`.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Count tokens with it, and look at its chat template.
    longest : int, optional
        Length that the model takes.

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
    Language: `lens.data.language_id.foreign_languages`. Alignment: lengths, numbers and question
    marks of a row against the pivot's, in windows of 50 rows shifted by up to 3
    (`lens.data.quality.alignment`). A share of rows is a warning when its 95 % Wilson interval
    lies above the limit of the check, and a note below.
    """
    limit, judge, max_tokens = settings.limit, settings.judge, settings.max_tokens
    missing_rows = settings.missing_rows
    found = read_found(
        source, languages=settings.languages, split=settings.split, column=settings.column
    )
    findings = [_unreadable(problem) for problem in found.problems]
    most = limit if missing_rows == "refuse" else None
    rows = {code: found.rows[code][:most] for code in found.typed if code in found.rows}
    about = {"pivot": canonical(settings.pivot), "judge": judge, "max_tokens": max_tokens}
    if not rows:
        return TextReport(found.source, (), tuple(findings), about)
    centre = about["pivot"] if about["pivot"] in rows else next(iter(rows))
    findings += _counts(rows, missing_rows)
    empty = {code: len(empty_rows(texts)) for code, texts in rows.items()}
    if missing_rows == "drop":
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
        findings += check_template(tokenizer, settings.chat)
        findings += check_tokens(counted, centre, max_tokens=cap, given=cap == max_tokens)
        for code, texts in rows.items():
            findings += check_special(tokenizer, code, texts)
    entries, more = _each(rows, found, centre, judge, counted, empty)
    return TextReport(found.source, entries, ordered([*findings, *more]), about | _judge(entries))


def _each(
    rows: Mapping[str, list[str]],
    found: ReadResult,
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


def _counts(rows: Mapping[str, list[str]], missing_rows: str) -> list[Finding]:
    """Check numbers of rows and rows without text."""
    found = []
    counts = {code: len(texts) for code, texts in rows.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{code} {count}" for code, count in counts.items())
        message = f"unequal numbers of rows: {listed}"
        advice = (
            "row i must say the same in every language: find the row that is missing or too many "
            "(the checks below compare rows up to the shorter end)"
        )
        found.append(Finding("error", "counts", "", message, advice))
    if len(rows) < 2:
        message = f"one language only: {next(iter(rows))}"
        advice = "a language space is made of differences: add the pivot or another language"
        found.append(Finding("warning", "counts", "", message, advice))
    few = min(counts.values())
    if few < 2:
        advice = "give at least 2, better some hundreds"
        found.append(Finding("error", "counts", "", f"too few rows: {few}", advice))
    elif few < _FEW:
        advice = f"means of fewer than {_FEW} rows are unsure; lens inspect tells how unsure"
        found.append(Finding("note", "counts", "", f"{few} rows in a language", advice))
    level: Level = "error"
    advice = "fill them, or leave them out in every language: --missing-rows drop"
    if missing_rows == "drop":
        level, advice = "note", "left out in every language"
    for code, texts in rows.items():
        where = empty_rows(texts)
        if where:
            message = f"{len(where)} of {len(texts)} rows are empty"
            numbers = sample(texts, where)[0]
            found.append(Finding(level, "empty", code, message, advice, numbers))
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


def _nothing_left(empty: Mapping[str, int], found: ReadResult) -> Finding:
    emptiest = sorted(empty, key=lambda code: -empty[code])[:3]
    listed = ", ".join(f"{found.typed[code]} {empty[code]}" for code in emptiest)
    message = f"no row has text in every language; empty rows: {listed}"
    return Finding("error", "empty", "", message, "choose languages that share rows with --langs")


def _unreadable(problem: str) -> Finding:
    return Finding("error", "reading", "", problem, "repair the source, then check it again")


def _judge(entries: Sequence[LanguageText]) -> dict[str, str]:
    from lens.data.language_id import judge_version

    try:
        return {"identifier": judge_version()}
    except MissingExtraError:
        return {}
