"""``lens maec train``: tune a whole model, or key neurons only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from lens.cli._options import (
    chat_of,
    chat_options,
    load_model,
    model_options,
    print_json,
    talk_options,
)
from lens.errors import InputError

_FILE = click.Path(path_type=Path)


@click.command("train")
@model_options
@click.option("--rows", type=_FILE, help='An ability: JSONL of {"prompt": …, "answer": …}.')
@click.option("--text", type=_FILE, help="A language: one document a line, or JSONL of {text}.")
@click.option("--keys", type=_FILE, help="File of lens extract: its elements alone are trained.")
@click.option(
    "--how",
    type=click.Choice(["mask", "revert"]),
    default="mask",
    show_default=True,
    help="Train key neurons alone, or all, and put the others back.",
)
@click.option("--replay", type=_FILE, help="General text, a part of every batch.")
@click.option("--replay-share", type=click.FloatRange(0, 1, max_open=True), help="Of the rows.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows per step.")
@click.option("--micro-batch", type=click.IntRange(min=1), help="Rows per forward pass.")
@click.option("--row-tokens", type=click.IntRange(min=2), help="Tokens of a row of text.")
@click.option(
    "--lr", "learning_rate", type=click.FloatRange(min=0, min_open=True), help="Learning rate."
)
@click.option("--weight-decay", type=click.FloatRange(min=0), help="Of AdamW.")
@click.option(
    "--train",
    metavar="PARTS",
    help="Parts of the blocks, the rest frozen: full, attention, mlp, mlp.down_proj, …",
)
@click.option("--layers", metavar="SPEC", help="Blocks of --train: 2:6, -4:, 10,12.")
@click.option("--autocast", is_flag=True, help="Multiply matrices in bfloat16.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", required=True, type=_FILE, help="Checkpoint folder.")
@click.option("--force", is_flag=True, help="Replace --out.")
@chat_options
@talk_options
def command(
    model: str, revision: str | None, device: str, dtype: str, trust_remote_code: bool,
    rows: Path | None, text: Path | None, keys: Path | None, how: Literal["mask", "revert"],
    replay: Path | None, replay_share: float | None, steps: int | None, batch_size: int | None,
    micro_batch: int | None, row_tokens: int | None, learning_rate: float | None,
    weight_decay: float | None, train: str | None, layers: str | None, autocast: bool, seed: int,
    out: Path, force: bool,
    template: bool | None, system: str | None, thinking: bool | None, as_json: bool,
) -> None:  # fmt: skip
    """Tune a model on an ability (--rows) or on a language (--text).

    All parameters, or with --keys the key neurons of an ability alone: everything else keeps its
    bits. Give --dtype float32 where changes are to be merged: in 16 bits small ones are lost.
    """
    from lens.merging.sources import read_key_neurons
    from lens.training.finetune import examples, read_rows, read_text
    from lens.training.finetune import finetune_corpus as tune
    from lens.utils.files import refuse_existing

    refuse_existing(out, force=force)
    if (rows is None) == (text is None):
        raise InputError("give what is learnt: --rows FILE for an ability, or --text FILE")
    given = {
        "steps": steps, "batch_size": batch_size, "micro_batch_size": micro_batch,
        "row_tokens": row_tokens, "learning_rate": learning_rate, "weight_decay": weight_decay,
        "replay": replay_share, "autocast": autocast, "modules": train, "layers": layers,
    }  # fmt: skip
    settings = _settings({name: value for name, value in given.items() if value is not None})
    corpus = read_text(text) if text is not None else read_rows(rows or "")
    general = None if replay is None else read_text(replay)
    places = None if keys is None else read_key_neurons(keys)
    loaded, tokenizer = load_model(
        model, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    size = settings.row_tokens
    found = tune(
        loaded, tokenizer,
        examples(tokenizer, corpus, row_tokens=size, chat=chat_of(template, system, thinking)),
        settings=settings, keys=places, how=how, seed=seed,
        replay=None if general is None else examples(tokenizer, general, row_tokens=size),
    )  # fmt: skip
    found.save(out, force=force)
    last = found.log[-1]
    if as_json:
        print_json({"out": str(out), "steps": len(found.log), "last": last, **found.about})
        return
    told = "" if places is None else f", {places.count} key elements"
    click.echo(f"{len(found.log)} steps in {found.seconds:.1f} s, loss {last['loss']:.4g}{told}")
    click.echo(str(out))


def _settings(given: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from lens.training.finetune import FinetuneSettings
    from lens.utils.config import problems

    try:
        return FinetuneSettings.model_validate(given)
    except ValidationError as error:
        raise InputError("; ".join(problems(error, FinetuneSettings, given))) from None
