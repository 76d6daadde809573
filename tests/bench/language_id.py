"""How often each language identifier is right on the sample world's own text.

Run ``python -m tests.bench.language_id`` for the table in docs/language-identification.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from lens.data.language_id import agreement, content_words, identifier
from lens.demo.languages import LANGUAGES
from lens.demo.questions import questions, text
from lens.stats import wilson

GOAL = 0.97
SENTENCES = 700


@dataclass(frozen=True)
class Measured:
    """Right, wrong and undecided texts of one identifier, kind of text and language."""

    identifier: str
    kind: str
    language: str
    right: int
    wrong: int
    undecided: int

    @property
    def n(self) -> int:
        """Number of texts."""
        return self.right + self.wrong + self.undecided


def samples() -> dict[str, dict[str, list[str]]]:
    """Kind of text -> language -> texts: running sentences, and whole answers to test questions."""
    return {
        "sentences": {code: text(code, SENTENCES, split="test") for code in LANGUAGES},
        "answers": {code: [q.answer for q in questions("test", code)] for code in LANGUAGES},
    }


def vocabulary() -> dict[str, set[str]]:
    """Words of each language, from its training text and the answers of the training split."""
    found: dict[str, set[str]] = {}
    for code in LANGUAGES:
        rows = [*text(code, SENTENCES), *(q.answer for q in questions("train", code))]
        rows += [form for q in questions("test", code) for form in q.accepted[code]]
        found[code] = {word for row in rows for word in content_words(row)}
    return found


def names() -> set[str]:
    """Names of people, which carry no language."""
    return {
        q.person
        for split in ("train", "validation", "test")
        for q in questions(split, LANGUAGES[0])
    }


def measure() -> Iterator[Measured]:
    """Measure each identifier, restricted to the world's languages."""
    words, people = vocabulary(), names()
    judges = {
        "lingua": identifier("lingua", LANGUAGES),
        "lingua, names neutral": identifier("lingua", LANGUAGES, neutral=people),
        "py3langid": identifier("py3langid", LANGUAGES),
        "py3langid, names neutral": identifier("py3langid", LANGUAGES, neutral=people),
        "strict vocabulary": identifier("strict", LANGUAGES, vocabulary=words, neutral=people),
    }
    for kind, by_language in samples().items():
        for label, judge in judges.items():
            for code, rows in by_language.items():
                counts = agreement(judge.identify(rows), [code] * len(rows))
                yield Measured(f"{label} ({judge.version})", kind, code, *counts)


def main() -> int:
    """Print the table; exit with 1 when no library reaches the goal on some kind of text."""
    measured = list(measure())
    head = ["identifier", "text", "all", "95 % interval", *LANGUAGES, "undecided"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    best: dict[str, float] = {}
    for label, kind in dict.fromkeys((m.identifier, m.kind) for m in measured):
        rows = [m for m in measured if (m.identifier, m.kind) == (label, kind)]
        right, n = sum(m.right for m in rows), sum(m.n for m in rows)
        low, high = wilson(right, n)
        cells = [label, kind, f"{right / n:.4f}", f"{low:.4f}–{high:.4f}"]
        cells += [f"{m.right / m.n:.3f}" for m in rows]
        print("| " + " | ".join([*cells, str(sum(m.undecided for m in rows))]) + " |")
        if not label.startswith("strict"):
            best[kind] = max(best.get(kind, 0.0), right / n)
    return int(min(best.values()) < GOAL)


if __name__ == "__main__":
    sys.exit(main())
