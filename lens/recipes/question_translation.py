"""Question translation: a model learns to put prompts into its pivot language, without answers.

A rival beside Lens: if a model understood a prompt in language l as it does the pivot's, it could
use what it knows there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens.data.languages import canonical
from lens.errors import InputError
from lens.evaluate import generate
from lens.models import ChatOptions

INSTRUCTION = "Translate into English: {prompt}"


@dataclass(frozen=True, slots=True)
class Exercises:
    """Prompts and what to answer to them, for ``prompts`` and ``answers=`` of `lens.train`."""

    prompts: dict[str, list[str]]
    answers: dict[str, list[str | None]]


def question_translation(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]],
    *,
    pivot: str = "eng_Latn",
    instruction: str = INSTRUCTION,
    chat: ChatOptions | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> Exercises:
    """Ask for every prompt's version in the pivot.

    Parameters
    ----------
    model, tokenizer
        A chat model and its tokenizer. It answers the pivot's own prompts, so that a KL term can
        hold it there.
    prompts : mapping of str to sequence of str
        Parallel prompts.
    pivot : str
        Language into which prompts are translated.
    instruction : str
        What surrounds a prompt in another language, with ``{prompt}``.
    chat : ChatOptions, optional
        Chat template flags for the pivot's prompts.
    max_new_tokens, batch_size : int
        As in `lens.evaluate.generate`.

    Returns
    -------
    Exercises
        Instructed prompts, with the pivot's version as answer; the pivot's prompts with what the
        model says to them.

    Raises
    ------
    InputError
        If there is no pivot, prompts are not parallel, or ``instruction`` lacks ``{prompt}``.

    References
    ----------
    Zhu et al., "Question Translation Training for Better Multilingual Reasoning", arXiv 2401.07817.
    """
    asked = {canonical(code): list(rows) for code, rows in prompts.items()}
    main = canonical(pivot)
    if main not in asked:
        raise InputError(f"prompts: languages {', '.join(asked)}; expected the pivot {main}")
    counts = {code: len(rows) for code, rows in asked.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"prompts are not parallel, row counts are {counts}")
    if "{prompt}" not in instruction:
        raise InputError(f"instruction: got {instruction!r}, expected '{{prompt}}' in it")
    said = generate(
        model, tokenizer, asked[main], max_new_tokens=max_new_tokens, batch_size=batch_size,
        chat=chat, label=f"Answering {main}",
    )  # fmt: skip
    instructed = {
        code: rows if code == main else [instruction.replace("{prompt}", row) for row in rows]
        for code, rows in asked.items()
    }
    answers: dict[str, list[str | None]] = {code: list(asked[main]) for code in asked}
    answers[main] = list(said)
    return Exercises(instructed, answers)
