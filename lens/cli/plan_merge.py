"""``lens plan merge``: memory, disk and time of ``lens merge``, and what would stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lens.cli._merging import recipe, recipe_options, show_plan
from lens.cli._options import saying_options


@click.command("merge")
@recipe_options
@click.option("--dtype", help="Dtype that is written, when --out-dtype does not say.")
@click.option("--out-dtype", help="float32, float16, bfloat16 or float64; else that of the base.")
@click.option("--out", type=click.Path(path_type=Path), help="To see whether there is room.")
@saying_options
def command(
    config: Path | None, max_memory: str, out: Path | None, as_json: bool, **given: Any
) -> None:
    """Plan lens merge: what it reads, writes and holds, and every problem at once.

    Reads configs, index files and safetensors headers, no weight: milliseconds for models of any
    size. Exit code 2 where the merge could not be done.
    """
    show_plan(recipe(config, **given), max_memory=max_memory, out=out, as_json=as_json)
