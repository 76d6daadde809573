"""Training rows from a model's own translations: self-translation, question translation."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lens.data.language_id import identifier
from lens.data.languages import canonical
from lens.errors import InputError
from lens.models.generation import generate
from lens.models.tokenization import ChatOptions

_END = re.compile(r"[.!?。！？]+|\n")
INSTRUCTION = "Translate into English: {prompt}"


@dataclass(frozen=True, slots=True)
class TranslationOptions:
    """How a model is shown what to translate, and how its translations are generated and judged.

    Attributes
    ----------
    examples : int
        Sentence pairs before each sentence: those whose source shares most words with it.
    pair, between : str
        How a pair is written, with ``{source}`` and ``{target}``, and what stands between pairs.
    max_new_tokens, batch_size : int
        As in `lens.models.generation.generate`.
    seed : int
        Breaks ties between examples.
    identifier, neutral
        Language identifier, and words it ignores, as in `lens.data.language_id.identifier`.
    """

    examples: int = 2
    pair: str = "{source} = {target}"
    between: str = " "
    max_new_tokens: int = 64
    batch_size: int = 32
    seed: int = 0
    identifier: str = "default"
    neutral: Sequence[str] = field(default=())


class Translator:
    """A model that translates sentence by sentence, shown pairs of parallel text.

    Parameters
    ----------
    model, tokenizer
        Continues plain text, without a template; a base model will do.
    texts : mapping of str to sequence of str
        Parallel plain sentences: the examples of how to translate.
    languages : sequence of str
        Those needed; each must be in ``texts``.
    options : TranslationOptions
        Examples and generation.

    Raises
    ------
    InputError
        If texts lack a language or are not parallel, there are fewer texts than examples, or
        ``pair`` lacks its two names.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        texts: Mapping[str, Sequence[str]],
        *,
        languages: Sequence[str],
        options: TranslationOptions | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.options = options or TranslationOptions()
        self.pool = _checked(texts, [canonical(code) for code in languages], self.options)

    def translate(self, rows: Sequence[str], *, source: str, target: str) -> list[str]:
        """Translate sentences; each translation ends with its first sentence.

        Raises
        ------
        InputError
            If there are no texts in a language.
        """
        shown, wanted, options = self._examples(source), self._examples(target), self.options
        nearest = _nearest(rows, shown, options.examples, options.seed)
        contexts = [
            _context(row, near, shown, wanted, options.pair, options.between)
            for row, near in zip(rows, nearest, strict=True)
        ]
        translated = generate(
            self.model,
            self.tokenizer,
            contexts,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            chat=ChatOptions(template=False),
            label=f"Translating to {canonical(target)}",
        )
        return [_first_sentence(text) for text in translated]

    def _examples(self, language: str) -> list[str]:
        code = canonical(language)
        if code not in self.pool:
            raise InputError(f"texts: no {code}; the examples are in {', '.join(self.pool)}")
        return self.pool[code]


def _checked(
    texts: Mapping[str, Sequence[str]], languages: list[str], options: TranslationOptions
) -> dict[str, list[str]]:
    pool = {canonical(code): list(rows) for code, rows in texts.items()}
    missing = [code for code in languages if code not in pool]
    if missing:
        raise InputError(f"texts: no {', '.join(missing)}; expected every language of the prompts")
    counts = {code: len(pool[code]) for code in languages}
    if len(set(counts.values())) > 1:
        raise InputError(f"texts are not parallel, row counts are {counts}")
    if not 1 <= options.examples <= min(counts.values()):
        raise InputError(
            f"examples: got {options.examples}, expected 1 to {min(counts.values())}, the rows of "
            "texts"
        )
    pair = options.pair
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


@dataclass(frozen=True, slots=True)
class SelfAnswers:
    """A model's answers, in its own translation.

    Attributes
    ----------
    answers : dict of str to list of (str or None)
        Per language one answer a prompt, the pivot's own among them; None where the translation
        was not in the language. Made for ``answers=`` of `lens.train`.
    kept : dict of str to float
        Share of the translations that were accepted, per language.
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
    chat: ChatOptions | None = None,
    options: TranslationOptions | None = None,
) -> SelfAnswers:
    """Answer the pivot's prompts and translate the answers into the other languages.

    Parameters
    ----------
    model, tokenizer
        A chat model and its tokenizer; it answers the pivot's prompts greedily.
    prompts : mapping of str to sequence of str
        Parallel prompts; only the pivot's are asked, the others name the languages.
    texts : mapping of str to sequence of str
        Parallel plain sentences in all these languages: the examples of how to translate.
    pivot : str
        Pivot language.
    translator : PreTrainedModel, optional
        Model that translates, with the same tokenizer, such as the base model; by default the
        model itself. It continues plain text, without a template.
    chat : ChatOptions, optional
        Chat template flags for the pivot's prompts.
    options : TranslationOptions, optional
        Examples, generation, and how the language of a translation is identified.

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
    A translation ends with its first sentence, and is accepted if the identifier takes it for the
    language. What the translator does not know in a language it tends to recall wrongly instead of
    translating it: see ``docs/results.md``.

    References
    ----------
    Lens, arXiv 2410.04407.
    """
    options = options or TranslationOptions()
    asked, main = _with_pivot(prompts, pivot)
    languages = [code for code in asked if code != main]
    if main not in asked or not languages:
        raise InputError(
            f"prompts: languages {', '.join(asked)}; expected the pivot {main} and at least one "
            "other"
        )
    by = Translator(translator or model, tokenizer, texts, languages=list(asked), options=options)
    judge = identifier(options.identifier, [main, *languages], neutral=options.neutral)
    given = _answered(model, tokenizer, asked[main], main, chat, options)
    answers: dict[str, list[str | None]] = {main: list(given)}
    kept = {}
    for code in languages:
        translated = by.translate(given, source=main, target=code)
        found = judge.identify(translated)
        answers[code] = [
            text if text and lang == code else None
            for text, lang in zip(translated, found, strict=True)
        ]
        kept[code] = sum(text is not None for text in answers[code]) / len(translated)
    return SelfAnswers(answers, kept)


@dataclass(frozen=True, slots=True)
class Exercises:
    """Prompts and the answers to them, for ``prompts`` and ``answers=`` of `lens.train`."""

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
    options: TranslationOptions | None = None,
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
    options : TranslationOptions, optional
        Its generation settings.

    Returns
    -------
    Exercises
        Instructed prompts, with the pivot's version as answer; the pivot's prompts with the
        model's answers.

    Raises
    ------
    InputError
        If there is no pivot, prompts are not parallel, or ``instruction`` lacks ``{prompt}``.

    References
    ----------
    Zhu et al., "Question Translation Training for Better Multilingual Reasoning", arXiv 2401.07817.
    """
    asked, main = _with_pivot(prompts, pivot)
    if main not in asked:
        raise InputError(f"prompts: languages {', '.join(asked)}; expected the pivot {main}")
    counts = {code: len(rows) for code, rows in asked.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"prompts are not parallel, row counts are {counts}")
    if "{prompt}" not in instruction:
        raise InputError(f"instruction: got {instruction!r}, expected '{{prompt}}' in it")
    given = _answered(model, tokenizer, asked[main], main, chat, options or TranslationOptions())
    instructed = {
        code: rows if code == main else [instruction.replace("{prompt}", row) for row in rows]
        for code, rows in asked.items()
    }
    answers: dict[str, list[str | None]] = {code: list(asked[main]) for code in asked}
    answers[main] = list(given)
    return Exercises(instructed, answers)


def translate_first(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    language: str,
    translator: Translator,
    pivot: str = "eng_Latn",
    chat: ChatOptions | None = None,
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
        Translates both ways; its generation settings are those of the answers too.
    chat : ChatOptions, optional
        Chat template flags.

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
        asked = [done or given for done, given in zip(asked, prompts, strict=True)]
    answers = _answered(model, tokenizer, asked, main, chat, translator.options)
    return answers if source == main else translator.translate(answers, source=main, target=source)


def _with_pivot(
    prompts: Mapping[str, Sequence[str]], pivot: str
) -> tuple[dict[str, list[str]], str]:
    return {canonical(code): list(rows) for code, rows in prompts.items()}, canonical(pivot)


def _answered(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    pivot: str,
    chat: ChatOptions | None,
    options: TranslationOptions,
) -> list[str]:
    """Answers of a model to the pivot's prompts, greedily."""
    return generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        chat=chat,
        label=f"Answering {pivot}",
    )
