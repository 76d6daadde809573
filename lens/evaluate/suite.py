"""Measure a model on one's own prompts: fidelity, and accuracy where references are given."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.errors import InputError
from lens.evaluate.generation import generate
from lens.evaluate.identify import identifier as make_identifier
from lens.evaluate.rows import ResultRow, read_text
from lens.evaluate.scoring import Outcomes, outcomes, rows_of

if TYPE_CHECKING:
    from lens.models import ChatOptions


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


def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    prompts: Mapping[str, Sequence[str]],
    references: Sequence[Mapping[str, str | Sequence[str]]] | None = None,
    pivot: str | None = None,
    identifier: str = "default",
    neutral: Sequence[str] = (),
    chat: ChatOptions | None = None,
    system: str = "model",
    split: str = "test",
    max_new_tokens: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = False,
    around: Callable[[str], AbstractContextManager[Any]] = lambda _language: nullcontext(),
    respond: Callable[[str, list[str]], list[str]] | None = None,
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
    pivot : str, optional
        Left out of the average.
    identifier : str
        Name of the language identifier; see :func:`lens.evaluate.identifier`.
    neutral : sequence of str
        Words that belong to no language, such as names; the identifier does not see them.
    chat : ChatOptions, optional
        As in :func:`lens.evaluate.generate`.
    system, split : str
        Written into every row.
    max_new_tokens, batch_size, seed, quiet
        As in :func:`lens.evaluate.generate`.
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
    judge = make_identifier(identifier, list(codes), neutral=neutral)
    accepted = _accepted(references, codes)
    items = [
        Item(code, prompt, f"{i:09d}", accepted[i] if accepted else {})
        for code, rows in codes.items()
        for i, prompt in enumerate(rows)
    ]

    def said(code: str, rows: list[str]) -> list[str]:
        return generate(
            model, tokenizer, rows, max_new_tokens=max_new_tokens, batch_size=batch_size,
            chat=chat, label=f"Answering {code}", quiet=quiet,
        )  # fmt: skip

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
    main = canonical(pivot) if pivot else None
    rows_out = rows_of(judged, system=system, split=split, pivot=main, seed=seed)
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
    from lens.evaluate._scripts import UNSPACED, main_script

    return main_script(char) in UNSPACED
