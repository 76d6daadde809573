"""``lens probe``: read a language space from parallel text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lens.cli._options import (
    Listed,
    any_model_options,
    chat_of,
    chat_options,
    load_model,
    part_options,
    print_json,
    talk_options,
)
from lens.cli._states import StateOptions, state_options

if TYPE_CHECKING:
    from lens.space.space import Space

_CHECKED = 2000  # rows of each language that the check before a probe looks at,
_JUDGED = 200  # and those whose language it judges


@click.command()
@any_model_options
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Parallel text: folder of CODE.txt, or .jsonl, .json, .tsv, .parquet, a saved dataset.",
)
@part_options
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Look at the text first (the cheap part of lens data check); warnings go to stderr.",
)
@state_options
@click.option("--langs", type=Listed(), help="Languages to read; all in the data by default.")
@click.option("--pivot", default="eng_Latn", show_default=True, help="Central language.")
@click.option("--sites", default="all", show_default=True, help="all, -2:, block.3,final, ...")
@click.option(
    "--pooling", type=click.Choice(["mean", "last", "weighted"]), default="mean", show_default=True
)
@click.option(
    "--role",
    type=click.Choice(["text", "user", "assistant"]),
    default="text",
    show_default=True,
    help="What a row is to the model.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="User prompts per language, for --role assistant.",
)
@click.option("--limit", type=click.IntRange(min=2), help="Rows per language.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Cut rows after this many tokens.")
@click.option("--batch-size", default="auto", show_default=True, help="Rows per batch, or auto.")
@click.option(
    "--keep-states",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the pooled states of every row too, for bootstrap and choice of rank.",
)
@click.option(
    "--states-dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="How --keep-states stores them.",
)
@click.option("--choose-ranks", is_flag=True, help="Choose ranks on the kept states.")
@click.option("--max-memory", metavar="SIZE", help="Such as 12GB: smaller batches to keep it.")
@click.option(
    "--layer-by-layer",
    is_flag=True,
    help="Hold one block's weights at a time, for a model larger than memory.",
)
@click.option("--resume", is_flag=True, help="Go on with the same probe that was interrupted.")
@click.option("--threads", "-j", type=click.IntRange(min=1), help="Threads of the C core.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="space.safetensors")
@click.option("--force", is_flag=True, help="Replace --out.")
@chat_options
@talk_options
def command(
    model: str, revision: str | None, device: str, dtype: str, trust_remote_code: bool,
    data: Path, langs: tuple[str, ...] | None, pivot: str, sites: str, pooling: str, role: str,
    prompts: Path | None, limit: int | None, max_tokens: int | None, batch_size: str,
    keep_states: Path | None, states_dtype: str, choose_ranks: bool,
    max_memory: str | None, layer_by_layer: bool, resume: bool,
    threads: int | None, seed: int, out: Path, force: bool, template: bool | None,
    system: str | None, thinking: bool | None, as_json: bool, split: str | None,
    column: str | None, incomplete: Literal["refuse", "drop"], check: bool, given: StateOptions,
) -> None:  # fmt: skip
    """Read the language space of a model from parallel text, or from states made elsewhere.

    Row i must say the same in every language. The file holds statistics only, no text. With
    --states no model is run: the folder holds its states.
    """
    from lens.utils.files import refuse_existing

    refuse_existing(out, force=force)
    if given.states is not None:
        _refuse_both(model, data)
        space = given.space(langs, pivot=pivot, sites=sites, pooling=pooling, role=role, seed=seed)
        _tell(space, out, as_json=as_json)
        return
    if model is None or data is None:
        raise click.UsageError("give --model and --data, or --states with states made elsewhere")
    from lens.data.corpora import read_parallel
    from lens.space.probe import probe
    from lens.utils.files import size_in_bytes

    size = read_batch_size(batch_size)
    if max_memory is not None:
        size_in_bytes(max_memory)  # a typing error is told before a model is loaded
    found = read_parallel(
        data, languages=langs, limit=limit, split=split, column=column, incomplete=incomplete
    )
    rows = found.rows
    if check:
        _check(rows, found.typed, pivot)
    asked = read_parallel(prompts, languages=langs, min_rows=1).rows if prompts else None
    loaded, tokenizer = load_model(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        layer_by_layer=layer_by_layer,
    )
    space = probe(
        loaded, tokenizer, rows, pivot=pivot, sites=read_sites(sites), pooling=pooling,  # type: ignore[arg-type]
        role=role, prompts=asked, batch_size=size, max_tokens=max_tokens, seed=seed,  # type: ignore[arg-type]
        keep=keep_states, states_dtype=states_dtype, choose_ranks=choose_ranks, force=force,  # type: ignore[arg-type]
        max_memory=max_memory, work=out.with_name(out.name + ".unfinished"), resume=resume,
        n_threads=threads, chat=None if role == "text" else chat_of(template, system, thinking),
    )  # fmt: skip
    _tell(space, out, as_json=as_json)


def _tell(space: Space, out: Path, *, as_json: bool) -> None:
    space.save(out)
    if as_json:
        print_json({"out": str(out), **space.to_dict()})
    else:
        click.echo(space.summary())
        click.echo(f"\n{out}")


def _check(rows: dict[str, list[str]], typed: dict[str, str], pivot: str) -> None:
    """Tell on stderr what the data doctor thinks of the text, without slowing the probe down."""
    from lens.data.quality.checks import check_text
    from lens.utils.progress import say

    few = {typed[code]: texts[:_CHECKED] for code, texts in rows.items()}
    report = check_text(few, pivot=pivot, judge=_JUDGED)
    for found in report.of_level("warning"):
        say(str(found))
    if report.of_level("warning"):
        say("lens data check says more; --no-check leaves this out")


def _refuse_both(model: str | None, data: Path | None) -> None:
    if model is not None or data is not None:
        raise click.UsageError("--states are states already; leave out --model and --data")


def read_sites(text: str) -> str | list[str]:
    """Names of several sites come as a list; a slice stays as it is."""
    return text.split(",") if "," in text and ("block" in text or "final" in text) else text


def read_batch_size(text: str) -> int | Literal["auto"]:
    """Read ``auto`` or a number."""
    if text == "auto" or (text.isdigit() and int(text) > 0):
        return "auto" if text == "auto" else int(text)
    raise click.BadParameter(f"{text!r}; expected auto or a number from 1", param_hint="batch-size")
