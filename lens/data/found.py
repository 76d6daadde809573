"""Rows of text as they are found in a source, with everything that is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lens.data.languages import canonical, is_language

SHOWN = 5
"""How many rows or keys a message names."""

# Column names of data sets that happen to be language codes as well ("doc" is Northern Dong).
_NOT_LANGUAGES = {
    "item", "doc", "ref", "url", "title", "text", "topic", "split", "category", "label", "row",
    "key", "source",
}  # fmt: skip
# How data sets with one column per language and field spell a column: "sentence_eng_Latn".
_FIELDS = ("sentence", "text")
_LANGUAGE_COLUMNS = ("lang", "language", "lang_code", "locale")


@dataclass(slots=True)
class Found:
    """Rows as found, by canonical code, and everything that is wrong with them.

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
        Canonical code of a language that came twice to what is to be told about it.
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
    columns: Mapping[str, Sequence[object]], name: str, found: Found, *, column: str | None
) -> None:
    """Take the languages out of a table.

    Parameters
    ----------
    columns : mapping
        Name to cells: a language's text, or an object with several fields of text, of which
        `column` names one. A column ``translation`` of such objects by language is taken apart,
        and ``sentence_eng_Latn`` is English.
    name : str
        What the table is called in messages.
    found : Found
        Where rows and problems go.
    column : str, optional
        Field of the objects, or prefix of the columns.
    """
    if _is_translation(columns):
        objects = [cell if isinstance(cell, dict) else {} for cell in columns["translation"]]
        keys = dict.fromkeys(key for cell in objects for key in cell)
        columns = {key: [cell.get(key) for cell in objects] for key in keys}
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


def names_language(key: str) -> bool:
    """Whether a key of a table means a language, and not one of the usual other columns."""
    return key.lower() not in _NOT_LANGUAGES and is_language(key)


def strings(rows: object, where: str, found: Found, *, column: str | None = None) -> list[str]:
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
    found: Found,
    column: str | None,
) -> None:
    """Say why a table that may hold languages gave none."""
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
