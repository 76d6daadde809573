"""Run a sweep, resumable, and summarise its results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lens.errors import InputError
from lens.experiments.config import Sweep, SweepRun, strings
from lens.experiments.summary import SummaryRow, summarise, tables
from lens.utils.files import write_text
from lens.utils.progress import say


class RunJournal:
    """Records by key, in a file that only grows.

    A run that was cut off leaves no line, or half a line, which is dropped when the file is opened
    again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.path}, line {number} is not a record of a run; move the file away to "
                    "start again"
                ) from None
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, record: dict[str, Any]) -> None:
        """Append a finished run; it survives a crash from here on.

        Raises
        ------
        InputError
            If the line cannot be written.
        """
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"cannot write '{self.path}': {error.strerror}; finished runs are kept, make room "
                "and start the same command again"
            ) from error
        self.records[record["key"]] = record


def identity(path: str) -> str:
    """Hash what a path holds; of files above 64 MiB only name, size and time."""
    root = Path(path)
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        if not file.exists():  # a hub id
            digest.update(path.encode())
            continue
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        digest.update(name.encode())
        facts = file.stat()
        if facts.st_size > 64 << 20:
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
        else:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def ablate(
    sweep: Sweep, out: str | Path, *, split: Literal["validation", "test"] = "validation"
) -> list[SummaryRow]:
    """Run what is not done yet and return the table.

    Parameters
    ----------
    sweep : Sweep
        From `read_sweep`.
    out : str or Path
        Folder: ``runs.jsonl`` grows with every finished run, ``table.md`` and ``results.json`` are
        written at the end. Runs found there with the same settings, data and model are not done
        again.
    split : {"validation", "test"}
        Questions to ask.

    Returns
    -------
    list of Line
        One per setting, in the order of the sweep.

    Raises
    ------
    InputError
        If data or model cannot be read, or the sweep has no such split.
    """
    from lens.experiments.study import Study

    if getattr(sweep, split) is None:
        raise InputError(f"the sweep has no '{split}:' questions; add them to the config")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    journal = RunJournal(out / "runs.jsonl")
    runs = sweep.expand()
    seen: dict[tuple[str, str, str | None], dict[str, str]] = {}
    study: tuple[str, Any] = ("", None)
    records: list[tuple[SweepRun, dict[str, Any]]] = []
    for number, run in enumerate(runs, 1):
        place = json.dumps(run.where, sort_keys=True)
        what = (place, run.setting.space, run.setting.checkpoint)
        if what not in seen:
            seen[what] = _inputs(sweep, run, split)
        key = run.key(sweep, split, seen[what])
        if key not in journal.records:
            if study[0] != place or study[1] is None:
                study = (place, Study(sweep, run.where))
            say(f"{number}/{len(runs)} {run.name}, seed {run.seed} {_spoken(run.where)}")
            head = {"key": key, "name": run.name, "seed": run.seed, "where": run.where}
            about = {"split": split, "setting": run.setting.model_dump(mode="json")}
            journal.add(head | about | study[1].run(run, split))
        records.append((run, journal.records[key]))
    lines = summarise(records, against=sweep.against)
    write_text(out / "table.md", tables(lines) + "\n")
    write_text(out / "results.json", _json(sweep, split, lines))
    return lines


def _inputs(sweep: Sweep, run: SweepRun, split: str) -> dict[str, str]:
    """Identity of everything a run reads, and the version that ran it."""
    import lens

    questions = getattr(sweep, split)
    paths = {
        "model": sweep.model,
        "prompts": sweep.prompts,
        "answers": sweep.answers,
        "texts": sweep.texts,
        "translator": sweep.translator,
        "checkpoint": run.setting.checkpoint,
        "reading": sweep.readings[run.setting.space].data,
        "questions": questions.prompts,
        "references": questions.references,
        "neutral": questions.neutral,
        "kinds": questions.kinds,
    }
    if run.setting.chooses:
        paths |= {
            "chosen on": sweep.validation.prompts,
            "chosen by": sweep.validation.references,
        }
    found = {name: identity(path) for name, path in strings(paths, run.where)}
    return {**found, "version": lens.__version__}


def _spoken(where: Mapping[str, str]) -> str:
    return f"({', '.join(f'{k} {v}' for k, v in where.items())})" if where else ""


def _json(sweep: Sweep, split: str, lines: Sequence[SummaryRow]) -> str:
    from lens.utils.versions import versions

    data = {
        "schema": "lens.ablation/1",
        "split": split,
        "sweep": sweep.model_dump(mode="json"),
        "versions": versions(),
        "lines": [asdict(line) for line in lines],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
