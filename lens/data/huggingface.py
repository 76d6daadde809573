"""Parallel text from Hugging Face datasets: in memory, saved to disk, or as parquet files."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.data.found import Found, names_language, strings, take_columns
from lens.errors import MissingExtraError

if TYPE_CHECKING:
    from lens.data.forms import Choice


def is_dataset(source: object) -> bool:
    """Whether an object is a Dataset or DatasetDict, found out without importing datasets."""
    library = sys.modules.get("datasets")
    kinds = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
    found = tuple(getattr(library, kind) for kind in kinds if hasattr(library, kind))
    return bool(found) and isinstance(source, found)


def read_dataset(source: Any, choice: "Choice", found: Found) -> None:
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


def read_saved(folder: Path, choice: "Choice", found: Found) -> None:
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
            f"{folder.name}: cannot be read as a saved dataset ({_short(error)}); save it again"
        )
        return
    read_dataset(source, choice, found)


def read_parquet(files: list[Path], choice: "Choice", found: Found) -> None:
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
                f"{file.name}: cannot be read as parquet ({_short(error)}); fetch it again"
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
    splits: Mapping[str, Mapping[str, list[object]]], choice: "Choice", found: Found
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
    name: str, columns: Mapping[str, list[object]], choice: "Choice", found: Found
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


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
