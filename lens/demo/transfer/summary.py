"""Put the records of the study side by side: means over worlds, seeds and questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lens.demo.transfer.config import TransferStudy
from lens.demo.transfer.systems import against
from lens.stats import hierarchical_interval
from lens.utils.files import write_text
from lens.utils.versions import versions

Estimate = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class TransferRow:
    """One system.

    Attributes
    ----------
    system : str
        Its name.
    average : (value, low, high)
        Share of right answers in the language asked over all languages, with 95 % intervals over
        worlds, seeds and questions.
    languages : dict of str to (value, low, high)
        The same by language.
    change : (value, low, high) or None
        ``average`` minus that of task arithmetic within the same bounds, on the same worlds, seeds
        and questions.
    right_any, fidelity : float
        Right in any language; answers in the language asked.
    pivot, loss : float
        Ability in the pivot; how far it is below that of the model trained on the ability alone.
    perplexity : float
        Of held-out text, over that of the language's own continued pre-training.
    n : str
        Worlds × seeds × questions.
    """

    system: str
    average: Estimate
    languages: dict[str, Estimate]
    change: Estimate | None
    right_any: float
    fidelity: float
    pivot: float
    loss: float
    perplexity: float
    n: str


def summarise(records: Sequence[Mapping[str, Any]]) -> list[TransferRow]:
    """Average the records of each system over worlds and seeds."""
    table = {_key(r): r for r in records}
    names = list(dict.fromkeys(str(r["system"]) for r in records))
    return [_line(name, records, table) for name in names]


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("system", "world", "seed", "language"))


def _line(
    name: str, records: Sequence[Mapping[str, Any]], table: Mapping[Any, Mapping[str, Any]]
) -> TransferRow:
    mine = [r for r in records if r["system"] == name]
    languages = list(dict.fromkeys(str(r["language"]) for r in mine))
    other = against(name)
    others = [table.get((other, *_key(r)[1:])) for r in mine]
    change = None
    if name != other and all(others):
        pairs = zip(mine, others, strict=True)
        change = _estimate([
            {**r, "right": list(np.subtract(r["right"], o["right"]))} for r, o in pairs if o
        ])  # fmt: skip
    alone = [table["ability only", *_key(r)[1:]]["pivot"] for r in mine]
    text = [table["language only", *_key(r)[1:]]["perplexity"] for r in mine]
    groups = _groups(mine)
    return TransferRow(
        name, _estimate(mine),
        {x: _estimate([r for r in mine if r["language"] == x]) for x in languages},
        change,
        float(np.mean([r["right_any"] for r in mine])),
        float(np.mean([r["fidelity"] for r in mine])),
        float(np.mean([r["pivot"] for r in mine])),
        float(np.mean(np.subtract(alone, [r["pivot"] for r in mine]))),
        float(np.mean(np.divide([r["perplexity"] for r in mine], text))),
        f"{len(groups)} × {len(groups[0])} × {groups[0].shape[1]}",
    )  # fmt: skip


def _groups(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Per world: seeds in rows, questions in columns, averaged over the languages."""
    found: dict[str, dict[int, list[list[float]]]] = {}
    for r in records:
        found.setdefault(r["world"], {}).setdefault(r["seed"], []).append(r["right"])
    return [
        np.asarray([np.mean(rows, axis=0) for rows in seeds.values()]) for seeds in found.values()
    ]


def _estimate(records: Sequence[Mapping[str, Any]]) -> Estimate:
    groups = _groups(records)
    low, high = hierarchical_interval(groups)
    return float(np.mean([g.mean() for g in groups])), low, high


def tables(lines: Sequence[TransferRow]) -> str:
    """Markdown: averages of every system, then each by language."""
    head = ["system", "in language", "minus task arithmetic", "any language", "fidelity", "English",
            "perplexity", "worlds × seeds × questions"]  # fmt: skip
    rows = [
        [
            line.system, _shown(line.average),
            "–" if line.change is None else _shown(line.change, sign="+"),
            f"{line.right_any:.3f}", f"{line.fidelity:.3f}", f"{line.pivot:.3f}",
            f"× {line.perplexity:.3f}", line.n,
        ]
        for line in lines
    ]  # fmt: skip
    codes = list(lines[0].languages) if lines else []
    by = [[line.system, *(_shown(line.languages[code]) for code in codes)] for line in lines]
    return f"{_markdown(head, rows)}\n\n{_markdown(['by language', *codes], by)}"


def write(
    out: Path, settings: TransferStudy, records: Sequence[Mapping[str, Any]], *, split: str
) -> list[TransferRow]:
    """Write ``table-SPLIT.md`` and ``results-SPLIT.json``; return the lines."""
    lines = summarise(records)
    write_text(out / f"table-{split}.md", tables(lines) + "\n")
    content = {
        "schema": "lens.transfer/1",
        "split": split,
        "study": settings.model_dump(mode="json"),
        "versions": versions(),
        "lines": [asdict(line) for line in lines],
        "records": [{k: v for k, v in r.items() if k != "right"} for r in records],
    }
    write_text(out / f"results-{split}.json", json.dumps(content, indent=1) + "\n")
    return lines


def _shown(value: Estimate, *, sign: str = "") -> str:
    return f"{value[0]:{sign}.3f} ({value[1]:{sign}.3f} to {value[2]:{sign}.3f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
