"""Read rows of text from files, folders and datasets, with everything that is wrong with them."""

import bz2
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lens.data.languages import canonical, is_language
from lens.errors import MissingExtraError, first_line

SHOWN = 5
"""How many rows or keys a message names."""

# Column names of data sets that happen to be language codes as well ("doc" is Northern Dong).
_NOT_LANGUAGES = frozenset(
    "item doc ref url title text topic split category label row key source".split()
)
# How data sets with one column per language and field spell a column: "sentence_eng_Latn".
_FIELDS = ("sentence", "text")
_LANGUAGE_COLUMNS = ("lang", "language", "lang_code", "locale")


@dataclass(slots=True)
class ReadResult:
    """Rows of text by canonical code, not judged, and what could not be read.

    Attributes
    ----------
    rows : dict
        Canonical language code to its rows, not necessarily equally many.
    typed : dict
        Canonical language code to the spelling in the data.
    problems : list of str
        What could not be read, one line each.
    source : str
        Name of the file, folder or object.
    duplicates : dict
        Canonical code of a language that came twice to the message about it.
    """

    rows: dict[str, list[str]] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    source: str = ""
    duplicates: dict[str, str] = field(default_factory=dict)

    def add(self, typed: str, rows: list[str]) -> None:
        """Take in one language; a second spelling of the same one is a problem."""
        code = canonical(typed)
        if code in self.rows:
            self.duplicates[code] = (
                f"duplicate language {code}: given as {self.typed[code]!r} and as {typed!r}; "
                "keep one"
            )
            return
        self.rows[code], self.typed[code] = rows, typed


def take_columns(
    columns: Mapping[str, Sequence[object]], name: str, found: ReadResult, *, column: str | None
) -> None:
    """Add the languages of a table, name to cells, to the result.

    A cell is a language's text, or an object with several fields of text, of which ``column``
    names one. A column ``translation`` of such objects by language is taken apart, and
    ``sentence_eng_Latn`` is English.
    """
    if _is_translation(columns):
        objects = [cell if isinstance(cell, dict) else {} for cell in columns["translation"]]
        columns = _by_key(objects)
    nested: list[str] = []
    before = len(found.rows)
    for key, values in columns.items():
        typed = _language_of(key, column)
        if typed is None:
            continue
        cells = ["" if value is None else value for value in values]
        if any(isinstance(cell, dict) for cell in cells):
            if column is None:
                nested.append(key)
                continue
            cells = [cell.get(column) if isinstance(cell, dict) else cell for cell in cells]
        # A language has text; a number or a list under a key that looks like one is something else.
        if cells and all(isinstance(cell, str) for cell in cells):
            found.add(typed, [str(cell) for cell in cells])
    if len(found.rows) == before:
        _explain(columns, nested, name, found, column)


def _by_key(records: Sequence[dict[str, Any]]) -> dict[str, list[object]]:
    """Turn records into columns; a key that a record lacks gives None."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: [record.get(key) for record in records] for key in keys}


def names_language(key: str) -> bool:
    """Whether a key of a table means a language, and not one of the usual other columns."""
    return key.lower() not in _NOT_LANGUAGES and is_language(key)


def strings(rows: object, where: str, found: ReadResult, *, column: str | None = None) -> list[str]:
    """Return a list of rows that are text, or objects with text under `column`."""
    if isinstance(rows, list):
        if column is not None and all(isinstance(row, dict) for row in rows):
            rows = [row.get(column) for row in rows]
        if all(isinstance(row, str) for row in rows):
            return rows
    field = f" or objects with text under {column!r}" if column else ""
    found.problems.append(f"{where}: expected a list of strings{field}, one row each")
    return []


def _is_translation(columns: Mapping[str, Sequence[object]]) -> bool:
    cells = columns.get("translation", ())
    return bool(cells) and all(cell is None or isinstance(cell, dict) for cell in cells)


def _language_of(key: str, column: str | None) -> str | None:
    """Spelling of the language in a column's name, if there is one."""
    if names_language(key):
        return key
    for prefix in (column,) if column else _FIELDS:
        rest = key.removeprefix(f"{prefix}_")
        if rest != key and names_language(rest):
            return rest
    return None


def _explain(
    columns: Mapping[str, Sequence[object]],
    nested: list[str],
    name: str,
    found: ReadResult,
    column: str | None,
) -> None:
    """Add the reason why a table gave no language to the problems."""
    if nested:
        cell = next(cell for cell in columns[nested[0]] if isinstance(cell, dict))
        fields = [key for key, value in cell.items() if isinstance(value, str)]
        found.problems.append(
            f"{name}: {nested[0]} holds objects, not text; choose one of their fields with "
            f"column= (--column): {', '.join(fields) or 'none is text'}"
        )
    elif column is not None:
        found.problems.append(f"{name}: no language has text under column {column!r}")
    elif any(key.lower() in _LANGUAGE_COLUMNS for key in columns):
        found.problems.append(
            f"{name}: one row per language (it has a column with the language); expected one key "
            "per language in each row, or one file per language, so that rows stay parallel"
        )


COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
"""Endings of compressed files, after the ending of their kind."""


def kind(file: Path) -> str:
    """Return the ending of a file without that of its compression: ``.jsonl`` of ``a.jsonl.xz``."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_lines(file: Path, found: ReadResult) -> list[str]:
    """Lines of a UTF-8 file; undecodable ones are reported and kept with marks in their place."""
    content = _bytes(file, found)
    if content is None:
        return []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        broken = [
            number
            for number, line in enumerate(content.split(b"\n"), start=1)
            if not _decodes(line)
        ]
        listed = ", ".join(map(str, broken[:SHOWN])) + (", ..." if len(broken) > SHOWN else "")
        found.problems.append(f"{file.name}: not UTF-8 in line(s) {listed}; convert it to UTF-8")
        text = content.decode("utf-8-sig", errors="replace")
    # Only line ends separate rows: str.splitlines would also cut at U+2028 and others.
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline="\n")]


def _bytes(file: Path, found: ReadResult) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError as error:
        found.problems.append(f"{file.name}: cannot be read ({error.strerror})")
        return None
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED:
        return content
    try:
        return _decompressed(content, suffix)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        found.problems.append(
            f"{file.name}: cannot be decompressed ({error}); it is cut off or damaged: fetch or "
            "compress it again"
        )
        return None


def _decompressed(content: bytes, suffix: str) -> bytes:
    if suffix != ".zst":
        return {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}[suffix](
            content
        )
    # In the standard library from Python 3.14; before, a package brings it.
    for name in ("compression.zstd", "backports.zstd"):
        try:
            library: Any = import_module(name)
        except ImportError:
            continue
        try:
            return bytes(library.decompress(content))
        except library.ZstdError as error:
            raise ValueError(str(error)) from None
    raise MissingExtraError("backports.zstd", "zstd", "reading .zst on this Python")


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_dataset(source: object) -> bool:
    """Whether an object is a Dataset or DatasetDict, found out without importing datasets."""
    library = sys.modules.get("datasets")
    kinds = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
    found = tuple(getattr(library, kind) for kind in kinds if hasattr(library, kind))
    return bool(found) and isinstance(source, found)


def read_dataset(source: Any, choice: "Selection", found: ReadResult) -> None:
    """Take rows out of a Dataset or DatasetDict."""
    if type(source).__name__.startswith("Iterable"):
        found.problems.append(
            "a streamed dataset has no number of rows; take what you need first: "
            "datasets.Dataset.from_list(list(dataset.take(1000)))"
        )
        return
    if isinstance(source, dict):
        splits = {str(name): _columns(part) for name, part in source.items()}
        _take_split(splits, choice, found)
        return
    if choice.split is not None:
        found.problems.append(f"one dataset without splits; leave out split={choice.split!r}")
    take_columns(_columns(source), "the dataset", found, column=choice.column)


def read_saved(folder: Path, choice: "Selection", found: ReadResult) -> None:
    """Read a folder written by ``datasets.save_to_disk``."""
    try:
        from datasets import load_from_disk
    except ImportError:
        purpose = f"reading '{folder.name}', a folder of datasets.save_to_disk,"
        raise MissingExtraError("datasets", "datasets", purpose) from None
    try:
        source = load_from_disk(str(folder))
    except Exception as error:  # pyarrow and datasets raise whatever a damaged file leads to
        found.problems.append(
            f"{folder.name}: cannot be read as a saved dataset ({first_line(error)}); save it again"
        )
        return
    read_dataset(source, choice, found)


def read_parquet(files: list[Path], choice: "Selection", found: ReadResult) -> None:
    """Read parquet files: one per language, or the parts of one or more splits."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        purpose = f"reading '{files[0].name}'"
        raise MissingExtraError("pyarrow", "datasets", purpose) from None
    parts: dict[str, dict[str, list[object]]] = {}
    for file in files:
        try:
            schema = parquet.read_schema(file)
            wanted = [field.name for field in schema if _holds_text(field.type)]
            table: dict[str, list[object]] = parquet.read_table(file, columns=wanted).to_pydict()
        except Exception as error:  # pyarrow raises OSError, ArrowInvalid and more
            found.problems.append(
                f"{file.name}: cannot be read as parquet ({first_line(error)}); fetch it again"
            )
            continue
        stem = file.stem
        split = stem if names_language(stem) else stem.split("-", 1)[0]
        if split not in parts:
            parts[split] = table
            continue
        for name in parts[split].keys() | table.keys():  # a further part of the same split
            parts[split].setdefault(name, []).extend(table.get(name, []))
    if len(files) == 1 and not found.problems and choice.split is None:
        [(stem, table)] = parts.items()
        if not names_language(stem):
            take_columns(table, files[0].name, found, column=choice.column)
            return
    if parts:
        _take_split(parts, choice, found)


def _take_split(
    splits: Mapping[str, Mapping[str, list[object]]], choice: "Selection", found: ReadResult
) -> None:
    """Choose a split, or take each split as a language where that is what they are named after."""
    if choice.split is not None:
        if choice.split not in splits:
            has = ", ".join(splits) or "none"
            found.problems.append(f"no split {choice.split!r}; the data has: {has}")
            return
        name = f"split {choice.split!r}"
        take_columns(splits[choice.split], name, found, column=choice.column)
        return
    if splits and all(names_language(name) for name in splits):
        for name, columns in splits.items():
            _take_language(name, columns, choice, found)
        return
    if len(splits) != 1:
        listed = ", ".join(splits) or "none"
        found.problems.append(
            f"the data has several splits; choose one with split= (--split): {listed}"
        )
        return
    [(name, columns)] = splits.items()
    take_columns(columns, f"split {name!r}", found, column=choice.column)


def _take_language(
    name: str, columns: Mapping[str, list[object]], choice: "Selection", found: ReadResult
) -> None:
    """Take the text of a table that is one language."""
    texts = [key for key, cells in columns.items() if cells and isinstance(cells[0], str)]
    wanted = choice.column or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if wanted is None or wanted not in columns:
        has = ", ".join(texts) or "none"
        found.problems.append(f"{name}: choose its column of text with column= (--column): {has}")
        return
    rows = ["" if cell is None else cell for cell in columns[wanted]]
    found.add(name, strings(rows, f"{name} {wanted!r}", found))


def _columns(dataset: Any) -> dict[str, list[object]]:
    """Columns of text and of objects; images and numbers stay where they are."""
    schema = dataset.data.schema
    wanted = [name for name in dataset.column_names if _holds_text(schema.field(name).type)]
    return {name: list(dataset[name]) for name in wanted}


def _holds_text(kind: Any) -> bool:
    import pyarrow.types as types

    tests = ("is_string", "is_large_string", "is_string_view", "is_struct", "is_null")
    return any(getattr(types, test, lambda kind: False)(kind) for test in tests)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a source is wanted: a split and a field of text, where there are several."""

    split: str | None = None
    column: str | None = None


def read_path(place: Path, choice: Selection) -> ReadResult:
    """Read a folder or a file in whichever form it is."""
    found = ReadResult(source=place.name)
    if place.is_dir():
        _folder(place, choice, found)
        return found
    if kind(place) == ".parquet":
        read_parquet([place], choice, found)
        return found
    readers: dict[str, Callable[[list[str], str, ReadResult, str | None], None]] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".tsv": _tsv,
    }
    reader = readers.get(kind(place))
    if reader is None:
        found.problems.append(
            f"unknown kind of file '{place.name}'; expected .jsonl, .json or .tsv (also .gz, .xz, "
            ".bz2, .zst), .parquet, or a folder of <code>.txt"
        )
        return found
    reader(read_lines(place, found), place.name, found, choice.column)
    return found


def _folder(folder: Path, choice: Selection, found: ReadResult) -> None:
    names = {item.name for item in folder.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        read_saved(folder, choice, found)
        return
    files = sorted(p for p in folder.iterdir() if kind(p) in (".txt", ".json", ".jsonl"))
    for file in files:
        stem = file.name.split(".", 1)[0]
        if is_language(stem) and file.is_file():
            _one_language(file, stem, choice, found)
    tables = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not found.rows and not found.problems and tables:
        read_parquet(tables, choice, found)
    if not found.rows and not found.problems:
        found.problems.append(
            "no <code>.txt, .json or .jsonl in the folder (such as swh_Latn.txt), no .parquet, and "
            "it is not a folder of datasets.save_to_disk"
        )


def _one_language(file: Path, stem: str, choice: Selection, found: ReadResult) -> None:
    """Read a file that holds one language and is named after it."""
    before = len(found.problems)
    lines = read_lines(file, found)
    if not lines and len(found.problems) > before:
        return  # it could not be opened, which is among the problems
    if kind(file) == ".txt":
        found.add(stem, lines)
        return
    if kind(file) == ".json":
        try:
            content = json.loads("\n".join(lines))
        except json.JSONDecodeError as error:
            found.problems.append(f"{file.name}: not JSON ({error})")
            return
    else:
        content = _values(lines, file.name, found)
    field = choice.column or "text"
    found.add(stem, strings(content, file.name, found, column=field))


def _values(lines: list[str], name: str, found: ReadResult) -> list[object]:
    """One JSON value per line."""
    values: list[object] = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line) if line.strip() else {})
        except json.JSONDecodeError as error:
            found.problems.append(f"{name} line {number}: not JSON ({error})")
    return values


def _jsonl(lines: list[str], name: str, found: ReadResult, column: str | None) -> None:
    before = len(found.problems)
    values = _values(lines, name, found)
    records = [value for value in values if isinstance(value, dict)]
    if len(records) < len(values) and len(found.problems) == before:
        number = next(i for i, value in enumerate(values, start=1) if not isinstance(value, dict))
        found.problems.append(f"{name} line {number}: expected an object with a key per language")
    take_columns(_by_key(records), name, found, column=column)


def _json(lines: list[str], name: str, found: ReadResult, column: str | None) -> None:
    try:
        content = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        found.problems.append(f"{name}: not JSON ({error})")
        return
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        take_columns(_by_key(content), name, found, column=column)
        return
    if not isinstance(content, dict):
        found.problems.append(f"{name}: expected an object with one list of rows per language")
        return
    for key, rows in content.items():
        if names_language(key):
            found.add(key, strings(rows, f"{name} {key!r}", found, column=column))


def _tsv(lines: list[str], name: str, found: ReadResult, column: str | None) -> None:
    if not lines:
        found.problems.append(f"{name}: empty; expected language codes in the first line")
        return
    header, *body = [line.split("\t") for line in lines]
    for number, cells in enumerate(body, start=2):
        if len(cells) != len(header):
            found.problems.append(
                f"{name} line {number}: {len(cells)} columns; expected {len(header)}"
            )
    table = {
        key: [cells[place] if place < len(cells) else "" for cells in body]
        for place, key in enumerate(header)
    }
    take_columns(table, name, found, column=column)
