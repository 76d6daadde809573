"""``lens extract``: an ability as the few weights that hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lens.cli._merging import recipe, recipe_options
from lens.cli._options import print_json, saying_options


@click.command()
@recipe_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="safetensors file.")
@click.option("--force", is_flag=True, help="Replace --out.")
@saying_options
def command(
    config: Path | None, max_memory: str, out: Path, force: bool, as_json: bool, **given: Any
) -> None:
    """Write the key neurons of an ability and what they changed by (MAEC, arXiv 2410.07825).

    For instance: lens extract --base-model B --trained A --pivot-model C --param k1=0.05 --param
    alpha=0.8 --param beta=0.2 --out ability.safetensors
    """
    from lens.merging.operations import extract

    given["method"] = given["method"] or "maec"
    found = extract(recipe(config, **given), out, max_memory=max_memory, force=force)
    if as_json:
        print_json(found.to_dict())
        return
    share = found.selected / max(found.of, 1)
    click.echo(f"{found.selected} of {found.of} weights ({share:.2%})")
    click.echo(str(out))
