"""Results of a sweep: every setting over all models and seeds, as rows and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.experiments.config import SweepRun
from lens.experiments.questions import METRICS
from lens.stats import hierarchical_interval

Estimate = tuple[float, float, float]
Records = Sequence[tuple[SweepRun, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One setting over all models and seeds.

    Attributes
    ----------
    name, method : str
        Of the setting.
    without : tuple of str
        Languages left out of training and subspace.
    against : str
        Name of the setting that ``change`` compares with.
    runs : int
        Models times seeds.
    items : int
        Questions per language in one run.
    values : dict of str to (value, low, high)
        ``accuracy_in_language``, ``fidelity`` and ``accuracy_any`` averaged over the non-pivot
        languages, with 95 % intervals over models, seeds and items.
    kinds : dict of str to (value, low, high)
        First metric on the questions of each kind.
    languages : dict of str to dict of str to float
        Metric -> language -> mean over runs.
    change : (value, low, high) or None
        First metric minus that of ``against`` on the same models, seeds and items; a setting
        without seeds is compared with every seed of the other.
    pivot : float or None
        Share of right answers in the pivot.
    kl : float
        Mean drift of the pivot, nats.
    seconds : float
        Mean training time.
    """

    name: str
    method: str
    without: tuple[str, ...]
    against: str
    runs: int
    items: int
    values: dict[str, Estimate]
    kinds: dict[str, Estimate]
    languages: dict[str, dict[str, float]]
    change: Estimate | None
    pivot: float | None
    kl: float
    seconds: float


def summarise(records: Records, *, against: str = "base") -> list[SummaryRow]:
    """Average runs of the same setting over models and seeds.

    Parameters
    ----------
    records : sequence of (SweepRun, record)
        As ``runs.jsonl`` holds them.
    against : str
        Name of the setting that the others are compared with.
    """
    by_name: dict[str, list[tuple[SweepRun, Mapping[str, Any]]]] = {}
    for run, record in records:
        by_name.setdefault(run.name, []).append((run, record))
    return [_line(name, mine, against, by_name.get(against, [])) for name, mine in by_name.items()]


def _line(name: str, mine: Records, against: str, other: Records) -> SummaryRow:
    metrics = [metric for metric in METRICS if metric in mine[0][1]["items"]]
    first = metrics[0]
    values = {metric: _estimate(_groups(mine, metric)) for metric in metrics}
    kinds = np.asarray(mine[0][1].get("kinds", []))
    by_kind = {
        str(kind): _estimate([rows[:, kinds == kind] for rows in _groups(mine, first)])
        for kind in dict.fromkeys(kinds)
    }
    change = None
    if name != against and len(other) == len(mine):
        pairs = zip(_groups(mine, first), _groups(other, first), strict=True)
        change = _estimate([a - b for a, b in pairs])
    languages = {m: _by_language([r["languages"][m] for _, r in mine]) for m in metrics}
    return SummaryRow(
        name=name,
        method=mine[0][0].setting.method,
        without=mine[0][0].setting.without,
        against=against,
        runs=len(mine),
        items=len(mine[0][1]["items"][first]),
        values=values,
        kinds=by_kind,
        languages=languages,
        change=change,
        pivot=languages.get("accuracy_in_language", {}).get(mine[0][1]["pivot"]),
        kl=float(np.mean([r["kl"]["mean"] for _, r in mine])),
        seconds=float(np.mean([r["seconds"]["training"] for _, r in mine])),
    )


def _by_language(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {code: float(np.mean([shares[code] for shares in found])) for code in found[0]}


def _groups(records: Records, metric: str) -> list[NDArray[np.float64]]:
    """Per model: seeds in rows, items in columns."""
    found: dict[str, list[list[float]]] = {}
    for run, record in records:
        place = json.dumps(run.where, sort_keys=True)
        found.setdefault(place, []).append(record["items"][metric])
    return [np.asarray(rows, float) for rows in found.values()]


def _estimate(groups: Sequence[NDArray[np.float64]]) -> Estimate:
    low, high = hierarchical_interval(list(groups))
    return float(np.mean([g.mean() for g in groups])), low, high


def tables(lines: Sequence[SummaryRow]) -> str:
    """Markdown: the settings, then each of them by language."""
    return f"{table(lines)}\n\n{language_table(lines)}"


def table(lines: Sequence[SummaryRow]) -> str:
    """Markdown table of a sweep: means over the languages other than the pivot."""
    kinds = list(lines[0].kinds) if lines else []
    against = lines[0].against if lines else "base"
    head = [
        "setting",
        "in language",
        *kinds,
        f"change from {against}",
        "fidelity",
        "any language",
        "pivot",
        "KL, nats",
        "runs × questions",
        "s",
    ]
    rows = [
        [
            line.name,
            _shown(line.values.get("accuracy_in_language")),
            *(_shown(line.kinds.get(kind)) for kind in kinds),
            _shown(line.change, signed=True),
            _shown(line.values.get("fidelity")),
            _shown(line.values.get("accuracy_any")),
            "–" if line.pivot is None else f"{line.pivot:.3f}",
            f"{line.kl:.4f}",
            f"{line.runs} × {line.items}",
            f"{line.seconds:.1f}",
        ]
        for line in lines
    ]
    return _markdown(head, rows)


def language_table(lines: Sequence[SummaryRow]) -> str:
    """Markdown table: accuracy in the language asked / fidelity; left-out languages in brackets."""
    codes = list(lines[0].languages["fidelity"]) if lines else []
    rows = [[line.name, *(_cell(line, code) for code in codes)] for line in lines]
    return _markdown(["by language", *codes], rows)


def _cell(line: SummaryRow, code: str) -> str:
    from lens.data.languages import canonical

    accuracy = line.languages.get("accuracy_in_language", {}).get(code)
    shown = f"{line.languages['fidelity'][code]:.2f}"
    if accuracy is not None:
        shown = f"{accuracy:.2f} / {shown}"
    return f"[{shown}]" if code in map(canonical, line.without) else shown


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    return f"{value[0]:{form}} ({value[1]:{form}} to {value[2]:{form}})"
