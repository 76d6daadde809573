"""Self-translation: a model answers in its pivot language and translates its own answers.

The answers train it to answer in the language it is asked in (self-translation distillation, of
the family of SDRRL, a baseline of Lens, arXiv 2410.04407). No target-language answers are needed,
only prompts and some parallel plain text that shows how to translate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens.data.languages import canonical
from lens.errors import InputError
from lens.evaluate import generate, identifier
from lens.models import ChatOptions
from lens.recipes.translating import Translator


@dataclass(frozen=True, slots=True)
class SelfAnswers:
    """What a model said, in its own translation.

    Attributes
    ----------
    answers : dict of str to list of (str or None)
        Per language one answer a prompt, the pivot's own among them; None where the translation
        was not in the language. Made for ``answers=`` of `lens.train`.
    kept : dict of str to float
        Share of the translations that were kept, per language.
    """

    answers: dict[str, list[str | None]]
    kept: dict[str, float]


def self_translate(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]],
    texts: Mapping[str, Sequence[str]],
    *,
    pivot: str = "eng_Latn",
    translator: Any = None,
    examples: int = 2,
    pair: str = "{source} = {target}",
    between: str = " ",
    name: str = "default",
    neutral: Sequence[str] = (),
    chat: ChatOptions | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
) -> SelfAnswers:
    """Answer the pivot's prompts and translate the answers into the other languages.

    Parameters
    ----------
    model, tokenizer
        A chat model and its tokenizer; it answers the pivot's prompts greedily.
    prompts : mapping of str to sequence of str
        Parallel prompts; only the pivot's are asked, the others say which languages are wanted.
    texts : mapping of str to sequence of str
        Parallel plain sentences in all these languages: the examples of how to translate.
    pivot : str
        Pivot language.
    translator : PreTrainedModel, optional
        Model that translates, with the same tokenizer, such as the base model; by default the
        model itself. It continues plain text, without a template.
    examples : int
        Sentence pairs before each answer: those whose pivot side shares most words with it.
    pair, between : str
        How a pair is written, with ``{source}`` and ``{target}``, and what stands between pairs.
    name, neutral
        Language identifier, and words it shall not see, as in `lens.evaluate.identifier`.
    chat : ChatOptions, optional
        Chat template flags for the pivot's prompts.
    max_new_tokens, batch_size : int
        As in `lens.evaluate.generate`.
    seed : int
        Breaks ties between examples.

    Returns
    -------
    SelfAnswers

    Raises
    ------
    InputError
        If prompts or texts lack a language, texts are not parallel, there are fewer texts than
        examples, or ``pair`` lacks its two names.

    Notes
    -----
    A translation ends with its first sentence, and is kept if the identifier takes it for the
    language. What the translator does not know in a language it tends to recall wrongly instead of
    translating it: see ``docs/results.md``.

    References
    ----------
    Lens, arXiv 2410.04407.
    """
    main = canonical(pivot)
    asked = {canonical(code): list(rows) for code, rows in prompts.items()}
    languages = [code for code in asked if code != main]
    if main not in asked or not languages:
        raise InputError(
            f"prompts: languages {', '.join(asked)}; expected the pivot {main} and at least one "
            "other"
        )
    by = Translator(
        translator or model, tokenizer, texts, languages=list(asked), examples=examples, pair=pair,
        between=between, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    judge = identifier(name, [main, *languages], neutral=neutral)
    said = generate(
        model, tokenizer, asked[main], max_new_tokens=max_new_tokens, batch_size=batch_size,
        chat=chat, label=f"Answering {main}",
    )  # fmt: skip
    answers: dict[str, list[str | None]] = {main: list(said)}
    kept = {}
    for code in languages:
        made = by.translate(said, source=main, target=code)
        found = judge.identify(made)
        answers[code] = [
            text if text and lang == code else None for text, lang in zip(made, found, strict=True)
        ]
        kept[code] = sum(text is not None for text in answers[code]) / len(made)
    return SelfAnswers(answers, kept)
