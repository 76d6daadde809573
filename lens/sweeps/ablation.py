"""Run a whole sweep, resumable, and put its results side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lens.errors import InputError
from lens.evaluate.intervals import hierarchical_interval
from lens.io import write_text
from lens.progress import say
from lens.sweeps.config import Run, Sweep, strings
from lens.sweeps.journal import Journal, identity
from lens.sweeps.judging import METRICS


@dataclass(frozen=True, slots=True)
class Line:
    """One setting over all models and seeds.

    Attributes
    ----------
    name, method : str
        Of the setting.
    runs : int
        Models times seeds.
    items : int
        Questions per language in one run.
    values : dict of str to (value, low, high)
        ``accuracy_in_language``, ``fidelity`` and ``accuracy_any`` averaged over the non-pivot
        languages, with 95 % intervals over models, seeds and items.
    change : (value, low, high) or None
        First metric minus that of ``base`` on the same models, seeds and items.
    pivot : float or None
        Share of right answers in the pivot.
    kl : float
        Mean drift of the pivot, nats.
    seconds : float
        Mean training time.
    """

    name: str
    method: str
    runs: int
    items: int
    values: dict[str, tuple[float, float, float]]
    change: tuple[float, float, float] | None
    pivot: float | None
    kl: float
    seconds: float


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
    seen: dict[tuple[str, str], dict[str, str]] = {}
    study: tuple[str, Any] = ("", None)
    records: list[tuple[Run, dict[str, Any]]] = []
    for number, run in enumerate(runs, 1):
        place = json.dumps(run.where, sort_keys=True)
        what = (place, run.setting.space)
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
    lines = summarise(records)
    write_text(out / "table.md", table(lines) + "\n")
    write_text(out / "results.json", _json(sweep, split, lines))
    return lines


def summarise(records: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[Line]:
    """Average runs of the same setting over models and seeds."""
    by_name: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run, record in records:
        by_name.setdefault(run.name, []).append((run, record))
    base = by_name.get("base", [])
    return [_line(name, mine, base) for name, mine in by_name.items()]


def _line(
    name: str,
    mine: Sequence[tuple[Run, Mapping[str, Any]]],
    base: Sequence[tuple[Run, Mapping[str, Any]]],
) -> Line:
    values = {}
    for metric in METRICS:
        groups = _groups(mine, metric)
        if groups:
            values[metric] = _estimate(groups)
    first = next(iter(values))
    change = None
    if name != "base" and len(base) == len(mine):
        pairs = zip(_groups(mine, first), _groups(base, first), strict=True)
        change = _estimate([a - b for a, b in pairs])
    pivots = [r["languages"].get("accuracy_in_language", {}).get(r["pivot"]) for _, r in mine]
    known = [share for share in pivots if share is not None]
    return Line(
        name=name,
        method=mine[0][0].setting.method,
        runs=len(mine),
        items=len(mine[0][1]["items"][first]),
        values=values,
        change=change,
        pivot=float(np.mean(known)) if known else None,
        kl=float(np.mean([r["kl"]["mean"] for _, r in mine])),
        seconds=float(np.mean([r["seconds"]["training"] for _, r in mine])),
    )


def _groups(
    records: Sequence[tuple[Run, Mapping[str, Any]]], metric: str
) -> list[np.ndarray[Any, Any]]:
    """Per model: seeds in rows, items in columns."""
    found: dict[str, list[list[float]]] = {}
    for run, record in records:
        if metric in record["items"]:
            place = json.dumps(run.where, sort_keys=True)
            found.setdefault(place, []).append(record["items"][metric])
    return [np.asarray(rows) for rows in found.values()]


def _estimate(groups: Sequence[np.ndarray[Any, Any]]) -> tuple[float, float, float]:
    low, high = hierarchical_interval(list(groups))
    return float(np.mean([g.mean() for g in groups])), low, high


def table(lines: Sequence[Line]) -> str:
    """Markdown table of a sweep."""
    head = ("setting", "in language", "change from base", "fidelity", "any language", "pivot",
            "KL, nats", "runs × questions", "s")  # fmt: skip
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for line in lines:
        cells = [
            line.name,
            _shown(line.values.get("accuracy_in_language")),
            _shown(line.change, signed=True),
            _shown(line.values.get("fidelity")),
            _shown(line.values.get("accuracy_any")),
            "–" if line.pivot is None else f"{line.pivot:.3f}",
            f"{line.kl:.4f}",
            f"{line.runs} × {line.items}",
            f"{line.seconds:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _shown(value: tuple[float, float, float] | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    return f"{value[0]:{form}} ({value[1]:{form}} to {value[2]:{form}})"


def _inputs(sweep: Sweep, run: Run, split: str) -> dict[str, str]:
    """Identity of everything a run reads, and the version that ran it."""
    import lens

    questions = getattr(sweep, split)
    paths = {
        "model": sweep.model,
        "prompts": sweep.prompts,
        "answers": sweep.answers,
        "texts": sweep.texts,
        "reading": sweep.readings[run.setting.space].data,
        "questions": questions.prompts,
        "references": questions.references,
        "neutral": questions.neutral,
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
