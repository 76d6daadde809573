"""``lens merge``, ``extract``, ``verify``, ``diff``, ``maec train`` and ``maec run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import model_validator

from lens.cli.options import Verb, command, print_json
from lens.errors import InputError
from lens.merging.config import MergeConfig, Recipe
from lens.models.config import ModelSettings
from lens.models.tokenization import ChatOptions
from lens.training.config import FinetuneSettings
from lens.utils.settings import Size, group, option

_ABILITY = {
    "trained": "trained",
    "located": "located",
    "pivot_model": "pivot",
    "extracted": "extracted",
}


class MergeOptions(MergeConfig, Verb):
    """What is merged, and how: a YAML file, flags, or both; flags win."""

    trained: str | None = option(None, "MAEC: model trained on the ability.")
    located: str | None = option(None, "MAEC: model trained briefly on the ability.")
    pivot_model: str | None = option(None, "MAEC: model further trained on general pivot text.")
    extracted: str | None = option(None, "MAEC: file of lens extract, in place of these three.")
    max_memory: Size = option("1GiB", "Memory for everything together.", metavar="SIZE")

    @model_validator(mode="before")
    @classmethod
    def _one_ability(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("merge_method") and cls.model_fields["merge_method"].is_required():
            raise ValueError("no merge is described; give --config FILE, or --method and models")
        ability = {key: values[name] for name, key in _ABILITY.items() if values.get(name)}
        return {**values, "abilities": [ability]} if ability else values

    @property
    def config(self) -> MergeConfig:
        """The merge itself."""
        return self.part(MergeConfig)


class MergeCommand(MergeOptions):
    """Options of ``lens merge``."""

    out: Path | None = option(None, "Folder of the result.")
    out_shard_size: Size = option("5GB", "Bytes of tensors in one file at most.", metavar="SIZE")
    lora_rank: int | None = option(
        None,
        "Write the delta as a LoRA adapter of this rank instead of a checkpoint.",
        ge=1,
        metavar="RANK",
    )
    lora_energy: float | None = option(
        None,
        "The same, of the rank that keeps this share of the squared delta.",
        gt=0,
        le=1,
        metavar="SHARE",
    )
    dry_run: bool = option(False, "Only report what would be done, and every problem.")
    resume: bool = option(False, "Resume a merge that was interrupted.")
    force: bool = option(False, "Replace --out, discard an interrupted merge.")


@command(MergeCommand)
def merge(settings: MergeCommand) -> None:
    """Merge checkpoints into a new one: a YAML file in mergekit's format, flags, or both.

    Weights are streamed: memory stays below --max-memory for models of any size. A merge that was
    killed resumes with --resume, and lens verify computes tensors again and compares.
    """
    from lens.merging import merge
    from lens.report.text import merge_text

    config, out = settings.config, settings.out
    if settings.dry_run:
        show_plan(config, settings, out)
        return
    if out is None:
        raise InputError("no output is named; give --out FOLDER, or --dry-run")
    if settings.lora_rank is not None or settings.lora_energy is not None:
        _write_adapter(config, settings, out)
        return
    result = merge(
        config,
        out,
        max_memory=settings.max_memory,
        shard_size=settings.out_shard_size,
        resume=settings.resume,
        force=settings.force,
    )
    if settings.as_json:
        print_json(result.to_dict())
        return
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{merge_text(result)}\n{out}")


def _write_adapter(config: MergeConfig, settings: MergeCommand, out: Path) -> None:
    from lens.merging import to_adapter

    if settings.resume:
        raise InputError("an adapter is made in one go; leave out --resume")
    adapter = to_adapter(
        config,
        out,
        rank=settings.lora_rank,
        energy=settings.lora_energy,
        max_memory=settings.max_memory,
        force=settings.force,
    )
    told = f"{adapter.error:.2%} of the change is lost\n{out}"
    print_json(adapter.to_dict()) if settings.as_json else click.echo(told)


def show_plan(config: MergeConfig, settings: MergeOptions, out: Path | None) -> None:
    """Print what a merge will do and everything that would stop it; exit code 2 if anything."""
    from lens.merging import plan_merge
    from lens.report.text import merge_plan_text

    plan = plan_merge(config, max_memory=settings.max_memory, out=out)
    plan.files.close()
    told = plan.to_dict()
    print_json(told) if settings.as_json else click.echo(merge_plan_text(told))
    if plan.problems:
        click.get_current_context().exit(2)


class ExtractCommand(MergeOptions):
    """Options of ``lens extract``."""

    merge_method: str = option(
        "maec", "How key neurons are found.", key="method", also=("merge-method",)
    )
    out: Path = option(..., "safetensors file.")
    force: bool = option(False, "Replace --out.")


@command(ExtractCommand)
def extract(settings: ExtractCommand) -> None:
    """Write the key neurons of an ability and their deltas (MAEC, arXiv 2410.07825).

    For instance: lens extract --base-model B --trained A --pivot-model C --param k1=0.05 --param
    alpha=0.8 --param beta=0.2 --out ability.safetensors
    """
    from lens.merging import extract

    found = extract(
        settings.config, settings.out, max_memory=settings.max_memory, force=settings.force
    )
    if settings.as_json:
        print_json(found.to_dict())
        return
    share = found.selected / max(found.of, 1)
    click.echo(f"{found.selected} of {found.of} weights ({share:.2%})\n{settings.out}")


class VerifyCommand(Verb):
    """Options of ``lens verify``."""

    folder: Path = option(..., "Folder that lens merge wrote.", argument=True)
    sample: int = option(8, "Tensors that are computed again, drawn at random.", ge=1)
    every: bool = option(False, "Compute all of them again.", key="all")
    seed: int = option(0, "Of the draw.")
    max_memory: Size = option("1GiB", "Memory for everything together.", metavar="SIZE")


@command(VerifyCommand)
def verify(settings: VerifyCommand) -> None:
    """Compute tensors of FOLDER, which lens merge wrote, again and compare bytes.

    Exit code 3 when something differs.
    """
    from lens.merging import verify

    sample = None if settings.every else settings.sample
    found = verify(
        settings.folder, sample=sample, seed=settings.seed, max_memory=settings.max_memory
    )
    if settings.as_json:
        print_json(found.to_dict())
        return
    click.echo(f"{found.tensors} of {found.of} tensors computed again: every byte is the same")


class DiffCommand(Verb):
    """Options of ``lens diff``."""

    base: str = option(..., "Model that the others come from.", argument=True)
    models: tuple[str, ...] = option(..., "Models that changed from it.", argument=True)
    out: Path | None = option(None, "Also write heat maps (.html) or everything measured (.json).")
    force: bool = option(False, "Replace --out.")
    max_memory: Size = option("1GiB", "Memory for everything together.", metavar="SIZE")


@command(DiffCommand)
def diff(settings: DiffCommand) -> None:
    """Compare MODELS with the BASE they come from, in one pass over all of them.

    Relative delta per tensor, block and neuron, effective rank, outliers, and for each pair of
    models the cosine of their deltas and how often signs agree.
    """
    from lens.merging import weight_diff
    from lens.report.weight_diff import print_weight_diff, render_weight_diff
    from lens.utils.files import refuse_existing, write_text

    out = settings.out
    if out is not None:
        refuse_existing(out, force=settings.force)
        if out.suffix not in (".html", ".json"):
            raise InputError(f"--out {out}: expected a name that ends in .html or .json")
    found = weight_diff(settings.base, settings.models, max_memory=settings.max_memory)
    if out is not None:
        as_json = out.suffix == ".json"
        write_text(
            out, json.dumps(found.to_dict(), indent=1) if as_json else render_weight_diff(found)
        )
    if settings.as_json:
        print_json(found.to_dict())
        return
    print_weight_diff(found)
    if out is not None:
        click.echo(str(out))


class FinetuneCommand(FinetuneSettings, ModelSettings, Verb):
    """Options of ``lens maec train``."""

    rows: Path | None = option(None, 'An ability: JSONL of {"prompt": …, "answer": …}.')
    text: Path | None = option(None, "A language: one document a line, or JSONL of {text}.")
    keys: Path | None = option(None, "File of lens extract: its elements alone are trained.")
    how: Literal["mask", "revert"] = option(
        "mask", "Train key neurons alone, or all, and put the others back."
    )
    replay: Path | None = option(None, "General text, a part of every batch.")
    chat: ChatOptions | None = group(None, "Options of the chat template.")
    seed: int = option(0, "Decides the order of rows.")
    out: Path = option(..., "Checkpoint folder.")
    force: bool = option(False, "Replace --out.")

    @model_validator(mode="after")
    def _one_corpus(self) -> FinetuneCommand:
        if (self.rows is None) == (self.text is None):
            raise ValueError("give what is learnt: --rows FILE for an ability, or --text FILE")
        return self


@command(FinetuneCommand, "train")
def maec_train(settings: FinetuneCommand) -> None:
    """Tune a model on an ability (--rows) or on a language (--text).

    All parameters, or with --keys the key neurons of an ability alone: everything else keeps its
    bits. Give --dtype float32 where deltas are to be merged: in 16 bits small ones are lost.
    """
    from lens.merging import read_key_neurons
    from lens.training.finetune import examples, finetune_corpus, read_rows, read_text
    from lens.utils.files import refuse_existing

    out, size = settings.out, settings.row_tokens
    refuse_existing(out, force=settings.force)
    corpus: Any = read_text(settings.text) if settings.text else read_rows(settings.rows or "")
    general = None if settings.replay is None else read_text(settings.replay)
    places = None if settings.keys is None else read_key_neurons(settings.keys)
    model, tokenizer = settings.load()
    found = finetune_corpus(
        model,
        tokenizer,
        examples(tokenizer, corpus, row_tokens=size, chat=settings.chat),
        settings=settings.part(FinetuneSettings),
        keys=places,
        how=settings.how,
        seed=settings.seed,
        replay=None if general is None else examples(tokenizer, general, row_tokens=size),
    )
    found.save(out, force=settings.force)
    last = found.log[-1]
    if settings.as_json:
        print_json({"out": str(out), "steps": len(found.log), "last": last, **found.about})
        return
    told = "" if places is None else f", {places.count} key elements"
    click.echo(f"{len(found.log)} steps in {found.seconds:.1f} s, loss {last['loss']:.4g}{told}")
    click.echo(str(out))


class RecipeCommand(Recipe, Verb):
    """Options of ``lens maec run``; --config holds the recipe."""

    out: Path = option(..., "Folder of all stages.")
    max_memory: Size = option("1GiB", "Memory of extracting and merging.", metavar="SIZE")


@command(RecipeCommand, "run")
def maec_run(settings: RecipeCommand) -> None:
    """Locate, extract, train and merge as a config says; the result is OUT/merged.

    Interrupted, or with a config that was changed: give the command again. Stages that are
    finished and still right are kept.
    """
    from lens.merging import run_recipe

    found = run_recipe(settings.part(Recipe), settings.out, max_memory=settings.max_memory)
    if settings.as_json:
        print_json(found.to_dict())
        return
    for stage in found.stages:
        click.echo(f"{stage.name:24s} {'kept' if stage.kept else f'{stage.seconds:.1f} s'}")
    click.echo(found.merged)
