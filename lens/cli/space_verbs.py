"""``lens space show``, ``merge``, ``extend``, ``drop``, ``push`` and ``pull``."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lens.cli._options import Listed, print_json, talk_options

if TYPE_CHECKING:
    from lens.space.space import Space

_OUT = click.option("--out", required=True, type=click.Path(path_type=Path),
                    help="space.safetensors")  # fmt: skip
_FORCE = click.option("--force", is_flag=True, help="Replace --out.")
_SPACE = click.argument("space")


@click.command("show")
@_SPACE
@talk_options
def show(space: str, as_json: bool) -> None:
    """Say what SPACE (a file, a folder or a hub id) holds; its hash is checked."""
    from lens.data.languages import english_name
    from lens.space.space import Space

    loaded = Space.load(space)
    about = loaded.about
    if as_json:
        print_json({**loaded.to_dict(), "sha256": loaded.sha256})
        return
    model = about.model or {"model_type": "not recorded (made from states)"}
    click.echo(f"pivot      {about.typed.get(loaded.pivot, loaded.pivot)} ({loaded.pivot})")
    click.echo(f"sites      {', '.join(loaded.sites)}; width {loaded.width}")
    click.echo(
        f"read       {about.pooling} pooling, role {about.role}, lens {about.package_version}"
    )
    click.echo(f"model      {', '.join(f'{key} {value}' for key, value in model.items())}")
    click.echo(f"tokenizer  {about.tokenizer_sha256 or 'not recorded'}")
    click.echo(f"sha256     {loaded.sha256} (as saved)")
    for code, count in loaded.counts.items():
        shards = about.data.get(code, [])
        rows = ", ".join(f"{s.start}-{s.start + s.rows - 1} {s.sha256[:12]}" for s in shards)
        typed = about.typed.get(code, code)
        click.echo(
            f"{typed:<10} {code}  {english_name(code)}: {count} rows ({rows or 'no record'})"
        )


@click.command("merge")
@click.argument("spaces", nargs=-1, required=True)
@_OUT
@_FORCE
@talk_options
def merge(spaces: tuple[str, ...], out: Path, force: bool, as_json: bool) -> None:
    """Join SPACES that were read from different rows in the same way: shards of one probe."""
    _join(spaces, out, force=force, as_json=as_json, how="merge")


@click.command("extend")
@click.argument("spaces", nargs=-1, required=True)
@_OUT
@_FORCE
@talk_options
def extend(spaces: tuple[str, ...], out: Path, force: bool, as_json: bool) -> None:
    """Add the languages of further SPACES to the first; what they share has the same rows."""
    _join(spaces, out, force=force, as_json=as_json, how="extend")


@click.command("drop")
@_SPACE
@click.option("--langs", type=Listed(), required=True, help="Languages to leave out.")
@_OUT
@_FORCE
@talk_options
def drop(space: str, langs: tuple[str, ...], out: Path, force: bool, as_json: bool) -> None:
    """Leave languages out of SPACE."""
    from lens.space.space import Space
    from lens.utils.files import refuse_existing

    refuse_existing(out, force=force)
    _tell(Space.load(space).drop(*langs), out, as_json=as_json)


@click.command("push")
@_SPACE
@click.argument("repo", required=False)
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--branch", help="Branch to upload to.")
@click.option("--export", type=click.Path(path_type=Path),
              help="Write the files of the upload to this folder and upload nothing.")  # fmt: skip
@_FORCE
@talk_options
def push(
    space: str, repo: str | None, private: bool, branch: str | None, export: Path | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Upload SPACE with its card to the Hugging Face Hub as REPO (owner/name)."""
    from lens.space.space import Space

    if (repo is None) == (export is None):
        raise click.UsageError("give REPO to upload to, or --export FOLDER to write the files only")
    loaded = Space.load(space)
    if export is not None:
        done = str(loaded.export(export, force=force))
    else:
        done = loaded.push(str(repo), private=private, revision=branch)
    print_json({"out": done}) if as_json else click.echo(done)


@click.command("pull")
@click.argument("repo")
@_OUT
@_FORCE
@talk_options
def pull(repo: str, out: Path, force: bool, as_json: bool) -> None:
    """Bring a space from the Hugging Face Hub: REPO is owner/name or owner/name@revision."""
    from lens.space.space import Space
    from lens.utils.files import refuse_existing

    refuse_existing(out, force=force)
    _tell(Space.load(repo), out, as_json=as_json)


def _join(spaces: tuple[str, ...], out: Path, *, force: bool, as_json: bool, how: str) -> None:
    from lens.space.space import Space
    from lens.utils.files import refuse_existing

    if len(spaces) < 2:
        raise click.UsageError(f"one space only; give at least two to {how}")
    refuse_existing(out, force=force)
    loaded = [Space.load(space) for space in spaces]
    _tell(reduce(lambda a, b: getattr(a, how)(b), loaded), out, as_json=as_json)


def _tell(space: Space, out: Path, *, as_json: bool) -> None:
    space.save(out)
    if as_json:
        print_json({"out": str(out), **space.to_dict()})
        return
    counts = ", ".join(f"{code} {count}" for code, count in space.counts.items())
    click.echo(f"{len(space.languages)} languages: {counts}\n{out}")
