"""``lens inspect``: look into a space file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from lens.cli._options import any_model_options, load_model, part_options, print_json, talk_options


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option("--states", type=click.Path(path_type=Path), metavar="DIR",
              help="States that lens probe --keep-states kept: what needs every row.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Also write report.html and inspection.json there.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace --out.")
@click.option("--limit", type=click.IntRange(min=2),
              help="Rows of each language; by default 4096 of all together.")  # fmt: skip
@click.option("--resamples", type=click.IntRange(min=20), default=1000, show_default=True,
              help="Bootstrap refits.")  # fmt: skip
@click.option("--permutations", type=click.IntRange(min=39), default=200, show_default=True,
              help="Shuffles of the nulls.")  # fmt: skip
@click.option("--bound", type=click.FloatRange(0, 90, min_open=True, max_open=True), default=15.0,
              show_default=True, help="Angle in degrees that is small enough.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path),
              help="With --model: text to measure other ways of reading.")  # fmt: skip
@click.option("--text-limit", type=click.IntRange(min=2), default=200, show_default=True,
              help="Rows of --data of each language.")  # fmt: skip
@part_options
@any_model_options
@click.option("--threads", "-j", type=click.IntRange(min=1), help="Threads of the C core.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@talk_options
def command(
    space: Path, states: Path | None, out: Path | None, force: bool, limit: int | None,
    resamples: int, permutations: int, bound: float, data: Path | None, text_limit: int,
    split: str | None, column: str | None, incomplete: Literal["refuse", "drop"],
    model: str | None, revision: str | None, device: str, dtype: str, trust_remote_code: bool,
    threads: int | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Say what SPACE holds: directions, ranks, how near languages are.

    With --states also how certain that is: shuffled labels, bootstrap, rows needed, alignment,
    separability and layer band. With --model and --data also what reading padding, or cutting
    rows, would have changed.
    """
    if (model is None) != (data is None):
        raise click.UsageError("give --model and --data together, or neither")
    from lens.analysis.inspect import inspect_space
    from lens.report.console import print_inspection
    from lens.space.space import Space
    from lens.space.state_store import StateStore as KeptStates
    from lens.utils.files import refuse_existing

    if out is not None:
        refuse_existing(out, force=force)
    loaded = Space.load(space)
    kept = None if states is None else KeptStates(states)
    given: dict[str, Any] = {}
    if model is not None and data is not None:
        from lens.data.corpora import read_parallel

        rows = read_parallel(data, languages=loaded.languages, limit=2 * text_limit, split=split,
                             column=column, incomplete=incomplete).rows  # fmt: skip
        given["rows"] = rows
        given["model"], given["tokenizer"] = load_model(
            model, revision=revision, device=device, dtype=dtype,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    found = inspect_space(
        loaded, kept, limit=limit, text_limit=text_limit, n_resamples=resamples,
        n_permutations=permutations, bound=bound, seed=seed, n_threads=threads, **given,
    )  # fmt: skip
    page = None if out is None else found.save(out, force=force)
    if as_json:
        print_json(
            {**loaded.to_dict(), **found.to_dict(), "out": None if out is None else str(out)}
        )
        return
    print_inspection(found)
    if page is not None:
        click.echo(str(page))
