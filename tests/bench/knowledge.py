"""What is lost with the language: ``python -m tests.bench.knowledge``, on the validation split.

Right answers outside English, by whether the world's text states the fact in every language
("shared") or in English only. Means over the other languages; the interval resamples facts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from lens.demo.languages import OTHERS, PIVOT
from lens.demo.models import load
from lens.demo.run import LAYERS, Answers, Judge, same_budget, self_translation, train_prompts, tune
from lens.space.probe import probe
from lens.stats import mean_interval
from lens.training.config import PRESETS
from lens.training.trainer import LensTrainer

SYSTEMS = (
    "unchanged",
    "Lens",
    "self-translation",
    "the same blocks tuned on answers",
    "mixed-language tuning",
)


def _answers(judge: Judge, tokenizer: object) -> Iterator[Answers]:
    """Yield the answers of `SYSTEMS`, each from the shipped models."""
    model, _ = load("chat")
    yield judge.ask(model, languages=OTHERS)
    prompts = train_prompts()
    space = probe(model, tokenizer, prompts, pivot=PIVOT, role="text", pooling="last")
    config = PRESETS["lens"]
    trainer = LensTrainer(model, tokenizer, space, prompts, layers=LAYERS)
    tune(trainer, config, judge)
    yield judge.ask(model, languages=OTHERS)
    trainer.restore()
    self_translation(model, tokenizer, space, seed=0)
    yield judge.ask(model, languages=OTHERS)
    model, _ = load("chat")
    same_budget(model, tokenizer, config, seed=0)
    yield judge.ask(model, languages=OTHERS)
    model, _ = load("mixed")
    yield judge.ask(model, languages=OTHERS)


def _cell(answers: Answers, metric: str, english_only: bool) -> str:
    """Share and interval over facts of one kind."""
    right: dict[str, list[bool]] = {}
    for question, good in zip(answers.questions, answers.outcomes.metric(metric), strict=True):
        if question.english_only == english_only:
            right.setdefault(question.fact_id, []).append(bool(good))
    shares = np.array([np.mean(values) for values in right.values()])
    low, high = mean_interval(shares, seed=0)
    return f"{shares.mean():.3f} ({low:.3f}–{high:.3f}), n = {len(shares)}"


def main() -> None:
    """Print the table as Markdown."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    reference, tokenizer = load("chat")
    judge = Judge("validation", reference=reference, tokenizer=tokenizer)
    print(
        "| system | counted | facts stated in every language | in English only |\n|---|---|---|---|"
    )
    for name, answers in zip(SYSTEMS, _answers(judge, tokenizer), strict=True):
        metric = "accuracy_any" if name == "unchanged" else "accuracy_in_language"
        counted = "in any language" if name == "unchanged" else "in the language asked"
        cells = [_cell(answers, metric, english_only) for english_only in (False, True)]
        print(f"| {name} | {counted} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
