"""Every dotted name and every option of a verb that the documentation mentions exists."""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

import click
import pytest

import lens
from lens.cli import main

ROOT = Path(lens.__file__).parents[1]
PAGES = [p for p in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if p.is_file()]
PAGES += sorted(ROOT.glob("notebooks/*.ipynb"))
# Not of another module (mlens.x), no file (lens.h), no path or schema (lens.space/1).
NAME = re.compile(r"(?<![\w./-])lens((?:\.[A-Za-z_]\w*)+)(?![\w/-])")
ENDINGS = {"h", "csv", "md", "json", "yaml", "yml"}


def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def names_in(text: str) -> set[str]:
    found = {match.group(1).strip(".") for match in NAME.finditer(text)}
    return {name for name in found if name.rpartition(".")[2] not in ENDINGS}


def exists(name: str) -> bool:
    """Whether ``lens.<name>`` is a module, a name in one, or a member of a class."""
    here: object = lens
    path = "lens"
    for part in name.split("."):
        path = f"{path}.{part}"
        try:
            here = getattr(here, part)
            continue
        except AttributeError:
            pass
        if inspect.ismodule(here):
            try:
                here = importlib.import_module(path)
                continue
            except ImportError:
                return False
        fields = (
            {f.name for f in dataclasses.fields(here)} if dataclasses.is_dataclass(here) else {}
        )
        return part in {
            *fields,
            *getattr(here, "model_fields", ()),
            *vars(here).get("__slots__", ()),
        }
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_names_in_the_documentation_exist(page: Path) -> None:
    pytest.importorskip("torch")
    assert sorted(name for name in names_in(text_of(page)) if not exists(name)) == []


def test_a_wrong_name_is_found() -> None:
    assert names_in("`lens.no_such`, lens.Space.load, lens.space/1, lens.h and a.lens.x") == {
        "no_such",
        "Space.load",
    }
    assert exists("Space.load") and exists("space.SpaceShard.rows")
    assert not exists("no_such") and not exists("Space.no_such")


def wrong_options(text: str) -> list[str]:
    """Options after ``lens VERB`` that the verb does not have."""
    wrong = []
    for words, rest in re.findall(
        r"(?:^|`|\s)lens ((?:[a-z]+ )+)([^`\n#]*)", text.replace("\\\n", " "), re.MULTILINE
    ):
        verb, path, context = main, "lens", click.Context(main)
        for word in words.split():
            found = verb.get_command(context, word) if isinstance(verb, click.Group) else None
            if found is None:
                break
            verb, path = found, f"{path} {word}"
        known = {o for param in verb.params for o in (*param.opts, *param.secondary_opts)}
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)) - {"--help", "--version"}
        wrong += [f"{path} {option}" for option in sorted(named - known) if verb is not main]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_options_in_the_documentation_exist(page: Path) -> None:
    assert wrong_options(text_of(page)) == []


def test_a_wrong_option_is_found() -> None:
    text = "```sh\nlens train --model M --modle X \\\n  --sapce S\n```\n`lens plan train --nope`"
    assert wrong_options(text) == [
        "lens train --modle",
        "lens train --sapce",
        "lens plan train --nope",
    ]
