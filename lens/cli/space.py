"""``lens space`` (show, merge, extend, drop, push, pull) and ``lens inspect``."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import model_validator

from lens.analysis.config import InspectSettings
from lens.cli.options import Verb, command, print_json
from lens.errors import InputError
from lens.utils.settings import Names, option

if TYPE_CHECKING:
    from lens.space.space import Space


class _Show(Verb):
    space: str = option(..., "File, folder or hub id.", argument=True)


class _Output(Verb):
    out: Path = option(..., "File of the space, such as space.safetensors.")
    force: bool = option(False, "Replace --out.")


class _Join(_Output):
    spaces: tuple[str, ...] = option(..., "Files, folders or hub ids.", argument=True)


class _Drop(_Show, _Output):
    languages: Names = option(..., "Languages to leave out.", key="langs")


class _Push(_Show):
    repo: str | None = option(None, "Repository, owner/name.", argument=True)
    private: bool = option(False, "Make the repository private.")
    branch: str | None = option(None, "Branch to upload to.")
    export: Path | None = option(
        None, "Write the files of the upload to this folder and upload nothing."
    )
    force: bool = option(False, "Replace --export.")

    @model_validator(mode="after")
    def _one_target(self) -> _Push:
        if (self.repo is None) == (self.export is None):
            raise ValueError("give REPO to upload to, or --export FOLDER to write the files only")
        return self


class _Pull(_Output):
    repo: str = option(..., "Repository, owner/name or owner/name@revision.", argument=True)


@command(_Show)
def show(settings: _Show) -> None:
    """Print what SPACE (a file, a folder or a hub id) holds; its hash is checked."""
    from lens.report.text import space_text
    from lens.space.space import Space

    loaded = Space.load(settings.space)
    if settings.as_json:
        print_json({**loaded.to_dict(), "sha256": loaded.sha256})
    else:
        click.echo(space_text(loaded))


@command(_Join)
def merge(settings: _Join) -> None:
    """Join SPACES that were read from different rows in the same way: shards of one probe."""
    _join(settings, "merge")


@command(_Join)
def extend(settings: _Join) -> None:
    """Add the languages of further SPACES to the first; what they share has the same rows."""
    _join(settings, "extend")


@command(_Drop)
def drop(settings: _Drop) -> None:
    """Leave languages out of SPACE."""
    from lens.space.space import Space

    _refuse_existing(settings)
    _save(Space.load(settings.space).drop(*settings.languages), settings)


@command(_Push)
def push(settings: _Push) -> None:
    """Upload SPACE with its card to the Hugging Face Hub as REPO (owner/name)."""
    from lens.space.space import Space

    loaded = Space.load(settings.space)
    if settings.export is not None:
        done = str(loaded.export(settings.export, force=settings.force))
    else:
        done = loaded.push(str(settings.repo), private=settings.private, revision=settings.branch)
    print_json({"out": done}) if settings.as_json else click.echo(done)


@command(_Pull)
def pull(settings: _Pull) -> None:
    """Bring a space from the Hugging Face Hub: REPO is owner/name or owner/name@revision."""
    from lens.space.space import Space

    _refuse_existing(settings)
    _save(Space.load(settings.repo), settings)


def _join(settings: _Join, how: str) -> None:
    from lens.space.space import Space

    if len(settings.spaces) < 2:
        raise InputError(f"one space only; give at least two to {how}")
    _refuse_existing(settings)
    loaded = [Space.load(space) for space in settings.spaces]
    _save(reduce(lambda a, b: getattr(a, how)(b), loaded), settings)


def _refuse_existing(settings: _Output) -> None:
    from lens.utils.files import refuse_existing

    refuse_existing(settings.out, force=settings.force)


def _save(space: Space, settings: _Output) -> None:
    space.save(settings.out)
    if settings.as_json:
        print_json({"out": str(settings.out), **space.to_dict()})
        return
    counts = ", ".join(f"{code} {count}" for code, count in space.counts.items())
    click.echo(f"{len(space.languages)} languages: {counts}\n{settings.out}")


class InspectCommand(InspectSettings, Verb):
    """Options of ``lens inspect``."""

    space: Path = option(..., "Space file.", argument=True)
    states: Path | None = option(
        None, "States that lens probe --keep-states kept: what needs every row.", metavar="DIR"
    )
    out: Path | None = option(
        None, "Also write report.html and inspection.json there.", metavar="DIR"
    )
    force: bool = option(False, "Replace --out.")


@command(InspectCommand)
def inspect(settings: InspectCommand) -> None:
    """Report what SPACE holds: directions, ranks, how near languages are.

    With --states also how certain that is: shuffled labels, bootstrap, rows needed, alignment,
    separability and layer band.
    """
    from lens.analysis.inspect import inspect_space
    from lens.report.console import print_inspection
    from lens.report.inspection import save_inspection
    from lens.space.space import Space
    from lens.space.state_store import StateStore as KeptStates
    from lens.utils.files import refuse_existing

    out = settings.out
    if out is not None:
        refuse_existing(out, force=settings.force)
    space = Space.load(settings.space)
    kept = None if settings.states is None else KeptStates(settings.states)
    found = inspect_space(space, kept, settings=settings)
    page = None if out is None else save_inspection(found, out, force=settings.force)
    if settings.as_json:
        print_json({**space.to_dict(), **found.to_dict(), "out": None if out is None else str(out)})
        return
    print_inspection(found)
    if page is not None:
        click.echo(str(page))
