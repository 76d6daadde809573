"""``lens steer``: generate under steering."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli.options import Verb, command, print_json
from lens.errors import InputError
from lens.evaluation.config import AnswerSettings
from lens.models.config import ModelSettings
from lens.steering.config import SteerSettings
from lens.utils.settings import option


class SteerCommand(AnswerSettings, SteerSettings, ModelSettings, Verb):
    """Options of ``lens steer``."""

    space: Path = option(..., "Space file of this model, from lens probe.")
    prompt: tuple[str, ...] = option((), "A prompt; repeat for several.", many=True)
    prompts: Path | None = option(None, "File with one prompt per line.")
    compare: bool = option(False, "Also print the answer without steering.")


@command(SteerCommand)
def steer(settings: SteerCommand) -> None:
    """Answer prompts with a language added to, or projected out of, the residual stream."""
    from lens.models.generation import generate
    from lens.space.space import Space
    from lens.steering.policy import Policy, PolicyRule

    texts = [*settings.prompt, *_lines(settings.prompts)]
    if not texts:
        raise InputError("no prompt was given; pass --prompt TEXT or --prompts FILE")
    if settings.method == "add" and settings.language is None:
        raise InputError("--method add needs --lang, the language to steer to")
    space = Space.load(settings.space)
    target = "*" if settings.language is None else space.language(settings.language)
    rule = PolicyRule(
        target,
        settings.layers,
        settings.method,
        settings.strength,
        settings.rank,
        settings.tokens,
    )
    model, tokenizer = settings.load()

    def answer() -> list[str]:
        return generate(
            model,
            tokenizer,
            texts,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            chat=settings.chat,
        )

    plain = answer() if settings.compare else []
    with space.steer(model, Policy((rule,)), language=settings.language):
        steered = answer()
    if settings.as_json:
        rows = [
            {"prompt": text, "steered": said} for text, said in zip(texts, steered, strict=True)
        ]
        print_json([row | {"plain": plain[i]} for i, row in enumerate(rows)] if plain else rows)
        return
    for i, text in enumerate(texts):
        if settings.compare or len(texts) > 1:
            click.echo(f"> {text}")
        if settings.compare:
            click.echo(f"plain:   {plain[i]}\nsteered: {steered[i]}\n")
        else:
            click.echo(steered[i])


def _lines(path: Path | None) -> list[str]:
    from lens.evaluation.results import read_text

    if path is None:
        return []
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]
