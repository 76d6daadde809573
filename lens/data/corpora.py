"""Read parallel rows of text: one file per language, JSONL, JSON or TSV, plain or compressed."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lens.data.languages import canonical, is_language
from lens.errors import InputError

# Column names of data sets that happen to be language codes as well ("doc" is Northern Dong).
_NOT_LANGUAGES = {
    "item", "doc", "ref", "url", "title", "text", "topic", "split", "category", "label", "row",
    "key", "source",
}  # fmt: skip
_SHOWN = 5


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
    """

    rows: dict[str, list[str]]
    typed: dict[str, str]
    source: str


@dataclass(slots=True)
class _Raw:
    """Rows as found, by canonical code, and everything that is wrong with them."""

    rows: dict[str, list[str]] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, typed: str, rows: list[str]) -> None:
        """Take in one language; a second spelling of the same one is a problem."""
        code = canonical(typed)
        if code in self.rows:
            self.problems.append(
                f"duplicate language {code}: given as {self.typed[code]!r} and as {typed!r}; "
                "keep one"
            )
            return
        self.rows[code], self.typed[code] = rows, typed


def read_parallel(
    path: str | Path,
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    min_rows: int = 2,
) -> Corpus:
    """Read parallel text and check all of it before anything is computed.

    Parameters
    ----------
    path : str or Path
        A folder of ``<code>.txt`` (line i parallel) or ``<code>.json`` (a list of rows); a
        ``.jsonl`` file with one key per language in each line; a ``.json`` file with one list per
        language; a ``.tsv`` file with language codes in its first line. Files may end in ``.gz``
        or ``.xz``.
    languages : sequence of str, optional
        Languages to read, in any spelling; all that the data has by default.
    limit : int, optional
        Number of rows to read from the start.
    min_rows : int
        Fewest rows that make sense.

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
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise InputError(f"data '{path}' does not exist; expected a folder or a file of rows")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected a number of rows from 1")
    raw = _read_folder(place) if place.is_dir() else _read_file(place)
    typed = dict(raw.typed)
    if languages is not None:
        typed = _select(raw, languages)
    if not raw.rows and not raw.problems:
        raw.problems.append("no language was found in it")
    _check(raw, min_rows, limit)
    if raw.problems:
        shown = "\n".join(f"  {problem}" for problem in raw.problems)
        raise InputError(f"the data in '{path}' cannot be used:\n{shown}")
    rows = {code: raw.rows[code][:limit] for code in typed}
    return Corpus(rows=rows, typed=typed, source=place.name)


def _select(raw: _Raw, languages: Sequence[str]) -> dict[str, str]:
    """Keep the languages asked for; report those that are unknown, repeated or absent."""
    typed: dict[str, str] = {}
    for name in languages:
        try:
            code = canonical(name)
        except InputError as error:
            raw.problems.append(str(error))
            continue
        if code in typed:
            raw.problems.append(
                f"duplicate language {code}: asked for as {typed[code]!r} and as {name!r}; keep one"
            )
            continue
        typed[code] = name
        if code not in raw.rows:
            has = ", ".join(raw.rows) or "none"
            raw.problems.append(f"missing language {name!r} ({code}); the data has: {has}")
    raw.rows = {code: rows for code, rows in raw.rows.items() if code in typed}
    return typed


def _check(raw: _Raw, min_rows: int, limit: int | None) -> None:
    counts = {code: len(rows) for code, rows in raw.rows.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{code} {count}" for code, count in counts.items())
        raw.problems.append(f"unequal numbers of rows: {listed}; row i must be parallel in all")
    for code, rows in raw.rows.items():
        empty = [i + 1 for i, row in enumerate(rows[:limit]) if not row.strip()]
        if empty:
            more = ", ..." if len(empty) > _SHOWN else ""
            listed = ", ".join(map(str, empty[:_SHOWN]))
            raw.problems.append(f"{code}: {len(empty)} empty row(s): {listed}{more}")
    few = min(counts.values(), default=min_rows)
    if few < min_rows:
        raw.problems.append(f"too few rows: {few}; expected at least {min_rows} in each language")


def _read_folder(folder: Path) -> _Raw:
    raw = _Raw()
    files = sorted(p for p in folder.iterdir() if _kind(p) in (".txt", ".json"))
    for file in files:
        stem = file.name.split(".", 1)[0]
        if not is_language(stem):
            continue
        lines = _lines(file, raw)
        if _kind(file) == ".txt":
            raw.add(stem, lines)
            continue
        try:
            raw.add(stem, _strings(json.loads("\n".join(lines)), file.name, raw))
        except json.JSONDecodeError as error:
            raw.problems.append(f"{file.name}: not JSON ({error})")
    if not raw.rows and not raw.problems:
        raw.problems.append("no <code>.txt or <code>.json in the folder (such as swh_Latn.txt)")
    return raw


def _read_file(file: Path) -> _Raw:
    readers: dict[str, Callable[[list[str], str, _Raw], None]] = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".tsv": _read_tsv,
    }
    raw = _Raw()
    reader = readers.get(_kind(file))
    if reader is None:
        raw.problems.append(
            f"unknown kind of file '{file.name}'; expected .jsonl, .json or .tsv (also .gz, .xz), "
            "or a folder of <code>.txt"
        )
        return raw
    reader(_lines(file, raw), file.name, raw)
    return raw


def _read_jsonl(lines: list[str], name: str, raw: _Raw) -> None:
    records: list[dict[str, object]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raw.problems.append(f"{name} line {number}: not JSON ({error})")
            continue
        if not isinstance(record, dict):
            raw.problems.append(f"{name} line {number}: expected an object with a key per language")
            continue
        records.append(record)
    keys = dict.fromkeys(key for record in records for key in record)
    for key in keys:
        # A language has text; a number or a list under a key that looks like one is something else.
        values = [record.get(key, "") for record in records]
        if _names_language(key) and all(isinstance(value, str) for value in values):
            raw.add(key, [str(value) for value in values])


def _read_json(lines: list[str], name: str, raw: _Raw) -> None:
    try:
        content = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        raw.problems.append(f"{name}: not JSON ({error})")
        return
    if not isinstance(content, dict):
        raw.problems.append(f"{name}: expected an object with one list of rows per language")
        return
    for key, rows in content.items():
        if _names_language(key):
            raw.add(key, _strings(rows, f"{name} {key!r}", raw))


def _read_tsv(lines: list[str], name: str, raw: _Raw) -> None:
    table = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not table:
        raw.problems.append(f"{name}: empty; expected language codes in the first line")
        return
    header, *body = table
    for number, cells in enumerate(body, start=2):
        if len(cells) != len(header):
            raw.problems.append(
                f"{name} line {number}: {len(cells)} columns; expected {len(header)}"
            )
    for column, key in enumerate(header):
        if _names_language(key):
            raw.add(key, [cells[column] if column < len(cells) else "" for cells in body])


def _names_language(key: str) -> bool:
    return key.lower() not in _NOT_LANGUAGES and is_language(key)


def _strings(rows: object, where: str, raw: _Raw) -> list[str]:
    if isinstance(rows, list) and all(isinstance(row, str) for row in rows):
        return rows
    raw.problems.append(f"{where}: expected a list of strings, one row each")
    return []


def _kind(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".xz"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _lines(file: Path, raw: _Raw) -> list[str]:
    """Lines of a file; undecodable ones are reported and kept as blanks of text."""
    opener = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(file.suffix.lower())
    content = file.read_bytes()
    if opener is not None:
        try:
            content = opener(content)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raw.problems.append(f"{file.name}: cannot be decompressed ({error})")
            return []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        broken = [
            number
            for number, line in enumerate(content.split(b"\n"), start=1)
            if not _decodes(line)
        ]
        listed = ", ".join(map(str, broken[:_SHOWN])) + (", ..." if len(broken) > _SHOWN else "")
        raw.problems.append(f"{file.name}: not UTF-8 in line(s) {listed}; convert it to UTF-8")
        text = content.decode("utf-8-sig", errors="replace")
    # Only line ends separate rows: str.splitlines would also cut at U+2028 and others.
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline="\n")]


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
