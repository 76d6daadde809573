"""The one row format of every number lens reports, and its file ``{"rows": [...]}``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lens.errors import InputError
from lens.utils.files import write_text

METRICS = ("fidelity", "accuracy_in_language", "accuracy_any", "kl")
AVERAGE = "mean"
"""The ``language`` of a row that averages over the non-pivot languages."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One measured number.

    Parameters
    ----------
    system : str
        What was measured, for example ``"unchanged"`` or ``"lens"``.
    language : str
        FLORES code, or ``"mean"`` for the average over the non-pivot languages.
    split : str
        Data split, for example ``"test"``.
    metric : str
        ``fidelity``, ``accuracy_in_language``, ``accuracy_any`` (shares) or ``kl`` (nats).
    value : float
        The estimate.
    n : int
        Number of items it was measured on.
    low, high : float or None
        95 % interval, where there is one.
    seed : int or None
        Seed of the run the number belongs to.
    """

    system: str
    language: str
    split: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict; a value that is not finite becomes ``None``."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResultRow:
        """Build a row from a dict.

        Raises
        ------
        InputError
            If a field is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        required = {"system", "language", "split", "metric", "value", "n"}
        missing, unknown = required - set(data), set(data) - known
        if missing or unknown:
            raise InputError(
                f"a result row has missing fields {sorted(missing)} and unknown fields "
                f"{sorted(unknown)}; expected {sorted(required)} and optionally low, high, seed; "
                "make the file again with lens.evaluation.write_rows"
            )
        values = dict(data)
        values["value"] = math.nan if values["value"] is None else float(values["value"])
        return cls(**values)


def _finite(value: Any) -> Any:
    """JSON has no NaN; a number that could not be measured is written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows_to_json(rows: Iterable[ResultRow], *, about: Mapping[str, Any] | None = None) -> str:
    """Return ``{"rows": [...]}`` (and ``"about"`` when given) as indented JSON text."""
    content: dict[str, Any] = {"rows": [row.to_dict() for row in rows]}
    if about is not None:
        content["about"] = dict(about)
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def rows_from_json(text: str, *, source: str = "the text") -> list[ResultRow]:
    """Read rows back from :func:`rows_to_json` output.

    Raises
    ------
    InputError
        If the text is not JSON, has no list ``rows``, or a row is malformed.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(
            f'{source} is not JSON ({error}); expected {{"rows": [...]}} as results.json has it'
        ) from None
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise InputError(
            f"{source} holds no list 'rows'; expected {{\"rows\": [...]}} as results.json has it"
        )
    return [ResultRow.from_dict(row) for row in rows]


def write_rows(
    path: str | Path, rows: Iterable[ResultRow], *, about: Mapping[str, Any] | None = None
) -> Path:
    """Write rows as JSON; the file is complete or absent, never half-written."""
    target = Path(path)
    write_text(target, rows_to_json(rows, about=about))
    return target


def read_rows(path: str | Path) -> list[ResultRow]:
    """Read a file made by :func:`write_rows`.

    Raises
    ------
    InputError
        If the file is absent or is not a results file.
    """
    return rows_from_json(read_text(path), source=str(path))


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, or say plainly why it cannot be read.

    Raises
    ------
    InputError
        If the file is absent, is a folder, or is not UTF-8.
    """
    target = Path(path)
    try:
        return target.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no file '{target}'; check the path") from None
    except IsADirectoryError:
        raise InputError(f"'{target}' is a folder; expected a file") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{target}' is not UTF-8 (byte {error.start}); convert it, "
            f"for example: iconv -f LATIN1 -t UTF-8 '{target}'"
        ) from None
