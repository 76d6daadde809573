"""``lens doctor``: what this machine and this installation have, and what is missing."""

from __future__ import annotations

import click

from lens.cli.options import Verb, command, print_json
from lens.models.config import TokenizerSettings


class DoctorCommand(TokenizerSettings, Verb):
    """Options of ``lens doctor``; with --model it describes that checkpoint instead."""


@command(DoctorCommand)
def doctor(settings: DoctorCommand) -> None:
    """Report what is installed, BLAS, CPU features, memory and GPU, and what is missing.

    Every missing package comes with the command that installs it. With --model, report where the
    blocks of a model are and which sites it has; its weights are not loaded.
    """
    if settings.model is not None:
        _describe(settings)
        return
    from lens.utils.installation import examine

    found = examine()
    if settings.as_json:
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


def _describe(settings: DoctorCommand) -> None:
    from lens.models.architecture import describe
    from lens.models.loading import load

    model, _ = load(
        str(settings.model),
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        layer_by_layer=True,
    )
    found = describe(model)
    if settings.as_json:
        print_json(found.to_dict())
    else:
        click.echo(found.to_text())
