"""The forms that parallel text comes in: folders and files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lens.data.found import Found, names_language, strings, take_columns
from lens.data.languages import is_language
from lens.data.opening import kind, read_lines


@dataclass(frozen=True, slots=True)
class Choice:
    """Which part of a source is wanted: a split and a field of text, where there are several."""

    split: str | None = None
    column: str | None = None


def read_path(place: Path, choice: Choice) -> Found:
    """Read a folder or a file in whichever form it is."""
    found = Found(source=place.name)
    if place.is_dir():
        _folder(place, choice, found)
        return found
    if kind(place) == ".parquet":
        from lens.data.huggingface import read_parquet

        read_parquet([place], choice, found)
        return found
    readers: dict[str, Callable[[list[str], str, Found, str | None], None]] = {
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


def _folder(folder: Path, choice: Choice, found: Found) -> None:
    names = {item.name for item in folder.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        from lens.data.huggingface import read_saved

        read_saved(folder, choice, found)
        return
    files = sorted(p for p in folder.iterdir() if kind(p) in (".txt", ".json", ".jsonl"))
    for file in files:
        stem = file.name.split(".", 1)[0]
        if is_language(stem) and file.is_file():
            _one_language(file, stem, choice, found)
    tables = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not found.rows and not found.problems and tables:
        from lens.data.huggingface import read_parquet

        read_parquet(tables, choice, found)
    if not found.rows and not found.problems:
        found.problems.append(
            "no <code>.txt, .json or .jsonl in the folder (such as swh_Latn.txt), no .parquet, and "
            "it is not a folder of datasets.save_to_disk"
        )


def _one_language(file: Path, stem: str, choice: Choice, found: Found) -> None:
    """Read a file that holds one language and is named after it."""
    before = len(found.problems)
    lines = read_lines(file, found)
    if not lines and len(found.problems) > before:
        return  # it could not be opened, which has been told
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


def _values(lines: list[str], name: str, found: Found) -> list[object]:
    """One JSON value per line."""
    values: list[object] = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line) if line.strip() else {})
        except json.JSONDecodeError as error:
            found.problems.append(f"{name} line {number}: not JSON ({error})")
    return values


def _jsonl(lines: list[str], name: str, found: Found, column: str | None) -> None:
    before = len(found.problems)
    values = _values(lines, name, found)
    records = [value for value in values if isinstance(value, dict)]
    if len(records) < len(values) and len(found.problems) == before:
        number = next(i for i, value in enumerate(values, start=1) if not isinstance(value, dict))
        found.problems.append(f"{name} line {number}: expected an object with a key per language")
    keys = dict.fromkeys(key for record in records for key in record)
    table = {key: [record.get(key) for record in records] for key in keys}
    take_columns(table, name, found, column=column)


def _json(lines: list[str], name: str, found: Found, column: str | None) -> None:
    try:
        content = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        found.problems.append(f"{name}: not JSON ({error})")
        return
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        keys = dict.fromkeys(key for row in content for key in row)
        table = {key: [row.get(key) for row in content] for key in keys}
        take_columns(table, name, found, column=column)
        return
    if not isinstance(content, dict):
        found.problems.append(f"{name}: expected an object with one list of rows per language")
        return
    for key, rows in content.items():
        if names_language(key):
            found.add(key, strings(rows, f"{name} {key!r}", found, column=column))


def _tsv(lines: list[str], name: str, found: Found, column: str | None) -> None:
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
