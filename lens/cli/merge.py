"""``lens merge``: merge checkpoints in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lens.cli._merging import recipe, recipe_options, show_plan
from lens.cli._options import print_json, saying_options


@click.command()
@recipe_options
@click.option("--dtype", help="Dtype that is written, when --out-dtype does not say.")
@click.option("--out-dtype", help="float32, float16, bfloat16 or float64; else that of the base.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the result.")
@click.option("--out-shard-size", metavar="SIZE", default="5GB", show_default=True)
@click.option(
    "--lora-rank",
    type=click.IntRange(min=1),
    metavar="RANK",
    help="Write the change as a LoRA adapter of this rank instead of a checkpoint.",
)
@click.option(
    "--lora-energy",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="The same, of the rank that keeps this share of the squared change.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and every problem.")
@click.option("--resume", is_flag=True, help="Go on with a merge that was interrupted.")
@click.option("--force", is_flag=True, help="Replace --out, discard an interrupted merge.")
@saying_options
def command(
    config: Path | None, max_memory: str, out: Path | None, out_shard_size: str, dry_run: bool,
    resume: bool, force: bool, as_json: bool, lora_rank: int | None, lora_energy: float | None,
    **given: Any,
) -> None:  # fmt: skip
    """Merge checkpoints into a new one: a YAML file in mergekit's shape, flags, or both.

    Weights are streamed: memory stays below --max-memory for models of any size. A merge that was
    killed goes on with --resume, and lens verify makes tensors again and compares.
    """
    from lens.errors import InputError
    from lens.merging.lora import to_adapter
    from lens.merging.operations import merge

    made = recipe(config, **given)
    if dry_run:
        show_plan(made, max_memory=max_memory, out=out, as_json=as_json)
        return
    if out is None:
        raise InputError("no output is named; give --out FOLDER, or --dry-run")
    if lora_rank is not None or lora_energy is not None:
        if resume:
            raise InputError("an adapter is made in one go; leave out --resume")
        adapter = to_adapter(
            made, out, rank=lora_rank, energy=lora_energy, max_memory=max_memory, force=force
        )
        told = f"{adapter.error:.2%} of the change is lost\n{out}"
        print_json(adapter.to_dict()) if as_json else click.echo(told)
        return
    result = merge(
        made, out, max_memory=max_memory, shard_size=out_shard_size, resume=resume, force=force
    )
    if as_json:
        print_json(result.to_dict())
        return
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    rate = result.bytes_written / max(result.seconds, 1e-9) / 1e6
    click.echo(
        f"{result.tensors} tensors, {result.parameters / 1e6:.1f} M parameters in "
        f"{result.seconds:.1f} s, {rate:.0f} MB written a second"
    )
    click.echo(str(out))
