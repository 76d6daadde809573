"""Fidelity and accuracy of answers, in the language asked and in any, with n and interval."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lens.data.language_id import identifier as make_identifier
from lens.errors import InputError
from lens.evaluation.config import EvaluationSettings
from lens.evaluation.results import AVERAGE, METRICS, ResultRow, read_text
from lens.models.generation import generate
from lens.stats import mcnemar, mean_interval, paired_bootstrap, stratified_interval, wilson
from lens.utils.settings import takes

Bools = NDArray[np.bool_]
IsCorrect = Callable[[Any, str, str | None], bool]
SHARES = METRICS[:3]


class QuestionLike(Protocol):
    """What scoring reads of a question; ``fact_id`` is used for pairing if present."""

    @property
    def language(self) -> str:
        """FLORES code of the language the question is asked in."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Right or wrong per answer, kept so that two systems can be compared item by item.

    Parameters
    ----------
    languages : tuple of str, length n
        Language each question was asked in.
    items : tuple of str, length n
        What the question is about; the same item in several languages is resampled together.
    in_language, correct : (n,) arrays of bool
        Answered in the language asked; correct in whatever language.
    correct_in_language : (n,) array of bool
        Correct in the language asked and identified as that language.
    """

    languages: tuple[str, ...]
    items: tuple[str, ...]
    in_language: Bools
    correct: Bools
    correct_in_language: Bools

    def metric(self, name: str) -> Bools:
        """Return the outcomes behind a metric.

        Raises
        ------
        InputError
            If the metric is not ``fidelity``, ``accuracy_in_language`` or ``accuracy_any``.
        """
        arrays = (self.in_language, self.correct_in_language, self.correct)
        if name not in SHARES:
            raise InputError(f"no metric '{name}'; expected one of {', '.join(SHARES)}")
        return arrays[SHARES.index(name)]

    def by_language(self, metric: str, *, leave_out: str | None = None) -> dict[str, Bools]:
        """Return the outcomes of each language, items in the order of their names."""
        values = self.metric(metric)
        groups: dict[str, list[int]] = {}
        for i, language in enumerate(self.languages):
            if language != leave_out:
                groups.setdefault(language, []).append(i)
        return {
            language: values[sorted(rows, key=lambda i: (self.items[i], i))]
            for language, rows in groups.items()
        }

    def parallel(self, *, leave_out: str | None = None) -> bool:
        """Whether every language was asked the same items."""
        asked: dict[str, list[str]] = {}
        for language, item in zip(self.languages, self.items, strict=True):
            if language != leave_out:
                asked.setdefault(language, []).append(item)
        return len({tuple(sorted(items)) for items in asked.values()}) == 1


@dataclass(frozen=True, slots=True)
class SystemComparison:
    """How one metric changed in one language, on the same items (see :func:`compare`)."""

    language: str
    metric: str
    difference: float
    low: float
    high: float
    n: int
    gained: int
    lost: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def outcomes(
    answers: Sequence[str],
    questions: Sequence[QuestionLike],
    *,
    identified: Sequence[str | None],
    is_correct: IsCorrect | None = None,
) -> Outcomes:
    """Judge answers one by one.

    Parameters
    ----------
    answers : sequence of str, length n
        Answer i belongs to question i.
    questions : sequence of objects with ``.language``, length n
        Anything; passed on to ``is_correct``.
    identified : sequence of str or None, length n
        Language of each answer, from an :class:`~lens.data.language_id.Identifier`.
    is_correct : callable (question, answer, language or None) -> bool, optional
        Whether the answer is right, said in ``language``, or in any language for ``None``. By
        default the question's own method ``is_correct(answer, language)``.

    Raises
    ------
    InputError
        If the lengths differ or nothing can judge the answers.
    """
    if not len(answers) == len(questions) == len(identified):
        raise InputError(
            f"{len(answers)} answers, {len(questions)} questions and {len(identified)} identified "
            "languages; expected one of each per question"
        )
    judge = is_correct or _own_judgement
    triples = list(zip(answers, questions, identified, strict=True))
    spoken = np.array([code == q.language for _, q, code in triples], bool)
    correct = np.array([judge(q, a, None) for a, q, _ in triples], bool)
    own = np.array([judge(q, a, q.language) for a, q, _ in triples], bool)
    return Outcomes(
        languages=tuple(q.language for q in questions),
        items=_items(questions),
        in_language=spoken,
        correct=correct,
        correct_in_language=own & spoken,
    )


def score(
    answers: Sequence[str],
    questions: Sequence[QuestionLike],
    identified: Sequence[str | None],
    *,
    system: str,
    split: str = "test",
    pivot: str | None = None,
    is_correct: IsCorrect | None = None,
    seed: int = 0,
) -> list[ResultRow]:
    """Fidelity, in-language accuracy and accuracy in any language, with n and 95 % interval.

    Parameters
    ----------
    answers, questions, identified, is_correct
        As in :func:`outcomes`.
    system, split : str
        Written into every row.
    pivot : str, optional
        Left out of the average rows (``language="mean"``).
    seed : int
        Seed of the bootstrap of the average, and written into every row.

    Returns
    -------
    list of ResultRow
        Per metric one row per language, then the average over the non-pivot languages.
    """
    judged = outcomes(answers, questions, identified=identified, is_correct=is_correct)
    return rows_of(judged, system=system, split=split, pivot=pivot, seed=seed)


def rows_of(
    judged: Outcomes, *, system: str, split: str = "test", pivot: str | None = None, seed: int = 0
) -> list[ResultRow]:
    """Turn outcomes into rows; see :func:`score`.

    Notes
    -----
    Shares of one language have a Wilson interval. The average gives every language the same
    weight; its interval is a bootstrap over items (all languages of an item together where the
    questions are parallel, else within each language), widened to Wilson's of one language's n
    where every answer is right or every answer is wrong, since nothing varies there to resample.
    """
    rows = []
    for metric in SHARES:
        for language, hits in judged.by_language(metric).items():
            k, n = int(hits.sum()), len(hits)
            low, high = wilson(k, n)
            rows.append(ResultRow(system, language, split, metric, k / n, n, low, high, seed))
        groups = list(judged.by_language(metric, leave_out=pivot).values())
        if groups:
            value, low, high = _average(groups, judged.parallel(leave_out=pivot), seed)
            n = sum(map(len, groups))
            rows.append(ResultRow(system, AVERAGE, split, metric, value, n, low, high, seed))
    return rows


def compare(
    before: Outcomes,
    after: Outcomes,
    *,
    metric: str = "accuracy_in_language",
    pivot: str | None = None,
    seed: int = 0,
) -> list[SystemComparison]:
    """Change of a metric on the same questions, per language and averaged over the non-pivot ones.

    Returns
    -------
    list of SystemComparison
        Difference with paired-bootstrap interval, and exact McNemar counts and p-value.

    Raises
    ------
    InputError
        If the two were not scored on the same questions.
    """
    if (before.languages, before.items) != (after.languages, after.items):
        raise InputError(
            "the two systems were scored on different questions; "
            "a paired comparison needs the same questions in the same order"
        )
    first, second = before.by_language(metric), after.by_language(metric)
    pairs = {code: (first[code][:, None], second[code][:, None]) for code in first}
    others = [code for code in first if code != pivot]
    if others and before.parallel(leave_out=pivot):
        pairs[AVERAGE] = (
            np.stack([first[code] for code in others], axis=1),
            np.stack([second[code] for code in others], axis=1),
        )
    result = []
    for code, (old, new) in pairs.items():
        change = paired_bootstrap(old, new, seed=seed)
        test = mcnemar(old.ravel(), new.ravel())
        result.append(SystemComparison(code, metric, **change.to_dict(), **test.to_dict()))
    return result


def _average(groups: list[Bools], parallel: bool, seed: int) -> tuple[float, float, float]:
    value = float(np.mean([hits.mean() for hits in groups]))
    if value in (0.0, 1.0):
        n = min(map(len, groups))
        low, high = wilson(int(value) * n, n)
    elif parallel:
        low, high = mean_interval(np.stack(groups, axis=1), seed)
    else:
        low, high = stratified_interval(groups, seed=seed)
    return value, low, high


def _items(questions: Sequence[QuestionLike]) -> tuple[str, ...]:
    """Name of each item: its fact id, else its place among the questions of its language."""
    seen: dict[str, int] = {}
    names = []
    for question in questions:
        place = seen[question.language] = seen.get(question.language, -1) + 1
        names.append(str(getattr(question, "fact_id", f"{place:09d}")))
    return tuple(names)


def _own_judgement(question: Any, answer: str, language: str | None) -> bool:
    method = getattr(question, "is_correct", None)
    if method is None:
        raise InputError(
            f"questions of type {type(question).__name__} have no is_correct(answer, language); "
            "pass is_correct=, for example lens.demo.is_correct"
        )
    return bool(method(answer, language))


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with the answers accepted for it, by language."""

    language: str
    prompt: str
    fact_id: str
    accepted: Mapping[str, tuple[str, ...]]

    def is_correct(self, answer: str, language: str | None = None) -> bool:
        """Whether the answer holds a reference of ``language`` (of any language for ``None``)."""
        references = (
            self.accepted.get(language, ())
            if language is not None
            else [text for texts in self.accepted.values() for text in texts]
        )
        return any(_holds(answer, reference) for reference in references)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rows of :func:`evaluate`, every answer with its language, and right or wrong per answer."""

    rows: tuple[ResultRow, ...]
    answers: tuple[dict[str, Any], ...]
    about: dict[str, Any]
    outcomes: Outcomes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "answers": [dict(answer) for answer in self.answers],
            "about": self.about,
        }


@takes(EvaluationSettings)
def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    prompts: Mapping[str, Sequence[str]],
    references: Sequence[Mapping[str, str | Sequence[str]]] | None = None,
    system: str = "model",
    around: Callable[[str], AbstractContextManager[Any]] = lambda _language: nullcontext(),
    respond: Callable[[str, list[str]], list[str]] | None = None,
    settings: EvaluationSettings,
) -> Evaluation:
    """Answer prompts in several languages and score the answers.

    Parameters
    ----------
    model, tokenizer : transformers model and tokenizer
        Hooks on the model (steering) apply.
    prompts : mapping of language to list of str
        Prompts per language; at least two languages, so that there is something to tell apart.
    references : sequence of mappings, optional
        Entry i holds the accepted answers of prompt i: one text or several per language. Without
        it only fidelity is measured.
    system : str
        Written into every row; a system message is set by ``chat``.
    around : callable
        Takes a language code; its context manager is entered while the prompts of that language
        are answered, such as steering to it.
    respond : callable, optional
        Takes a language code and its prompts and returns one answer each, instead of the model's
        own greedy answers: a pipeline, or another program.

    Returns
    -------
    Evaluation

    Raises
    ------
    InputError
        If there are no prompts, references do not match the prompts, or ``respond`` gives another
        number of answers.
    """
    from lens.data.languages import canonical

    codes = {canonical(code): list(rows) for code, rows in prompts.items()}
    judge = make_identifier(settings.identifier, list(codes), neutral=settings.neutral)
    accepted = _accepted(references, codes)
    items = [
        Item(code, prompt, f"{i:09d}", accepted[i] if accepted else {})
        for code, rows in codes.items()
        for i, prompt in enumerate(rows)
    ]

    def said(code: str, rows: list[str]) -> list[str]:
        return generate(
            model,
            tokenizer,
            rows,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            chat=settings.chat,
            label=f"Answering {code}",
            quiet=settings.quiet,
        )

    answers: list[str] = []
    for code, rows in codes.items():
        with around(code):
            given = (respond or said)(code, rows)
        if len(given) != len(rows):
            raise InputError(
                f"respond gave {len(given)} answers to {len(rows)} prompts in {code}; expected one "
                "a prompt"
            )
        answers += given
    found = judge.identify(answers)
    judged = outcomes(answers, items, identified=found)
    main, seed = canonical(settings.pivot) if settings.pivot else None, settings.seed
    rows_out = rows_of(judged, system=system, split=settings.split, pivot=main, seed=seed)
    if references is None:
        rows_out = [row for row in rows_out if row.metric == "fidelity"]
    texts = tuple(
        {"language": item.language, "prompt": item.prompt, "answer": answer, "identified": code}
        for item, answer, code in zip(items, answers, found, strict=True)
    )
    about = {"identifier": f"{judge.name} {judge.version}", "seed": seed, "pivot": main}
    return Evaluation(rows=tuple(rows_out), answers=texts, about=about, outcomes=judged)


def read_references(path: str | Path) -> list[dict[str, Any]]:
    """Read accepted answers: JSON Lines, line i for prompt i, one key per language.

    Raises
    ------
    InputError
        If a line is not a JSON object whose values are a text or a list of texts.
    """
    lines = read_text(path).splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}") from None
        texts = record.values() if isinstance(record, dict) else [None]
        if not all(isinstance(text, str | list) for text in texts):
            raise InputError(
                f"{path}, line {number} is {line[:60]!r}; expected one key per language with a "
                'text or a list of texts: {"eng_Latn": "forest", "spa_Latn": ["bosque"]}'
            )
        records.append(record)
    return records


def _accepted(
    references: Sequence[Mapping[str, str | Sequence[str]]] | None,
    prompts: Mapping[str, Sequence[str]],
) -> list[dict[str, tuple[str, ...]]]:
    from lens.data.languages import canonical

    if references is None:
        return []
    short = {code: len(rows) for code, rows in prompts.items() if len(rows) > len(references)}
    if short:
        raise InputError(
            f"{len(references)} references but prompts per language are {short}; "
            "expected one reference entry per prompt, in the same order"
        )
    return [
        {
            canonical(code): (texts,) if isinstance(texts, str) else tuple(map(str, texts))
            for code, texts in entry.items()
        }
        for entry in references
    ]


def _holds(answer: str, reference: str) -> bool:
    """Whether the reference stands in the answer as whole words, case and width aside."""
    text, wanted = (unicodedata.normalize("NFKC", t).casefold() for t in (answer, reference))
    wanted = wanted.strip()
    if not wanted:
        return False
    before = "" if _is_unspaced(wanted[0]) else r"(?<!\w)"
    after = "" if _is_unspaced(wanted[-1]) else r"(?!\w)"
    return re.search(before + re.escape(wanted) + after, text) is not None


def _is_unspaced(char: str) -> bool:
    from lens.data.language_id import UNSPACED, main_script

    return main_script(char) in UNSPACED
