"""How often the data doctor complains about good text, and how often it finds planted faults.

Run ``python -m tests.bench.data_alarms`` for the tables in docs/data.md. The sample world's text is
always there; the corpora for development are added where they are (LENS_SHARED or beside the
checkout).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lens.data.corpora import read_found
from lens.data.quality.checks import check_text
from lens.data.quality.report import TextReport
from lens.demo.languages import LANGUAGES
from lens.demo.questions import questions, text
from lens.stats import wilson
from tests.conftest import shared_folder

ROWS = 400
PLANTED = 200
Rows = dict[str, list[str]]
_CORPORA = {
    "tico19": "tico19/tico19.jsonl.xz",
    "sib200": "sib200/sib200.open.jsonl.xz",
    "bible-10": "bible-10/bible_parallel.open.jsonl.xz",
    "pydocs-6": "pydocs-6/pydocs_parallel.open.jsonl.xz",
    "msvamp": "msvamp/msvamp.open.jsonl",
}


@dataclass(frozen=True)
class Alarms:
    """What was said about one language of one corpus."""

    corpus: str
    language: str
    rows: int
    judged: int
    foreign: int
    script: int
    warnings: tuple[str, ...]


def corpora() -> Iterator[tuple[str, Rows]]:
    """Yield name and rows that are complete in every language, evenly spread over a corpus."""
    yield "world, sentences", {code: text(code, ROWS, split="test") for code in LANGUAGES}
    yield (
        "world, questions",
        {code: [q.prompt for q in questions("test", code)][:ROWS] for code in LANGUAGES},
    )
    for name, path in _CORPORA.items():
        place = shared_folder() / "data" / path
        if not place.is_file():
            print(f"{name} is not here", file=sys.stderr)
            continue
        rows = read_found(place).rows
        whole = [i for i, row in enumerate(zip(*rows.values(), strict=True)) if all(row)]
        kept = [whole[i * len(whole) // ROWS] for i in range(ROWS)] if len(whole) > ROWS else whole
        yield name, {code: [texts[i] for i in kept] for code, texts in rows.items()}


def of_language(report: TextReport, code: str) -> tuple[str, ...]:
    """Return the checks that gave a warning about a language."""
    return tuple(f.check for f in report.of_level("warning") if f.language == code)


def measure(name: str, rows: Rows) -> Iterator[Alarms]:
    """Check a corpus as it is."""
    report = check_text(rows)
    for entry in report.languages:
        yield Alarms(name, entry.code, entry.rows, entry.judged, entry.foreign,
                     entry.other_script, of_language(report, entry.code))  # fmt: skip


def _untranslated(rows: list[str], pivot: list[str], generator: np.random.Generator) -> list[str]:
    chosen = set(generator.choice(len(rows), len(rows) // 20, replace=False).tolist())
    # Another pivot row, so that only the language gives it away.
    return [pivot[i - 1] if i in chosen else row for i, row in enumerate(rows)]


def _missing_row(rows: list[str], pivot: list[str], generator: np.random.Generator) -> list[str]:
    gone = int(generator.integers(len(rows) // 5, len(rows) // 2))
    return [*rows[:gone], *rows[gone + 1 :], rows[gone]]


def _shuffled(rows: list[str], pivot: list[str], generator: np.random.Generator) -> list[str]:
    return [rows[i] for i in generator.permutation(len(rows))]


FAULTS: dict[str, tuple[Callable[..., list[str]], tuple[str, ...]]] = {
    "1 row in 20 in the pivot's language": (_untranslated, ("identity",)),
    "a row missing": (_missing_row, ("shift",)),
    "rows in another order": (_shuffled, ("parallel",)),
}


def plant(name: str, rows: Rows) -> Iterator[tuple[str, str, int, int]]:
    """Yield corpus, fault, languages it was found in, and languages it was planted in."""
    pivot, *others = rows
    part = {code: texts[:PLANTED] for code, texts in rows.items()}
    generator = np.random.default_rng(0)
    for fault, (break_rows, checks) in FAULTS.items():
        found = 0
        for code in others:
            broken = break_rows(part[code], part[pivot], generator)
            judge = None if "identity" in checks else 1  # the language is not what was broken
            report = check_text({pivot: part[pivot], code: broken}, pivot=pivot, judge=judge)
            found += bool(set(checks) & set(of_language(report, code)))
        yield name, fault, found, len(others)


def main() -> int:
    """Print the tables of docs/data.md."""
    alarms, planted = [], []
    for name, rows in corpora():
        alarms += list(measure(name, rows))
        planted += list(plant(name, rows))
    print("| corpus | languages | rows judged | in another language | 95 % interval | languages "
          "warned about |\n|---|---|---|---|---|---|")  # fmt: skip
    for name in dict.fromkeys(a.corpus for a in alarms):
        mine = [a for a in alarms if a.corpus == name]
        hits, n = sum(a.foreign for a in mine), sum(a.judged for a in mine)
        low, high = wilson(hits, n)
        warned = [f"{a.language} ({', '.join(a.warnings)})" for a in mine if a.warnings]
        print(f"| {name} | {len(mine)} | {n} | {hits} | {low:.3%}–{high:.3%} | "
              f"{', '.join(warned) or 'none'} |")  # fmt: skip
    print("\n| language | rows judged | in another language | in another script | corpora |\n"
          "|---|---|---|---|---|")  # fmt: skip
    for code in sorted({a.language for a in alarms}):
        mine = [a for a in alarms if a.language == code]
        judged = sum(a.judged for a in mine)
        script = f"{sum(a.script for a in mine)} of {sum(a.rows for a in mine)}"
        print(f"| {code} | {judged or 'unknown to it'} | {sum(a.foreign for a in mine)} | "
              f"{script} | {len(mine)} |")  # fmt: skip
    print(f"\n| planted fault (n = {PLANTED} rows) | " + " | ".join(
        dict.fromkeys(name for name, *_ in planted)) + " |")  # fmt: skip
    print("|---" * (1 + len({name for name, *_ in planted})) + "|")
    for fault in FAULTS:
        cells = [f"{found} of {n}" for _, kind, found, n in planted if kind == fault]
        print(f"| {fault} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
