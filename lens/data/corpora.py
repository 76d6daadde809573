"""Read parallel rows of text from any form, and refuse what cannot be used, all at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lens.data.config import MissingRows
from lens.data.languages import UnknownLanguageError, canonical
from lens.data.readers import SHOWN, ReadResult, strings
from lens.errors import InputError

Source: TypeAlias = Any
"""A path, a mapping from language to rows, or a Dataset or DatasetDict (no dependency)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Parallel rows: row i says the same in every language.

    Attributes
    ----------
    rows : dict
        Canonical language code to its rows.
    typed : dict
        Canonical language code to the spelling used in the data or the request.
    source : str
        Name of the file or folder.
    dropped : int
        Rows left out because they were empty in some language.
    """

    rows: dict[str, list[str]]
    typed: dict[str, str]
    source: str
    dropped: int = 0


def read_parallel(
    source: Source,
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    min_rows: int = 2,
    split: str | None = None,
    column: str | None = None,
    missing_rows: MissingRows = "refuse",
) -> Corpus:
    """Read parallel text and check all of it before anything is computed.

    Parameters
    ----------
    source : str, Path, mapping, datasets.Dataset or datasets.DatasetDict
        A folder of ``<code>.txt`` (line i parallel), ``<code>.json`` (a list of rows) or
        ``<code>.jsonl``; a ``.jsonl`` file with one key per language in each line; a ``.json``
        file with one list per language; a ``.tsv`` file with language codes in its first line.
        Text files may end in ``.gz``, ``.xz``, ``.bz2`` or ``.zst``. A ``.parquet`` file or folder
        of them, or a folder of ``datasets.save_to_disk``. In Python also language to rows, or a
        dataset itself.
    languages : sequence of str, optional
        Languages to read, in any spelling; all that the data has by default.
    limit : int, optional
        Number of rows to read from the start.
    min_rows : int
        Fewest rows that make sense.
    split, column : str, optional
        Split of a dataset, and field of text, where there are several.
    missing_rows : str
        What to do with rows that are empty in some language: ``"refuse"`` them, or ``"drop"`` them
        in every language, so that the others stay parallel.

    Returns
    -------
    Corpus
        Rows per language, equally many in each.

    Raises
    ------
    InputError
        When something is wrong; the message lists every problem at once: a language that is
        missing or given twice, unequal numbers of rows, empty rows, undecodable bytes, too few
        rows.
    MissingExtraError
        When the source needs a package that is not installed.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected a number of rows from 1")
    if missing_rows not in ("refuse", "drop"):
        raise InputError(f"missing_rows is {missing_rows!r}; expected 'refuse' or 'drop'")
    found = read_found(source, languages=languages, split=split, column=column)
    dropped = _drop_incomplete(found, limit) if missing_rows == "drop" else 0
    _check(found, min_rows, limit)
    if found.problems:
        shown = "\n".join(f"  {problem}" for problem in found.problems)
        raise InputError(f"the data in '{_name(source)}' cannot be used:\n{shown}")
    rows = {code: found.rows[code][:limit] for code in found.typed}
    return Corpus(rows=rows, typed=found.typed, source=found.source, dropped=dropped)


def read_found(
    source: Source,
    *,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    column: str | None = None,
) -> ReadResult:
    """Read text without judging its rows; what could not be read is listed in the result.

    Parameters
    ----------
    source, languages, split, column
        As in `read_parallel`.

    Returns
    -------
    ReadResult
        Rows by language and problems.

    Raises
    ------
    InputError
        When the source does not exist or is none.
    """
    from lens.data.readers import Selection, is_dataset, read_dataset, read_path

    choice = Selection(split, column)
    if is_dataset(source):
        found = ReadResult(source=type(source).__name__)
        read_dataset(source, choice, found)
    elif isinstance(source, Mapping):
        found = _from_mapping(source)
    elif isinstance(source, str | Path):
        place = Path(source).expanduser()
        if not place.exists():
            raise InputError(f"data '{source}' does not exist; expected a folder or a file of rows")
        found = read_path(place, choice)
    else:
        raise InputError(
            f"data is {type(source).__name__}; expected a path, language to rows, or a dataset"
        )
    if languages is not None:
        found.typed = _select(found, languages)
    # Two spellings of a language that is not read are no problem.
    found.problems += [text for code, text in found.duplicates.items() if code in found.typed]
    if not found.rows and not found.problems:
        found.problems.append("no language was found in it")
    return found


def _from_mapping(source: Mapping[Any, Any]) -> ReadResult:
    found = ReadResult(source="rows")
    for typed, rows in source.items():
        try:
            found.add(str(typed), strings(list(rows), str(typed), found))
        except UnknownLanguageError as error:
            found.problems.append(str(error))
    return found


def _select(found: ReadResult, languages: Sequence[str]) -> dict[str, str]:
    """Keep the languages asked for; report those that are unknown, repeated or absent."""
    typed: dict[str, str] = {}
    for name in languages:
        try:
            code = canonical(name)
        except UnknownLanguageError as error:
            found.problems.append(str(error))
            continue
        if code in typed:
            found.problems.append(
                f"duplicate language {code}: asked for as {typed[code]!r} and as {name!r}; keep one"
            )
            continue
        typed[code] = name
        if code not in found.rows:
            has = ", ".join(found.rows) or "none"
            found.problems.append(f"missing language {name!r} ({code}); the data has: {has}")
    found.rows = {code: found.rows[code] for code in typed if code in found.rows}
    return typed


def _drop_incomplete(found: ReadResult, limit: int | None) -> int:
    """Leave out rows that are empty somewhere, up to `limit` complete ones; return how many."""
    if len({len(rows) for rows in found.rows.values()}) != 1:
        return 0  # which rows belong together is unknown; the numbers are reported
    complete = [
        i for i, row in enumerate(zip(*found.rows.values(), strict=True)) if all(map(_said, row))
    ][:limit]
    seen = complete[-1] + 1 if complete and limit == len(complete) else -1
    total = len(next(iter(found.rows.values()))) if seen < 0 else seen
    found.rows = {code: [rows[i] for i in complete] for code, rows in found.rows.items()}
    return total - len(complete)


def _check(found: ReadResult, min_rows: int, limit: int | None) -> None:
    counts = {code: len(rows) for code, rows in found.rows.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{code} {count}" for code, count in counts.items())
        found.problems.append(f"unequal numbers of rows: {listed}; row i must be parallel in all")
    some_empty = False
    for code, rows in found.rows.items():
        empty = [i + 1 for i, row in enumerate(rows[:limit]) if not _said(row)]
        if empty:
            more = ", ..." if len(empty) > SHOWN else ""
            listed = ", ".join(map(str, empty[:SHOWN]))
            found.problems.append(f"{code}: {len(empty)} empty row(s): {listed}{more}")
            some_empty = True
    if some_empty:
        found.problems.append(
            "fill them, or leave them out in every language: missing_rows='drop' "
            "(--missing-rows drop)"
        )
    few = min(counts.values(), default=min_rows)
    if few < min_rows:
        found.problems.append(f"too few rows: {few}; expected at least {min_rows} in each language")


def _said(row: str) -> bool:
    return bool(row.strip())


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__
