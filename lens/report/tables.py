"""Tables as plain data, for pages and terminals alike, and the opening paragraph of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lens.data.languages import english_name
from lens.errors import InputError
from lens.evaluation.results import AVERAGE, ResultRow
from lens.report.record import RunRecord

METRIC_LABELS = {
    "fidelity": "In the language asked",
    "accuracy_in_language": "Correct, in that language",
    "accuracy_any": "Correct, in any language",
    "kl": "KL drift",
}

N_BESIDE = "n beside each"  # below a column whose rows have different n


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as text with its interval; ``n`` only where it is not in the heading."""

    value: str = "–"
    interval: str = ""
    n: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column.

    Parameters
    ----------
    label, group, below : str
        The heading, the group it stands under, and the smaller line below it.
    css : {"", "text", "why"}
        Of the page: ``text`` and ``why`` hold prose, aligned left.
    meaning : str
        One sentence for the notes below the table.
    """

    label: str
    group: str = ""
    below: str = ""
    css: str = ""
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: its heading, a cell for each column, and whether it is emphasised."""

    label: str
    cells: Sequence[Cell]
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table for a page or a terminal; ``stub`` is the heading of the row labels."""

    columns: Sequence[Column]
    rows: Sequence[TableRow]
    stub: str = "System"


def language_name(code: str) -> str:
    """English name of a FLORES code, or the code itself."""
    try:
        return english_name(code)
    except InputError:
        return code


def number(value: float | None, metric: str) -> str:
    """Format a share with two decimals and a divergence with three; en dash for nothing."""
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if metric == "kl" else f"{value:.2f}"


def cell(row: ResultRow | None, *, with_n: bool = False) -> Cell:
    """Format one row."""
    if row is None:
        return Cell()
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{number(row.low, row.metric)}–{number(row.high, row.metric)}"
    return Cell(number(row.value, row.metric), interval, f"{row.n:,}" if with_n else "")


def main_table(record: RunRecord) -> Table:
    """Systems by measures: averages over the other languages, then the pivot."""
    pivot = language_name(record.pivot)
    wanted = [(AVERAGE, metric) for metric in ("fidelity", "accuracy_in_language", "accuracy_any")]
    wanted += [(record.pivot, "accuracy_in_language"), (record.pivot, "kl")]
    labels = {
        (record.pivot, "accuracy_in_language"): "Correct",
        (record.pivot, "kl"): "KL drift, nats",
    }
    heads = [
        (pair, labels.get(pair, METRIC_LABELS[pair[1]]), pivot if pair[0] != AVERAGE else "")
        for pair in wanted
        if any(record.find(s.name, *pair) for s in record.ordered_systems())
    ]
    others = sum(code != record.pivot for code in record.languages())
    average = f"Average of {others} language{'s' if others != 1 else ''}"
    return _table(record, [(pair, label, group or average) for pair, label, group in heads])


def language_table(record: RunRecord, metric: str) -> Table:
    """Systems by languages for one metric."""
    wanted = [((code, metric), language_name(code), "") for code in record.languages()]
    if record.find(record.main, AVERAGE, metric):
        wanted.append(((AVERAGE, metric), "Average", ""))
    return _table(record, wanted)


def _table(record: RunRecord, wanted: list[tuple[tuple[str, str], str, str]]) -> Table:
    """Put n into the heading where a whole column shares it, else into each cell."""
    systems = record.ordered_systems()
    columns, by_column = [], []
    for pair, label, group in wanted:
        rows = [record.find(system.name, *pair) for system in systems]
        counts = {row.n for row in rows if row is not None}
        shared = len(counts) == 1
        columns.append(Column(label, group, f"n = {counts.pop():,}" if shared else N_BESIDE))
        by_column.append([cell(row, with_n=not shared) for row in rows])
    lines = [
        TableRow(system.label, [cells[i] for cells in by_column], system.name == record.main)
        for i, system in enumerate(systems)
    ]
    return Table(columns, lines)


def finding(record: RunRecord) -> str:
    """One paragraph in plain words with the numbers; empty where too little was measured."""
    if record.summary:
        return record.summary
    before, after = record.baseline, record.main
    labels = {system.name: system.label for system in record.ordered_systems()}
    sentences = []
    spoken = _pair(record, before, after, AVERAGE, "fidelity")
    if spoken:
        sentences.append(
            f"Averaged over {len(record.languages()) - 1} languages other than "
            f"{language_name(record.pivot)}, the share of answers in the language of the question "
            f"went from {spoken} with {labels[after]}."
        )
    right = _pair(record, before, after, AVERAGE, "accuracy_in_language")
    if right:
        sentences.append(
            f"The share that is both correct and in that language went from {right}"
            f"{_share_of_possible(record, labels)}."
        )
    kept = _pair(record, before, after, record.pivot, "accuracy_in_language")
    if kept:
        drift = record.find(after, record.pivot, "kl")
        by = (
            f"; its next-token distribution moved by {number(drift.value, 'kl')} nats"
            if drift
            else ""
        )
        sentences.append(f"{language_name(record.pivot)} accuracy went from {kept}{by}.")
    return " ".join(sentences)


def _pair(record: RunRecord, before: str, after: str, language: str, metric: str) -> str:
    old, new = record.find(before, language, metric), record.find(after, language, metric)
    if old is None or new is None:
        return ""
    return f"{_spoken(old)} to {_spoken(new)}"


def _spoken(row: ResultRow) -> str:
    shown = cell(row)
    if not shown.interval:
        return shown.value
    unbroken = shown.interval.replace("–", "\u2060–\u2060")  # no line ends inside an interval
    return f"{shown.value} ({unbroken})"


def _share_of_possible(record: RunRecord, labels: dict[str, str]) -> str:
    best = record.find(record.upper, AVERAGE, "accuracy_in_language")
    ours = record.find(record.main, AVERAGE, "accuracy_in_language")
    if best is None or ours is None or best.value <= 0 or record.upper == record.main:
        return ""
    label = labels[record.upper]
    return (
        f", which is {100 * ours.value / best.value:.0f} % of what {label[:1].lower() + label[1:]} "
        f"reaches ({number(best.value, 'fidelity')})"
    )
