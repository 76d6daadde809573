"""Translate first: put the prompt into the pivot, answer there, translate the answer back.

Nothing is trained; every answer costs three generations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lens.data.languages import canonical
from lens.evaluate import generate
from lens.models import ChatOptions
from lens.recipes.translating import Translator


def translate_first(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    language: str,
    translator: Translator,
    pivot: str = "eng_Latn",
    chat: ChatOptions | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[str]:
    """Answer prompts by way of the pivot language.

    Parameters
    ----------
    model, tokenizer
        A chat model and its tokenizer; it answers in the pivot.
    prompts : sequence of str
        Prompts in ``language``.
    language, pivot : str
        Language of the prompts and of the answers; the pivot's prompts are answered directly.
    translator : Translator
        Translates both ways.
    chat : ChatOptions, optional
        Chat template flags.
    max_new_tokens, batch_size : int
        As in `lens.evaluate.generate`.

    Returns
    -------
    list of str
        One answer per prompt.
    """
    source, main = canonical(language), canonical(pivot)
    asked = list(prompts)
    if source != main:
        asked = translator.translate(asked, source=source, target=main)
        # A prompt whose translation came out empty is asked as it is.
        asked = [made or given for made, given in zip(asked, prompts, strict=True)]
    said = generate(
        model, tokenizer, asked, max_new_tokens=max_new_tokens, batch_size=batch_size, chat=chat,
        label=f"Answering {main}",
    )  # fmt: skip
    return said if source == main else translator.translate(said, source=main, target=source)
