"""``lens world train``: make the sample world's models again."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import print_json, talk_options


@click.command("train")
@click.option("--out", type=click.Path(path_type=Path), default="lens-world", show_default=True,
              help="Folder for base, chat and mixed.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", "-j", type=click.IntRange(min=1), help="Threads of torch.")
@click.option("--force", is_flag=True, help="Replace --out.")
@talk_options
def command(out: Path, seed: int, threads: int | None, force: bool, as_json: bool) -> None:
    """Train the base model and both chat models of the sample world from a seed."""
    from lens.demo.training import train
    from lens.utils.files import new_folder
    from lens.utils.progress import shown

    with new_folder(out, force=force) as folder:
        made = train(folder, seed=seed, threads=threads, quiet=not shown())
        names = [path.relative_to(folder) for path in made.values()]
    paths = [str(out / name) for name in names]
    if as_json:
        print_json({"out": str(out), "models": paths})
    else:
        click.echo("\n".join(paths))
