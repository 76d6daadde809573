"""Self-translation: a model answers in its pivot language and translates its own answers.

The answers train it to answer in the language it is asked in (self-translation distillation, of
the family of SDRRL, a baseline of Lens, arXiv 2410.04407). No target-language answers are needed,
only prompts and some parallel plain text that shows how to translate.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens.data.languages import canonical
from lens.errors import InputError
from lens.evaluate import generate, identifier
from lens.models import ChatOptions

_END = re.compile(r"[.!?。！？]+|\n")


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
    languages = [code for code in map(canonical, prompts) if code != main]
    pool = _checked(texts, main, languages, examples, pair)
    asked = {canonical(code): list(rows) for code, rows in prompts.items()}
    if main not in asked or not languages:
        raise InputError(
            f"prompts: languages {', '.join(asked)}; expected the pivot {main} and at least one "
            "other"
        )
    judge = identifier(name, [main, *languages], neutral=neutral)
    said = generate(
        model, tokenizer, asked[main], max_new_tokens=max_new_tokens, batch_size=batch_size,
        chat=chat, label=f"Answering {main}",
    )  # fmt: skip
    nearest = _nearest(said, pool[main], examples, seed)
    answers: dict[str, list[str | None]] = {main: list(said)}
    kept = {}
    for code in languages:
        contexts = [
            _context(text, rows, pool[main], pool[code], pair, between)
            for text, rows in zip(said, nearest, strict=True)
        ]
        made = generate(
            translator or model, tokenizer, contexts, max_new_tokens=max_new_tokens,
            batch_size=batch_size, chat=ChatOptions(template=False), label=f"Translating to {code}",
        )  # fmt: skip
        first = [_first_sentence(text) for text in made]
        found = judge.identify(first)
        answers[code] = [
            text if text and lang == code else None for text, lang in zip(first, found, strict=True)
        ]
        kept[code] = sum(text is not None for text in answers[code]) / len(first)
    return SelfAnswers(answers, kept)


def _checked(
    texts: Mapping[str, Sequence[str]], pivot: str, languages: list[str], examples: int, pair: str
) -> dict[str, list[str]]:
    pool = {canonical(code): list(rows) for code, rows in texts.items()}
    missing = [code for code in (pivot, *languages) if code not in pool]
    if missing:
        raise InputError(f"texts: no {', '.join(missing)}; expected every language of the prompts")
    counts = {code: len(pool[code]) for code in (pivot, *languages)}
    if len(set(counts.values())) > 1:
        raise InputError(f"texts are not parallel, row counts are {counts}")
    if not 1 <= examples <= counts[pivot]:
        raise InputError(
            f"examples: got {examples}, expected 1 to {counts[pivot]}, the rows of texts"
        )
    if "{source}" not in pair or not pair.endswith("{target}"):
        raise InputError(f"pair: got {pair!r}, expected '{{source}}' and, at its end, '{{target}}'")
    return pool


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _nearest(said: Sequence[str], pool: Sequence[str], k: int, seed: int) -> list[list[int]]:
    """Rows of the pool that share most words with each text, the nearest last."""
    rng = random.Random(seed)
    have = [_words(text) for text in pool]
    found = []
    for text in said:
        words = _words(text)
        order = sorted(
            range(len(pool)),
            key=lambda i: (-len(words & have[i]) / max(1, len(words | have[i])), rng.random()),
        )
        found.append(order[:k][::-1])
    return found


def _context(
    text: str,
    rows: Sequence[int],
    source: Sequence[str],
    target: Sequence[str],
    pair: str,
    between: str,
) -> str:
    shown = [pair.format(source=source[i], target=target[i]) for i in rows]
    asked = pair.removesuffix("{target}").format(source=text).rstrip()
    return between.join([*shown, asked])


def _first_sentence(text: str) -> str:
    text = text.strip()
    end = _END.search(text)
    return text[: end.end()].strip() if end else text
