"""Ask a model the world's questions of one split, mark the answers, measure the pivot's drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from lens.evaluate import ResultRow, generate, identifier, outcomes, pivot_kl
from lens.evaluate.scoring import Outcomes, rows_of
from lens.world.facts import PEOPLE
from lens.world.languages import LANGUAGES, PIVOT
from lens.world.questions import Question, is_correct, questions

Around = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said to every question, and how it was marked."""

    questions: list[Question]
    answers: list[str]
    outcomes: Outcomes

    def share(self, metric: str, language: str) -> float:
        """Share of one language's answers that satisfy ``metric``."""
        return float(self.outcomes.by_language(metric)[language].mean())


class Judge:
    """The questions of one split, asked and marked always in the same way.

    Parameters
    ----------
    split : str
        ``"validation"`` or ``"test"``.
    limit : int, optional
        First so many questions per language.
    reference : PreTrainedModel
        The unchanged model, from which drift is measured.
    tokenizer
        Its tokenizer.
    seed : int
        Seed of bootstrap intervals, recorded in every row.
    """

    def __init__(
        self, split: str, *, reference: Any, tokenizer: Any, limit: int | None = None, seed: int = 0
    ) -> None:
        self.split, self.seed = split, seed
        self.reference, self.tokenizer = reference, tokenizer
        self.identifier = identifier("default", list(LANGUAGES), neutral=PEOPLE)
        self.questions = {lang: questions(split, lang, limit) for lang in LANGUAGES}

    def ask(
        self,
        model: Any,
        *,
        languages: Sequence[str] = LANGUAGES,
        around: Around = lambda _lang: nullcontext(),
        limit: int | None = None,
    ) -> Answers:
        """Answer and mark the questions in ``languages``, inside ``around(language)``."""
        asked: list[Question] = []
        answers: list[str] = []
        for lang in languages:
            chosen = self.questions[lang][:limit]
            with around(lang):
                answers += generate(
                    model,
                    self.tokenizer,
                    [question.prompt for question in chosen],
                    max_new_tokens=32,
                    batch_size=256,
                    label=f"Answering {lang}",
                )
            asked += chosen
        found = self.identifier.identify(answers)
        marked = outcomes(answers, asked, identified=found, is_correct=is_correct)
        return Answers(asked, answers, marked)

    def drift(self, model: Any, around: Around = lambda _lang: nullcontext()) -> ResultRow:
        """Mean KL of the pivot's next-token distributions from the unchanged model's, in nats."""
        prompts = [question.prompt for question in self.questions[PIVOT]]
        kl = pivot_kl(
            self.reference,
            model,
            self.tokenizer,
            prompts,
            batch_size=256,
            steered=lambda: around(PIVOT),
            seed=self.seed,
        )
        return ResultRow("", PIVOT, self.split, "kl", kl.mean, kl.n, kl.low, kl.high, self.seed)

    def rows(self, system: str, answers: Answers, drift: ResultRow) -> list[ResultRow]:
        """All rows of one system."""
        rows = rows_of(
            answers.outcomes, system=system, split=self.split, pivot=PIVOT, seed=self.seed
        )
        return [*rows, replace(drift, system=system)]
