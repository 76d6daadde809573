"""``lens steer``: generate under steering."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import (
    Layers,
    chat_of,
    chat_options,
    load_model,
    model_options,
    print_json,
    talk_options,
)


@click.command()
@model_options
@click.option(
    "--space",
    required=True,
    type=click.Path(path_type=Path),
    help="Space file of this model, from lens probe.",
)
@click.option("--lang", help="Language to steer to; needed for --op add.")
@click.option(
    "--op",
    type=click.Choice(["add", "project"]),
    default="add",
    show_default=True,
    help="Add the difference of means, or project the language subspace out.",
)
@click.option("--layers", type=Layers(), default="-2:", show_default=True)
@click.option(
    "--strength",
    type=float,
    default=1.0,
    show_default=True,
    help="Signed; negative re-injects under --op project.",
)
@click.option("--rank", default="auto", show_default=True, help="Rank for project: auto, full, N.")
@click.option(
    "--apply", type=click.Choice(["all", "prompt", "generation"]), default="all", show_default=True
)
@click.option("--prompt", multiple=True, help="A prompt; repeat for several.")
@click.option("--prompts", type=click.Path(path_type=Path), help="File with one prompt per line.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--compare", is_flag=True, help="Also print the answer without steering.")
@chat_options
@talk_options
def command(
    model: str, revision: str | None, device: str, dtype: str, trust_remote_code: bool,
    space: Path, lang: str | None, op: str, layers: str, strength: float, rank: str, apply: str,
    prompt: tuple[str, ...], prompts: Path | None, max_new_tokens: int, batch_size: int,
    compare: bool, template: bool | None, system: str | None, thinking: bool | None, as_json: bool,
) -> None:  # fmt: skip
    """Answer prompts with a language added to, or projected out of, the residual stream."""
    texts = [*prompt, *(_lines(prompts) if prompts else ())]
    if not texts:
        raise click.UsageError("no prompt was given; pass --prompt TEXT or --prompts FILE")
    if op == "add" and lang is None:
        raise click.UsageError("--op add needs --lang, the language to steer to")
    from lens.space.space import Space

    read = Space.load(space)
    target = read.language(lang) if lang is not None else "*"
    loaded, tokenizer = load_model(
        model, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    from lens.models.generation import generate
    from lens.steering.policy import Policy, PolicyRule

    number: int | str = int(rank) if rank.isdigit() else rank
    rule = PolicyRule(target, layers, op, strength, number, apply)  # type: ignore[arg-type]
    chat = chat_of(template, system, thinking)

    def answer() -> list[str]:
        return generate(
            loaded, tokenizer, texts, max_new_tokens=max_new_tokens, batch_size=batch_size,
            chat=chat,
        )  # fmt: skip

    plain = answer() if compare else []
    with read.steer(loaded, Policy((rule,)), language=lang):
        steered = answer()
    if as_json:
        print_json([
            {"prompt": text, "steered": steered[i], **({"plain": plain[i]} if compare else {})}
            for i, text in enumerate(texts)
        ])  # fmt: skip
        return
    for i, text in enumerate(texts):
        if compare or len(texts) > 1:
            click.echo(f"> {text}")
        if compare:
            click.echo(f"plain:   {plain[i]}\nsteered: {steered[i]}\n")
        else:
            click.echo(steered[i])


def _lines(path: Path) -> list[str]:
    from lens.evaluation.results import read_text

    return [line.strip() for line in read_text(path).split("\n") if line.strip()]
