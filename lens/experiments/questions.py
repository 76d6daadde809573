"""Questions of one split, asked of a model, and the scores of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lens.data.corpora import read_parallel
from lens.data.languages import canonical
from lens.errors import InputError
from lens.evaluation.accuracy import Evaluation, evaluate, read_references
from lens.evaluation.drift import pivot_kl
from lens.experiments.config import Questions, fill
from lens.experiments.methods import Around, Respond, unsteered
from lens.models.tokenization import ChatOptions

METRICS = ("accuracy_in_language", "fidelity", "accuracy_any")


class QuestionSet:
    """Questions of one split, read once and asked many times.

    Parameters
    ----------
    questions : Questions
        Files and settings.
    reference : PreTrainedModel
        The unchanged model, from which drift is measured.
    tokenizer
        Its tokenizer.
    pivot : str
        Pivot language.
    languages : sequence of str, optional
        Those of the prompts by default.
    where : mapping of str to str, optional
        What replaces the names in paths.
    split : str
        Written into results.
    chat : ChatOptions, optional
        Chat template flags.

    Raises
    ------
    InputError
        If a file cannot be read, or the pivot has no questions.
    """

    def __init__(
        self,
        questions: Questions,
        reference: Any,
        tokenizer: Any,
        *,
        pivot: str,
        languages: Sequence[str] | None = None,
        where: Mapping[str, str] | None = None,
        split: str = "validation",
        chat: ChatOptions | None = None,
    ) -> None:
        self.questions, self.reference, self.tokenizer = questions, reference, tokenizer
        self.pivot, self.split, self.chat = canonical(pivot), split, chat
        names = where or {}
        self.prompts = read_parallel(
            fill(questions.prompts, names), languages=languages, limit=questions.limit, min_rows=1
        ).rows
        if self.pivot not in self.prompts:
            raise InputError(f"{questions.prompts} has no questions in the pivot {self.pivot}")
        self.references: list[dict[str, Any]] | None = None
        if questions.references is not None:
            self.references = read_references(fill(questions.references, names))
        self.neutral = _words(questions, names)
        self.kinds = _kinds(questions, names, len(self.prompts[self.pivot]))

    def require(self, languages: Sequence[str]) -> None:
        """Refuse questions that lack a language.

        Raises
        ------
        InputError
            With the languages that were not asked.
        """
        missing = [lang for lang in languages if lang not in self.prompts]
        if missing:
            listed = ", ".join(missing)
            raise InputError(f"the questions have no {listed}, which is trained; add them")

    def judge(
        self, model: Any, around: Around = unsteered, respond: Respond | None = None
    ) -> dict[str, Any]:
        """Answer inside ``around(language)``: shares per item and language, and the drift."""
        how = self.questions
        found = evaluate(
            model,
            self.tokenizer,
            prompts=self.prompts,
            references=self.references,
            pivot=self.pivot,
            identifier=how.identifier,
            neutral=self.neutral,
            split=self.split,
            batch_size=how.batch_size,
            max_new_tokens=how.max_new_tokens,
            around=around,
            chat=self.chat,
            respond=respond,
        )
        drift = pivot_kl(
            self.reference,
            model,
            self.tokenizer,
            self.prompts[self.pivot],
            batch_size=how.batch_size,
            steered=lambda: around(self.pivot),
            chat=self.chat,
        )
        metrics = METRICS if self.references is not None else ("fidelity",)
        return {
            "items": {metric: self._items(found, metric) for metric in metrics},
            "languages": {
                metric: {k: float(v.mean()) for k, v in found.outcomes.by_language(metric).items()}
                for metric in metrics
            },
            "pivot": self.pivot,
            "kinds": self.kinds,
            "kl": {"mean": drift.mean, "low": drift.low, "high": drift.high, "n": drift.n},
            "identifier": found.about["identifier"],
        }

    def _items(self, found: Evaluation, metric: str) -> list[float]:
        """Share of the other languages in which each item was right."""
        by_language = found.outcomes.by_language(metric, leave_out=self.pivot)
        return [float(x) for x in np.mean(list(by_language.values()), axis=0)]


def average(found: Mapping[str, Any], metric: str, languages: Sequence[str]) -> float:
    """Mean of a metric over languages."""
    return float(np.mean([found["languages"][metric][lang] for lang in languages]))


def _words(questions: Questions, where: Mapping[str, str]) -> list[str]:
    return _text("neutral", questions.neutral, where).split()


def _kinds(questions: Questions, where: Mapping[str, str], count: int) -> list[str]:
    """Kind of every question asked, or none."""
    found = _text("kinds", questions.kinds, where).splitlines()
    if found and len(found) < count:
        raise InputError(
            f"kinds: {questions.kinds} has {len(found)} lines for {count} questions; expected one "
            "a question"
        )
    return found[:count]


def _text(what: str, path: str | None, where: Mapping[str, str]) -> str:
    if path is None:
        return ""
    place = fill(path, where)
    try:
        return Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what}: cannot read '{place}': {error}") from None
