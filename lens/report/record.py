"""Everything a report shows, as plain dataclasses that survive a trip through JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lens.errors import InputError
from lens.evaluation.accuracy import SystemComparison
from lens.evaluation.results import ResultRow

SCHEMA = "lens.run/1"


@dataclass(frozen=True, slots=True)
class System:
    """A compared system: its name in the rows, a label for tables, one sentence on what it is."""

    name: str
    label: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class SpectrumCurve:
    """The language subspace at one site.

    Parameters
    ----------
    site : str
        ``"block.0"`` … or ``"final"``.
    singular_values : tuple of float
        Of the centred language means, descending.
    angles : tuple of float, degrees
        Principal angles to what :attr:`RunRecord.angles_note` names; may be empty.
    rank : int or None
        Rank in use.
    rank_reason : str
        Why that rank.
    """

    site: str
    singular_values: tuple[float, ...]
    angles: tuple[float, ...] = ()
    rank: int | None = None
    rank_reason: str = ""


@dataclass(frozen=True, slots=True)
class LossCurve:
    """One loss over optimizer steps."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GridCell:
    """One tried setting: strength λ of one language, and a metric on the validation split."""

    language: str
    strength: float
    metric: str
    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A real prompt with the answers before and after, and the expected answer."""

    language: str
    prompt: str
    before: str
    after: str
    expected: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A finished run, complete enough to be rendered again anywhere.

    Parameters
    ----------
    title : str
        Heading of the report.
    rows : tuple of ResultRow
        All numbers, of every system.
    spectra, losses, grid, examples, comparisons
        What the figures show; a part that is empty is left out of the page.
    about : dict
        How the run was made: versions, seeds, hashes, command. Plain JSON values, may be nested.
    systems : tuple of System
        Order, labels and notes of the systems; systems without an entry follow in row order.
    pivot, split : str
        Language that is kept out of averages, and the split the page reports.
    baseline, main, upper : str
        Systems that the text and the plots compare: before, after, and what is possible.
    angles_note : str
        What the angles of the spectra are measured against.
    summary : str
        The opening paragraph; written from the rows where it is empty.
    """

    title: str
    rows: tuple[ResultRow, ...]
    spectra: tuple[SpectrumCurve, ...] = ()
    losses: tuple[LossCurve, ...] = ()
    grid: tuple[GridCell, ...] = ()
    examples: tuple[Example, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    comparisons: tuple[SystemComparison, ...] = ()
    systems: tuple[System, ...] = ()
    pivot: str = "eng_Latn"
    split: str = "test"
    baseline: str = "unchanged"
    main: str = "lens"
    upper: str = "possible"
    angles_note: str = "the subspace of the site before"
    summary: str = ""

    def find(self, system: str, language: str, metric: str) -> ResultRow | None:
        """Return the row of the reported split, or ``None`` where it was not measured."""
        wanted = (system, language, metric, self.split)
        for row in self.rows:
            if (row.system, row.language, row.metric, row.split) == wanted:
                return row
        return None

    def ordered_systems(self) -> list[System]:
        """Every system that has rows, declared ones first, with a label each."""
        present = dict.fromkeys(row.system for row in self.rows if row.split == self.split)
        declared = [system for system in self.systems if system.name in present]
        names = {system.name for system in declared}
        found = [*declared, *(System(name) for name in present if name not in names)]
        return [System(s.name, s.label or s.name, s.note) for s in found]

    def languages(self) -> list[str]:
        """Languages of the reported split, the pivot first, without the average."""
        found = dict.fromkeys(
            row.language for row in self.rows if row.split == self.split and row.language != "mean"
        )
        return sorted(found, key=lambda code: code != self.pivot)

    def to_json(self) -> str:
        """Return the record as indented JSON; numbers that are not finite become null."""
        data = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "the text") -> RunRecord:
        """Read a record back.

        Raises
        ------
        InputError
            If the text is not a record of this schema, or a field is unknown or malformed.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"{source} is not JSON: {error}; expected a run record") from None
        schema = data.pop("schema", None) if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise InputError(
                f"{source} has schema {schema!r}; expected '{SCHEMA}', as record.json of a run "
                "folder has it"
            )
        for name, kind in _PARTS.items():
            data[name] = tuple(_build(kind, item, source) for item in data.get(name, ()))
        record: RunRecord = _construct(cls, data, source)
        return record


_PARTS: dict[str, Any] = {
    "rows": ResultRow,
    "spectra": SpectrumCurve,
    "losses": LossCurve,
    "grid": GridCell,
    "examples": Example,
    "comparisons": SystemComparison,
    "systems": System,
}


def _build(kind: Any, item: Mapping[str, Any], source: str) -> Any:
    if kind is ResultRow:
        return ResultRow.from_dict(item)
    values = {key: _numbers(value) for key, value in item.items()}
    return _construct(kind, values, source)


def _numbers(value: Any) -> Any:
    """Turn a JSON list into a tuple; null, which stands for NaN, back into it."""
    if not isinstance(value, list):
        return value
    return tuple(math.nan if item is None else item for item in value)


def _construct(kind: Any, values: Mapping[str, Any], source: str) -> Any:
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"{source}: {kind.__name__} has unknown fields {unknown}; expected {sorted(known)}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{source}: {kind.__name__} cannot be read: {error}") from None


def _plain(value: Any) -> Any:
    """Turn a value into what JSON has: NaN to null, tuples to lists, the rest by its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a NumPy scalar
        return _plain(value.item())
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
