"""``lens train``: Lens training of the top blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lens.cli._answers import SelfMade
from lens.cli._options import (
    Layers,
    Listed,
    Strength,
    chat_of,
    chat_options,
    load_model,
    model_options,
    print_json,
    talk_options,
)
from lens.cli._running import RunOptions, run_options

if TYPE_CHECKING:
    from lens.lsm import TrainResult
    from lens.models import ChatOptions


@click.command()
@model_options
@click.option(
    "--space",
    required=True,
    type=click.Path(path_type=Path),
    help="Space file of this model, from lens probe.",
)
@click.option(
    "--prompts",
    required=True,
    type=click.Path(path_type=Path),
    help="Parallel prompts, no answers: folder of CODE.txt, .jsonl, .json or .tsv.",
)
@click.option("--langs", type=Listed(), help="Languages to train; all in the prompts by default.")
@click.option(
    "--layers",
    type=Layers(),
    default="-2:",
    show_default=True,
    help="Blocks to train: half-open slices, such as 2:4,-2:",
)
@click.option(
    "--train",
    "what",
    default="full",
    show_default=True,
    help="What of them: full, attention, mlp, bias, norm, or names inside a block.",
)
@click.option("--lora", type=click.IntRange(min=1), metavar="RANK", help="Train LoRA adapters.")
@click.option("--lora-alpha", type=click.IntRange(min=1), help="Their scale; twice the rank.")
@click.option("--dora", is_flag=True, help="Train DoRA adapters; needs --lora.")
@click.option(
    "--losses",
    type=click.Choice(["corrected", "lens-v1", "self-translation"]),
    default="corrected",
    show_default=True,
)
@click.option(
    "--strength",
    type=Strength(),
    default=1.0,
    show_default=True,
    help="Length of the language step, for all or per language.",
)
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    help="Answers to the prompts, line by line, for --losses self-translation; else they are made.",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    help="Parallel plain text: examples of translation for --losses self-translation.",
)
@click.option("--translator", help="Model that translates with the same tokenizer; else --model.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps.")
@click.option(
    "--lr", "learning_rate", type=click.FloatRange(min=0, min_open=True), help="Learning rate."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Prompts per step.")
@click.option("--limit", type=click.IntRange(min=2), help="Prompts per language.")
@click.option(
    "--low-memory/--keep-in-memory",
    default=True,
    show_default=True,
    help="Move weights that training does not need to a temporary file.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps the frozen model's states for later runs.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="Weights, optimizer and states together, such as 12GB; states that pass it go to disk.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Checkpoint folder.")
@click.option("--force", is_flag=True, help="Replace --out, discard an unfinished run.")
@run_options
@chat_options
@talk_options
def command(
    model: str, revision: str | None, device: str, dtype: str, trust_remote_code: bool,
    space: Path, prompts: Path, langs: tuple[str, ...] | None, layers: str, losses: str,
    strength: float | dict[str, float], steps: int | None, learning_rate: float | None,
    batch_size: int | None, limit: int | None, answers: Path | None, texts: Path | None,
    translator: str | None, what: str, lora: int | None,
    lora_alpha: int | None, dora: bool, low_memory: bool, cache: Path | None,
    max_memory: str | None, seed: int, out: Path, force: bool, template: bool | None,
    system: str | None, thinking: bool | None, run: RunOptions, as_json: bool,
) -> None:  # fmt: skip
    """Train the top blocks so that the model answers in the language it is asked in.

    Needs prompts alone, the same ones in every language. With --losses self-translation the model
    learns from its own pivot answers, which it (or --translator) translates; that needs --texts.
    Writes a Hugging Face checkpoint with the log and reproduce.json.
    """
    from lens.data import read_parallel
    from lens.errors import InputError
    from lens.io import refuse_existing
    from lens.space import Space

    refuse_existing(out, force=force)
    if lora is None and (dora or lora_alpha):
        raise InputError("--dora and --lora-alpha are settings of adapters; give --lora RANK too")
    if max_memory is not None:
        from lens.models.limits import size_in_bytes

        size_in_bytes(max_memory)  # a typing error is told before a model is loaded
    running = run.running(out, force=force)
    refusals = run.refusals()
    read = Space.load(space)
    wanted = (read.pivot, *(code for code in langs or () if read.pivot != _code(code)))
    rows = read_parallel(prompts, languages=wanted if langs else None, limit=limit).rows
    validation = run.validation_rows(tuple(rows))
    made = SelfMade(losses, answers, texts, translator)
    made.check()
    from lens.lsm import Lora, distribution, resolve, train

    processes, device = distribution.start(device)
    loaded, tokenizer = load_model(
        model, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    given = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}
    settings = {name: value for name, value in given.items() if value is not None} | run.settings
    chat = chat_of(template, system, thinking)
    result = train(
        loaded, tokenizer, read, rows, layers=layers, strength=strength, seed=seed, chat=chat,
        losses=resolve(resolve(losses).model_dump() | settings), low_memory=low_memory,
        train=what, lora=None if lora is None else Lora(lora, lora_alpha, dora), cache=cache,
        max_memory=max_memory, validation=validation, running=running,
        answers=made.answers(loaded, tokenizer, rows, read.pivot, chat, device=device, dtype=dtype),
    )  # fmt: skip
    if processes.main:
        if refusals:
            result.about["refusal_drift"] = _refusals(result, refusals, chat)
        result.save(out, force=force)
        _tell(result, out, as_json=as_json)
    distribution.finish()


def _refusals(result: TrainResult, prompts: list[str], chat: ChatOptions) -> dict[str, Any]:
    from dataclasses import asdict

    from lens.evaluate import refusal_drift

    return asdict(refusal_drift(result, prompts, chat=chat))


def _tell(result: TrainResult, out: Path, *, as_json: bool) -> None:
    last = result.log[-1] if result.log else {}
    found = {k: result.about[k] for k in ("validation", "refusal_drift") if k in result.about}
    if as_json:
        print_json({"out": str(out), "steps": len(result.log), "last": last, **found})
        return
    losses = ", ".join(f"{k} {v:.4g}" for k, v in last.items() if k.startswith("loss"))
    click.echo(f"{len(result.log)} steps in {result.seconds:.1f} s; last step: {losses}")
    if "validation" in found:
        best = found["validation"]
        click.echo(f"kept the weights of step {best['best_step']}: validation {best['loss']:.4g}")
    if "refusal_drift" in found:
        moved = found["refusal_drift"]
        click.echo(
            f"refusals: another first token on {moved['changed']:.1%} of {moved['n']} prompts "
            f"(95 % interval {moved['changed_low']:.1%} to {moved['changed_high']:.1%}), "
            f"KL {moved['kl']:.3g} nats"
        )
    click.echo(str(out))


def _code(typed: str) -> str:
    from lens.data import canonical

    return canonical(typed)
