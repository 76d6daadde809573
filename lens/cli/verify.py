"""``lens verify``: make tensors of a merge again and compare."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import print_json, talk_options


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sample", type=click.IntRange(min=1), default=8, show_default=True,
              help="Tensors that are made again, drawn at random.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Make all of them again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option("--max-memory", metavar="SIZE", default="1GiB", show_default=True)
@talk_options
def command(
    folder: Path, sample: int, every: bool, seed: int, max_memory: str, as_json: bool
) -> None:
    """Make tensors of FOLDER, which lens merge wrote, again from their sources and compare bytes.

    Exit code 3 when something differs.
    """
    from lens.merging.operations import verify

    found = verify(folder, sample=None if every else sample, seed=seed, max_memory=max_memory)
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(f"{found.tensors} of {found.of} tensors made again: every byte is the same")
