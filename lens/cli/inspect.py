"""``lens inspect``: look into a space file."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import print_json, talk_options


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@talk_options
def command(space: Path, as_json: bool) -> None:
    """Show languages, row counts, and per site singular values and rank advice of SPACE."""
    from lens.space import Space
    from lens.space.showing import fits

    loaded = Space.load(space)
    if not as_json:
        click.echo(loaded.summary())
        return
    sites = {
        site: {"error": fit}
        if isinstance(fit, str)
        else {
            "singular_values": fit.singular_values.tolist(),
            "rank": fit.rank,
            "rank_reason": fit.rank_reason,
        }
        for site, fit in fits(loaded).items()
    }
    print_json({**loaded.to_dict(), "sites": sites})
