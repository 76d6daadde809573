"""Run a sweep, resumable, and summarise its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lens.errors import InputError
from lens.experiments.config import Sweep, SweepRun, strings
from lens.experiments.summary import SummaryRow, summarise, tables
from lens.utils.files import write_text
from lens.utils.hashing import hash_of_path
from lens.utils.progress import say
from lens.utils.workdir import WorkDir


def ablate(
    sweep: Sweep, out: str | Path, *, split: Literal["validation", "test"] = "validation"
) -> list[SummaryRow]:
    """Run all settings that have no result yet and return the table.

    Parameters
    ----------
    sweep : Sweep
        From `read_sweep`.
    out : str or Path
        Folder: ``runs.jsonl`` grows with every finished run, ``table.md`` and ``results.json`` are
        written at the end. Runs found there with the same settings, data and model are not
        repeated.
    split : {"validation", "test"}
        Questions to ask.

    Returns
    -------
    list of SummaryRow
        One per setting, in the order of the sweep.

    Raises
    ------
    InputError
        If data or model cannot be read, or the sweep has no such split.
    """
    if getattr(sweep, split) is None:
        raise InputError(f"the sweep has no '{split}:' questions; add them to the config")
    out = Path(out)
    with WorkDir(out, "ablation", keeps="finished runs", always_resumes=True, shared=True) as work:
        work.open({})
        lines = summarise(_records(sweep, split, work), against=sweep.against)
        write_text(out / "table.md", tables(lines) + "\n")
        write_text(out / "results.json", _json(sweep, split, lines))
    return lines


def _records(
    sweep: Sweep, split: Literal["validation", "test"], work: WorkDir
) -> list[tuple[SweepRun, dict[str, Any]]]:
    """Every run with its record: one read from ``runs.jsonl``, or a new one, which is added."""
    from lens.experiments.study import Study

    log = work.log("runs.jsonl", sync=True, strict=True)
    finished = {record.fields["key"]: record.fields for record in log.records()}
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
        if key not in finished:
            if study[0] != place or study[1] is None:
                study = (place, Study(sweep, run.where))
            say(f"{number}/{len(runs)} {run.name}, seed {run.seed} {_spoken(run.where)}")
            head = {"key": key, "name": run.name, "seed": run.seed, "where": run.where}
            about = {"split": split, "setting": run.setting.model_dump(mode="json")}
            finished[key] = head | about | study[1].run(run, split)
            log.append(finished[key])
        records.append((run, finished[key]))
    return records


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
    found = {name: hash_of_path(path) for name, path in strings(paths, run.where)}
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
