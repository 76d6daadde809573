"""``lens doctor``: what is here, what is missing, what fixes it."""

from __future__ import annotations

import click

from lens.cli._options import print_json, talk_options


@click.command()
@talk_options
def command(as_json: bool) -> None:
    """Say what is installed, BLAS, CPU features, memory and GPU, and what is missing.

    Every missing package comes with the command that installs it.
    """
    from lens.cli._system import examine

    found = examine()
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in found.facts.items():
        table.add_row(name, value)
    table.add_section()
    for package in found.packages:
        table.add_row(package.name, package.version or f"missing: {package.purpose}")
    console.print(table)
    for problem in found.problems:
        console.print(f"\n{problem.text}\n  {problem.fix}", soft_wrap=True, markup=False)
    if not found.problems:
        console.print("\nEverything is here.")
