"""``lens train``: Lens training of the top blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lens.cli._answers import RowOptions
from lens.cli._config import Settings
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
from lens.cli._running import RunFlags, run_flags
from lens.cli._tuning import TuneOption, spoken, tune_options
from lens.errors import InputError

if TYPE_CHECKING:
    from lens.models.tokenization import ChatOptions
    from lens.training.parameters import Lora
    from lens.training.result import TrainResult


def _losses(content: Any) -> dict[str, Any]:
    """Check a preset's name or settings, and return them complete."""
    from lens.training.config import resolve

    name = content.get("preset") if isinstance(content, dict) else content
    named = {"preset": name} if isinstance(name, str) else {}
    return named | resolve(content).model_dump(mode="json")


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
    type=Settings("preset | FILE", _losses),
    default="lens+kl",
    show_default=True,
    help="lens+kl, lens, lens-paper, self-translation, question-translation, or a YAML file.",
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
    help="Answers to the prompts, line by line, for losses that read them; else they are made.",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    help="Parallel plain text: examples of translation, or what losses with rows: text read.",
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
    help="Keep weights that training does not need in files, not in memory.",
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
@tune_options
@run_flags
@chat_options
@talk_options
def command(
    model: str, revision: str | None, device: str, dtype: str, trust_remote_code: bool,
    space: Path, prompts: Path, langs: tuple[str, ...] | None, layers: str, losses: dict[str, Any],
    strength: float | dict[str, float], steps: int | None, learning_rate: float | None,
    batch_size: int | None, limit: int | None, answers: Path | None, texts: Path | None,
    translator: str | None, what: str, lora: int | None, lora_alpha: int | None, dora: bool,
    low_memory: bool, cache: Path | None, max_memory: str | None, seed: int, out: Path, force: bool,
    tune: dict[str, Any] | None, journal: Path | None, template: bool | None, system: str | None,
    thinking: bool | None, run: RunFlags, as_json: bool,
) -> None:  # fmt: skip
    """Train the top blocks so that the model answers in the language it is asked in.

    Needs prompts alone, the same ones in every language. With --losses self-translation the model
    learns from its own pivot answers, which it (or --translator) translates; that needs --texts.
    With --tune, settings are chosen on validation questions first. Writes a Hugging Face
    checkpoint with the log and reproduce.json.
    """
    from lens.space.space import Space
    from lens.training.config import resolve
    from lens.training.processes import finish, start
    from lens.training.trainer import train
    from lens.utils.files import refuse_existing

    refuse_existing(out, force=force)
    adapter = _adapter(lora, lora_alpha, dora)
    search = TuneOption.of(tune, journal, out)
    _check_memory(max_memory)
    running, refusals = run.running(out, force=force), run.refusals()
    read = Space.load(space)
    rows: Mapping[str, Sequence[str]] = _prompts(prompts, read.pivot, langs, limit)
    given = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}
    changed = {name: value for name, value in given.items() if value is not None} | run.settings
    config = resolve(losses | changed)
    row_options = RowOptions(losses.get("preset"), answers, texts, translator)
    row_options.check(config)
    validation, chat = run.validation_rows(tuple(rows)), chat_of(template, system, thinking)

    processes, device = start(device)
    if search is not None and processes.count > 1:
        raise InputError("--tune runs in one process; train the chosen setting with several")
    loaded, tokenizer = load_model(
        model, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    rows, said = row_options.said(
        config, loaded, tokenizer, rows, pivot=read.pivot, chat=chat, device=device, dtype=dtype
    )
    result = (train if search is None else search.train)(
        loaded, tokenizer, read, rows, layers=layers, train=what, lora=adapter, losses=config,
        strength=strength, seed=seed, running=running, chat=chat, low_memory=low_memory,
        cache=cache, max_memory=max_memory, validation=validation, answers=said,
        texts=row_options.plain(config, rows, read.pivot),
    )  # fmt: skip
    if processes.main:
        if refusals:
            result.about["refusal_drift"] = _refusals(result, refusals, chat)
        result.save(out, force=force)
        if search is not None:
            search.forget()
        _tell(result, out, as_json=as_json)
    finish()


def _adapter(rank: int | None, alpha: int | None, dora: bool) -> Lora | None:
    if rank is None and (dora or alpha):
        raise InputError("--dora and --lora-alpha are settings of adapters; give --lora RANK too")
    from lens.training.parameters import Lora

    return None if rank is None else Lora(rank, alpha, dora)


def _check_memory(limit: str | None) -> None:
    """Tell a typing error before a model is loaded."""
    if limit is not None:
        from lens.utils.files import size_in_bytes

        size_in_bytes(limit)


def _prompts(
    path: Path, pivot: str, languages: tuple[str, ...] | None, limit: int | None
) -> dict[str, list[str]]:
    """Read the prompts of the languages that were named, or all, the pivot among them."""
    from lens.data.corpora import read_parallel
    from lens.data.languages import canonical

    wanted = None
    if languages:
        wanted = (pivot, *(code for code in languages if canonical(code) != pivot))
    return read_parallel(path, languages=wanted, limit=limit).rows


def _refusals(result: TrainResult, prompts: list[str], chat: ChatOptions) -> dict[str, Any]:
    from dataclasses import asdict

    from lens.evaluation.drift import refusal_drift

    return asdict(refusal_drift(result, prompts, chat=chat))


def _tell(result: TrainResult, out: Path, *, as_json: bool) -> None:
    last = result.log[-1] if result.log else {}
    shown = ("validation", "refusal_drift", "tuning")
    found = {key: result.about[key] for key in shown if key in result.about}
    if as_json:
        print_json({"out": str(out), "steps": len(result.log), "last": last, **found})
        return
    if "tuning" in found:
        best = found["tuning"]["best"]
        click.echo(
            f"chose trial {best['number']} of {len(found['tuning']['trials'])}: "
            f"{found['tuning']['metric']} {best['quality']:.3f}, drift {best['drift']:.4f} nats; "
            f"layers {best['setting']['layers']}, strength {spoken(best['strength'])}"
        )
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
