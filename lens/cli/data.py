"""``lens data check``: check text before anything is computed from it."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli.options import Verb, command, print_json
from lens.data.quality.config import CheckSettings
from lens.models.config import TokenizerSettings
from lens.utils.settings import option


class CheckCommand(CheckSettings, TokenizerSettings, Verb):
    """Options of ``lens data check``."""

    path: Path = option(..., "Text: any form that lens probe --data takes.", argument=True)
    strict: bool = option(False, "Fail on warnings too.")
    notes: bool = option(False, "List what is merely good to know.")


@command(CheckCommand)
def check(settings: CheckCommand) -> None:
    """Check the parallel text in PATH before anything is computed from it.

    Language and script of every row, empty and repeated rows, whether row i says the same in
    every language, and with --model tokens, truncation and the chat template. Exits with 2 when
    the text cannot be used, with --strict also on warnings.
    """
    from lens.data.quality.checks import check_text

    tokenizer, longest = None, None
    if settings.model is not None:
        from lens.models.loading import load_tokenizer

        tokenizer, longest = load_tokenizer(
            settings.model,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    report = check_text(settings.path, tokenizer=tokenizer, longest=longest, settings=settings)
    passes = report.passes(strict=settings.strict)
    if settings.as_json:
        print_json({**report.to_dict(), "passes": passes})
    else:
        click.echo(report.summary(notes=settings.notes))
    if not passes:
        click.get_current_context().exit(2)
