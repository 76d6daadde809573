"""Answers and plain text that the losses of ``lens train`` read: given, or made by the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lens.errors import InputError

if TYPE_CHECKING:
    from lens.training.config import LensConfig

_QUESTIONS = "question-translation"  # the model's own prompts are its answers


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The options that say where answers and text come from, and the preset, if there is one."""

    preset: str | None
    answers: Path | None
    texts: Path | None
    translator: str | None

    def check(self, config: LensConfig) -> None:
        """Refuse options that do not fit the losses, before a model is loaded.

        Raises
        ------
        InputError
            If something is named that no loss reads, or nothing says where answers come from.
        """
        given = {"prompts", "answers"} if self.preset == _QUESTIONS else {"prompts"}
        reads = config.read_rows - given
        unread = [name for name in ("answers", "translator") if "answers" not in reads]
        unread += [] if reads else ["texts"]
        named = [f"--{name}" for name in unread if getattr(self, name) is not None]
        if named:
            raise InputError(
                f"{', '.join(named)}: not for these losses; only for losses that read answers or "
                "text, such as --losses self-translation"
            )
        if "answers" in reads and self.answers is None and self.texts is None:
            raise InputError(
                "these losses learn from answers: give --answers, or --texts, parallel plain text "
                "that shows the model how to translate its own"
            )
        if "text" in reads and self.texts is None:
            raise InputError("these losses read plain text in the languages trained; give --texts")

    def plain(
        self, config: LensConfig, prompts: Mapping[str, Sequence[str]], pivot: str
    ) -> dict[str, list[str]] | None:
        """Read the text that losses train on; None where none does."""
        if "text" not in config.read_rows:
            return None
        return {code: rows for code, rows in self._texts(prompts).items() if code != pivot}

    def said(
        self,
        config: LensConfig,
        model: Any,
        tokenizer: Any,
        prompts: Mapping[str, Sequence[str]],
        *,
        pivot: str,
        chat: Any,
        device: str,
        dtype: str,
    ) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str | None]] | None]:
        """Return prompts and answers: read, made by the model, or none where none are needed."""
        from lens.data.corpora import read_parallel

        if "answers" not in config.read_rows:
            return prompts, None
        if self.preset == _QUESTIONS:
            from lens.training.translation import question_translation

            asked = question_translation(model, tokenizer, prompts, pivot=pivot, chat=chat)
            return asked.prompts, asked.answers
        if self.answers is not None:
            found = read_parallel(self.answers, languages=tuple(prompts)).rows
            count = len(prompts[pivot])
            return prompts, {code: rows[:count] for code, rows in found.items()}
        from lens.models.loading import load
        from lens.training.translation import self_translate

        other = None
        if self.translator is not None:
            other, _ = load(self.translator, device=device, dtype=dtype)
        texts = self._texts(prompts)
        made = self_translate(
            model, tokenizer, prompts, texts, pivot=pivot, translator=other, chat=chat
        )
        shares = ", ".join(f"{code} {share:.0%}" for code, share in made.kept.items())
        click.echo(f"translations kept: {shares}", err=True)
        return prompts, made.answers

    def _texts(self, prompts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        from lens.data.corpora import read_parallel

        return read_parallel(str(self.texts), languages=tuple(prompts)).rows
