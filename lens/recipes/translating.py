"""Let a language model translate: parallel sentences as examples, then the sentence at hand."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lens.data.languages import canonical
from lens.errors import InputError
from lens.evaluate import generate
from lens.models import ChatOptions

_END = re.compile(r"[.!?。！？]+|\n")


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
    examples : int
        Sentence pairs before each sentence: those whose source shares most words with it.
    pair, between : str
        How a pair is written, with ``{source}`` and ``{target}``, and what stands between pairs.
    max_new_tokens, batch_size : int
        As in `lens.evaluate.generate`.
    seed : int
        Breaks ties between examples.

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
        examples: int = 2,
        pair: str = "{source} = {target}",
        between: str = " ",
        max_new_tokens: int = 64,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.pool = _checked(texts, [canonical(code) for code in languages], examples, pair)
        self.examples, self.pair, self.between = examples, pair, between
        self.max_new_tokens, self.batch_size, self.seed = max_new_tokens, batch_size, seed

    def translate(self, rows: Sequence[str], *, source: str, target: str) -> list[str]:
        """Translate sentences; each translation ends with its first sentence.

        Raises
        ------
        InputError
            If there are no texts in a language.
        """
        shown, wanted = self._examples(source), self._examples(target)
        nearest = _nearest(rows, shown, self.examples, self.seed)
        contexts = [
            _context(row, near, shown, wanted, self.pair, self.between)
            for row, near in zip(rows, nearest, strict=True)
        ]
        made = generate(
            self.model, self.tokenizer, contexts, max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size, chat=ChatOptions(template=False),
            label=f"Translating to {canonical(target)}",
        )  # fmt: skip
        return [_first_sentence(text) for text in made]

    def _examples(self, language: str) -> list[str]:
        code = canonical(language)
        if code not in self.pool:
            raise InputError(f"texts: no {code}; the examples are in {', '.join(self.pool)}")
        return self.pool[code]


def _checked(
    texts: Mapping[str, Sequence[str]], languages: list[str], examples: int, pair: str
) -> dict[str, list[str]]:
    pool = {canonical(code): list(rows) for code, rows in texts.items()}
    missing = [code for code in languages if code not in pool]
    if missing:
        raise InputError(f"texts: no {', '.join(missing)}; expected every language of the prompts")
    counts = {code: len(pool[code]) for code in languages}
    if len(set(counts.values())) > 1:
        raise InputError(f"texts are not parallel, row counts are {counts}")
    if not 1 <= examples <= min(counts.values()):
        raise InputError(
            f"examples: got {examples}, expected 1 to {min(counts.values())}, the rows of texts"
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
