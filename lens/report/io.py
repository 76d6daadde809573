"""A run on disk: results.json (the rows), record.json (all of it) and report.html (the page)."""

from __future__ import annotations

from pathlib import Path

from lens.errors import InputError
from lens.evaluation.results import read_text, write_rows
from lens.report.html import render
from lens.report.record import RunRecord
from lens.utils.files import write_text

RECORD, RESULTS, PAGE = "record.json", "results.json", "report.html"
MERGING = "merging"  # folder of the demo's second act


def write_run(record: RunRecord, folder: str | Path) -> Path:
    """Write ``results.json``, ``record.json`` and ``report.html`` into a folder.

    Parameters
    ----------
    record : RunRecord
        A finished run.
    folder : str or Path
        Made if absent; each file appears complete or not at all.

    Returns
    -------
    Path
        The page.
    """
    page = render(record)  # first: a record that cannot be shown writes nothing
    target = Path(folder)
    write_rows(target / RESULTS, record.rows)
    write_text(target / RECORD, record.to_json())
    write_text(target / PAGE, page)
    return target / PAGE


def read_run(path: str | Path) -> RunRecord:
    """Read a run from its folder or from the path of its ``record.json``.

    Raises
    ------
    InputError
        If there is no record there, or it cannot be read.
    """
    target = Path(path)
    if target.is_dir():
        if not (target / RECORD).is_file():
            raise InputError(
                f"'{target}' holds no {RECORD}; expected a run folder as 'lens demo' writes it"
            )
        target = target / RECORD
    return RunRecord.from_json(read_text(target), source=str(target))


def is_run(path: str | Path) -> bool:
    """Whether a folder holds a run and nothing else, so that a new run may take its place."""
    target = Path(path)
    if not target.is_dir():
        return False
    names = {item.name for item in target.iterdir()}
    inside = MERGING not in names or is_run(target / MERGING)
    return RECORD in names and names <= {RECORD, RESULTS, PAGE, MERGING} and inside
