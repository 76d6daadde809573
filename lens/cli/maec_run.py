"""``lens maec run``: the whole recipe by one config."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import print_json, saying_options


@click.command("run")
@click.option(
    "--config", "-C", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="YAML file: base model, corpora, steps, what is located and how it is merged.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of all stages.")
@click.option("--max-memory", metavar="SIZE", default="1GiB", show_default=True,
              help="Of extracting and merging.")  # fmt: skip
@saying_options
def command(config: Path, out: Path, max_memory: str, as_json: bool) -> None:
    """Locate, extract, train and merge as a config says; the result is OUT/merged.

    Interrupted, or with a config that was changed: give the command again. Stages that are
    finished and still right are kept.
    """
    from lens.merging.recipe import read_recipe, run_recipe

    found = run_recipe(read_recipe(config), out, max_memory=max_memory)
    if as_json:
        print_json(found.to_dict())
        return
    for stage in found.stages:
        click.echo(f"{stage.name:24s} {'kept' if stage.kept else f'{stage.seconds:.1f} s'}")
    click.echo(found.merged)
