"""``lens delta``: what models changed, without merging them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lens.cli._options import print_json, talk_options


@click.command()
@click.argument("base")
@click.argument("models", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path),
              help="Also write heat maps (.html) or everything measured (.json).")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace --out.")
@click.option("--max-memory", metavar="SIZE", default="1GiB", show_default=True)
@talk_options
def command(
    base: str,
    models: tuple[str, ...],
    out: Path | None,
    force: bool,
    max_memory: str,
    as_json: bool,
) -> None:
    """Compare MODELS with the BASE they come from: the delta atlas, in one pass over all of them.

    Relative change per tensor, block and neuron, effective rank, outliers, and for each pair of
    models the cosine of their changes and how often signs agree.
    """
    from lens.errors import InputError
    from lens.merging.diff import weight_diff
    from lens.report.weight_diff import print_atlas, render_atlas
    from lens.utils.files import refuse_existing, write_text

    if out is not None:
        refuse_existing(out, force=force)
        if out.suffix not in (".html", ".json"):
            raise InputError(f"--out {out}: expected a name that ends in .html or .json")
    found = weight_diff(base, models, max_memory=max_memory)
    if out is not None:
        text = (
            json.dumps(found.to_dict(), indent=1) if out.suffix == ".json" else render_atlas(found)
        )
        write_text(out, text)
    if as_json:
        print_json(found.to_dict())
    else:
        print_atlas(found)
        if out is not None:
            click.echo(str(out))
