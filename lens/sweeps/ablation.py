"""Run a whole sweep, resumable, and put its results side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lens.errors import InputError
from lens.io import write_text
from lens.progress import say
from lens.sweeps.config import Run, Sweep, strings
from lens.sweeps.journal import Journal, identity
from lens.sweeps.summary import Line, summarise, tables


def ablate(
    sweep: Sweep, out: str | Path, *, split: Literal["validation", "test"] = "validation"
) -> list[Line]:
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
    from lens.sweeps.study import Study

    if getattr(sweep, split) is None:
        raise InputError(f"the sweep has no '{split}:' questions; add them to the config")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "runs.jsonl")
    runs = sweep.expand()
    seen: dict[tuple[str, str, str | None], dict[str, str]] = {}
    study: tuple[str, Any] = ("", None)
    records: list[tuple[Run, dict[str, Any]]] = []
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


def _inputs(sweep: Sweep, run: Run, split: str) -> dict[str, str]:
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


def _json(sweep: Sweep, split: str, lines: Sequence[Line]) -> str:
    from lens.lsm.saving import versions

    data = {
        "schema": "lens.ablation/1",
        "split": split,
        "sweep": sweep.model_dump(mode="json"),
        "versions": versions(),
        "lines": [asdict(line) for line in lines],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
