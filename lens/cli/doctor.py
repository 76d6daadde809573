"""``lens doctor``: what is here, what is missing, what fixes it."""

from __future__ import annotations

import click

from lens.cli._options import print_json, talk_options


@click.command()
@click.option("--model", help="Describe this checkpoint instead: blocks, and sites to read at.")
@click.option("--revision", help="Branch, tag or commit of a hub id (or ID@REVISION).")
@click.option("--trust-remote-code", is_flag=True, help="Run code of the checkpoint.")
@talk_options
def command(
    model: str | None, revision: str | None, trust_remote_code: bool, as_json: bool
) -> None:
    """Say what is installed, BLAS, CPU features, memory and GPU, and what is missing.

    Every missing package comes with the command that installs it. With --model, say where the
    blocks of a model are and which sites it has; its weights are not loaded.
    """
    from lens.cli._system import examine

    if model is not None:
        _describe(model, revision, trust_remote_code, as_json)
        return
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


def _describe(name: str, revision: str | None, trust_remote_code: bool, as_json: bool) -> None:
    from lens.models.architecture import describe
    from lens.models.loading import load

    model, _ = load(
        name, revision=revision, trust_remote_code=trust_remote_code, layer_by_layer=True
    )
    found = describe(model)
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(found.to_text())
