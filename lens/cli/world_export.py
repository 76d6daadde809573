"""``lens world export``: the sample world as files, for every other verb."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import print_json, talk_options


@click.command("export")
@click.option("--out", type=click.Path(path_type=Path), default="lens-world", show_default=True,
              help="Folder to make.")  # fmt: skip
@click.option("--models", type=click.Path(path_type=Path),
              help="Folder of lens world train; the shipped models by default.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace --out.")
@talk_options
def command(out: Path, models: Path | None, force: bool, as_json: bool) -> None:
    """Write models, prompts, answers, references and text of the sample world as plain files."""
    from lens.demo.export import export

    names = export(out, models=models, force=force)
    if as_json:
        print_json({"out": str(out), "files": names})
    else:
        click.echo("\n".join(f"{out}/{name}" for name in names))
