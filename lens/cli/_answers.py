"""Answers for ``lens train --losses self-translation``: given, or made by the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lens.errors import InputError

RECIPE = "self-translation"


@dataclass(frozen=True, slots=True)
class SelfMade:
    """The options that say where answers come from."""

    losses: str
    given: Path | None
    texts: Path | None
    translator: str | None

    def check(self) -> None:
        """Refuse options that do not go together, before a model is loaded.

        Raises
        ------
        InputError
            If answers are named without the recipe, or nothing says how to make them.
        """
        named = [o for o in ("given", "texts", "translator") if getattr(self, o) is not None]
        if self.losses != RECIPE:
            if named:
                options = ", ".join("--answers" if o == "given" else f"--{o}" for o in named)
                raise InputError(f"{options}: only for --losses {RECIPE}; got {self.losses}")
        elif self.given is None and self.texts is None:
            raise InputError(
                f"--losses {RECIPE} needs --texts, parallel plain text that shows how to "
                "translate, or --answers"
            )

    def answers(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Mapping[str, Sequence[str]],
        pivot: str,
        chat: Any,
        *,
        device: str,
        dtype: str,
    ) -> dict[str, list[str | None]] | None:
        """Read the answers, or let the model make them; None where none are needed."""
        from lens.data import read_parallel

        if self.losses != RECIPE:
            return None
        if self.given is not None:
            found = read_parallel(self.given, languages=tuple(prompts)).rows
            count = len(prompts[pivot])
            return {code: list(rows[:count]) for code, rows in found.items()}
        from lens.models import load
        from lens.recipes import self_translate

        other = None
        if self.translator is not None:
            other, _ = load(self.translator, device=device, dtype=dtype)
        texts = read_parallel(str(self.texts), languages=tuple(prompts)).rows
        made = self_translate(
            model, tokenizer, prompts, texts, pivot=pivot, translator=other, chat=chat
        )
        shares = ", ".join(f"{code} {share:.0%}" for code, share in made.kept.items())
        click.echo(f"translations kept: {shares}", err=True)
        return made.answers
