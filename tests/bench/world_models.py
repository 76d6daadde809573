"""What the sample world's models can do: ``python -m tests.bench.world_models``, a Markdown table.

The test split: this describes the shipped models and chooses nothing.
"""

from __future__ import annotations

import argparse

import numpy as np

from lens.demo.languages import LANGUAGES, OTHERS
from lens.demo.models import load
from lens.demo.run import Answers, Judge

ROWS = (
    ("chat", "fidelity", "fidelity", None),
    ("chat", "correct in any language", "accuracy_any", None),
    ("mixed", "fidelity", "fidelity", None),
    ("mixed", "correct in the language asked", "accuracy_in_language", None),
    ("mixed", "… shared facts", "accuracy_in_language", False),
    ("mixed", "… pivot-only facts", "accuracy_in_language", True),
)


def _shares(answers: Answers, metric: str, english_only: bool | None) -> dict[str, float]:
    """Share per language, of all facts or of one kind."""
    found: dict[str, list[bool]] = {lang: [] for lang in LANGUAGES}
    for question, good in zip(answers.questions, answers.outcomes.metric(metric), strict=True):
        if english_only is None or question.english_only == english_only:
            found[question.language].append(bool(good))
    return {lang: float(np.mean(values)) for lang, values in found.items()}


def main() -> None:
    """Ask both models everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="questions per language, 1,000 by default")
    limit = parser.parse_args().limit
    reference, tokenizer = load("chat")
    judge = Judge("test", reference=reference, tokenizer=tokenizer, limit=limit)
    answers = {name: judge.ask(load(name)[0]) for name in ("chat", "mixed")}
    print(f"| | {' | '.join(LANGUAGES)} | mean, not English |\n|{'---|' * (len(LANGUAGES) + 2)}")
    for model, label, metric, english_only in ROWS:
        shares = _shares(answers[model], metric, english_only)
        mean = np.mean([shares[lang] for lang in OTHERS])
        cells = [*(f"{shares[lang]:.3f}" for lang in LANGUAGES), f"{mean:.3f}"]
        print(f"| `{model}`: {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
