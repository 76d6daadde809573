"""What a part of a step counts for, when its prompts are computed in several passes.

Passes are added up by their number of prompts. A term that is a mean over prompts then gives the
same sum however the prompts are shared out; one that is a mean over tokens must be weighted by its
tokens instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lens.lsm.config import LanguageModel, Norm, PivotKL, Positions, Retain, Term

if TYPE_CHECKING:
    from lens.lsm.training import LensTrainer


def weight_of_part(
    term: Term, trainer: LensTrainer, part: Sequence[int], whole: Sequence[int]
) -> float:
    """Return the factor of a term's value over ``part``, so that parts of ``whole`` add up."""
    if len(part) == len(whole):
        return 1.0
    every = _mass(term, trainer, whole)
    if every == 0:
        return 1.0
    return _mass(term, trainer, part) / every * len(whole) / len(part)


def _mass(term: Term, trainer: LensTrainer, prompts: Sequence[int]) -> float:
    """Return what the term's mean over these prompts divides by."""
    if isinstance(term, PivotKL) or (isinstance(term, Retain) and term.rows == "pivot"):
        if isinstance(term, Retain) and term.form == "token_mean":
            return len(prompts)
        answers = isinstance(term, PivotKL) and term.rows == "answers"
        rows = trainer.pivot_answer_lengths if answers else trainer.tokens[trainer.pivot]
        return _counted([rows], prompts, term.positions)
    if isinstance(term, Retain):
        if term.form == "token_mean":
            return len(prompts)
        return _counted(list(trainer.text_tokens.values()), prompts, term.positions)
    if isinstance(term, LanguageModel):
        answers = term.rows == "answers"
        source = trainer.answer_tokens if answers else trainer.text_tokens
        first = 0 if answers else len(prompts)  # nothing predicts the first token of a text
        return sum(
            term.languages.get(lang, 1.0) * (_counted([rows], prompts, "all") - first)
            for lang, rows in source.items()
            if lang != trainer.pivot or term.pivot
        )
    if isinstance(term, Norm):
        return sum(
            term.languages.get(lang, 1.0) * _counted([rows], prompts, term.positions)
            for lang, rows in trainer.tokens.items()
        )
    return len(prompts)


def _counted(rows: list[list[int]], prompts: Sequence[int], positions: Positions) -> int:
    """Tokens of the prompts' rows that stand at ``positions``."""
    lengths = [mine[i % len(mine)] for mine in rows for i in prompts]
    if positions == "all":
        return sum(lengths)
    if positions in ("last", "mean"):
        return sum(length > 0 for length in lengths)
    return sum(min(length, int(positions)) for length in lengths)
