"""``lens merge``: merge checkpoints in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lens.cli._merging import recipe, recipe_options
from lens.cli._options import print_json, saying_options

if TYPE_CHECKING:
    from lens.maec import MergePlan


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
    from lens.maec import merge, plan_merge, to_adapter

    made = recipe(config, **given)
    if dry_run:
        plan = plan_merge(made, max_memory=max_memory, out=out)
        _show(plan, as_json=as_json)
        plan.files.close()
        plan.check()
        return
    if out is None:
        raise InputError("no output is named; give --out FOLDER, or --dry-run")
    if lora_rank is not None or lora_energy is not None:
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


def _show(plan: MergePlan, *, as_json: bool) -> None:
    from lens.sizes import said

    if as_json:
        print_json(plan.to_dict())
        return
    told = plan.to_dict()
    click.echo(f"{told['method']} of {', '.join(told['sources'])}")
    click.echo(
        f"{told['tensors']} tensors, {told['parameters'] / 1e6:.1f} M parameters; reads "
        f"{said(told['bytes_read'])}, writes {said(told['bytes_written'])}, holds at most "
        f"{said(told['memory'])} in memory, about {told['seconds']} s"
    )
    for note in told["notes"]:
        click.echo(f"note: {note}")
