"""From a settings model to a command: options, help, YAML, printed configs, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import field_validator

from lens.cli.app import Entry, LazyGroup
from lens.cli.options import Verb, command
from lens.utils.settings import option
from tests.unit.utils.test_settings import Chat, Fit


class Run(Fit, Verb):
    """Options of a verb that is made up here."""

    space: Path = option(..., "Space file.", argument=True)
    model: str = option(..., "Folder or hub id.")
    low_memory: bool = option(True, "Keep weights in files.", off="keep-in-memory")
    force: bool = option(False, "Replace --out.")
    prompt: tuple[str, ...] = option((), "A prompt; repeat for several.", many=True)
    threads: int | None = option(None, "Threads.", ge=1, short="j")


seen: list[Run] = []
verb = command(Run, "run")(lambda settings: seen.append(settings))


class Group(LazyGroup):
    """`LazyGroup` that holds one command."""

    held: click.Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.held if cmd_name in self.verbs else None


def main(held: click.Command = verb) -> click.Group:
    made = Group("lens", "", {"run": Entry("", "", {})})
    made.held = held
    return made


def call(*words: object, held: click.Command = verb) -> Run:
    result = CliRunner().invoke(main(held), ["run", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen.pop()


def refused(*words: object) -> list[str]:
    result = CliRunner().invoke(main(), ["run", *map(str, words)])
    assert result.exit_code == 2 and not seen, result.output
    return result.output.removeprefix("lens: ").splitlines()


def test_words_become_one_object() -> None:
    found = call(
        "s.st",
        "--model",
        "m",
        "--langs",
        "en,es",
        "--batch",
        "8",
        "--lr",
        "0.5",
        "--loss",
        "fast",
        "--adapter",
        "4",
        "--no-template",
        "--keep-in-memory",
        "--prompt",
        "a",
        "--prompt",
        "b,c",
        "-j",
        "2",
        "--json",
        "--adapter_alpha",
        "3",
    )
    assert found == Run(
        space="s.st",
        model="m",
        langs=("en", "es"),
        batch=8,
        adapter={"rank": 4, "alpha": 3},
        loss={"preset": "fast", "rate": 0.5},
        chat=Chat(False),
        low_memory=False,
        prompt=("a", "b,c"),
        threads=2,
        as_json=True,
    )
    plain = call("s.st", "--model", "m")
    assert plain == Run(space="s.st", model="m") and plain.low_memory and plain.threads is None


def test_the_command_line_wins_over_yaml(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "{model: m, langs: [en, es], strength: {es: 2}, force: true, keep-in-memory: true, "
        "adapter: 4, adapter_alpha: 9, lr: 0.5, system: s, threads: , prompt: [x], json: true}"
    )
    found = call("s", "-C", config)
    assert found.langs == ("en", "es") and found.strength == {"es": 2.0} and found.as_json
    assert found.force and not found.low_memory and found.threads is None
    assert (found.adapter.rank, found.adapter.alpha, found.loss.rate) == (4, 9, 0.5)
    over = call("s", "-C", config, "--no-force", "--low-memory", "--rate", 2, "--prompt", "y")
    assert not over.force and over.low_memory and over.loss.rate == 2 and over.prompt == ("y",)
    assert over.adapter == found.adapter and over.chat == Chat(None, "s")


def test_every_problem_is_told_at_once_in_the_words_of_the_user(tmp_path: Path) -> None:
    config, losses = tmp_path / "run.yaml", tmp_path / "losses.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "layer": "-2:",
                "strength": "much",
                "low-memory": True,
                "keep-in-memory": True,
                "adapter_alpha": 0,
                "mode": [1],
            },
            sort_keys=False,
        )
    )
    losses.write_text("stepz: 1")
    lines = refused("s", "-C", config, "--steps", "0", "--loss", losses, "--threads", "two")
    for start, words in (
        (f"{config}: unknown key 'layer'", "the nearest is 'layers'"),
        (f"{config}: 'low-memory' and 'keep-in-memory' are one option", ""),
        (f"{config}: strength: 'much'", "spa_Latn=1.5"),
        (f"{config}: adapter_alpha: got 0", "greater than or equal to 1"),
        (f"{config}: mode: got [1]", "'full' or 'part'"),
        ("--model: missing", "folder or hub id"),
        ("--adapter: missing", "adapter rank"),
        ("--steps: got '0'", "greater than or equal to 1"),
        (f"--loss: {losses}: unknown key 'stepz'", "the nearest is 'steps'"),
        ("--threads: got 'two'", "valid integer"),
    ):
        assert sum(line.startswith(start) and words in line for line in lines) == 1, (start, lines)
    assert len(lines) == 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a", "expected keys with values"),
        ("a: [", "is not YAML"),
        ("3", "holds a int"),
        ("{yes: 1}", "unknown key"),
    ],
)
def test_files_that_are_no_configs(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert any(words in line for line in refused("s", "-C", tmp_path / "c.yaml", "--model", "m"))
    assert "check the path" in refused("s", "-C", tmp_path / "absent.yaml")[0]


def test_unknown_options_and_arguments_that_are_not_there() -> None:
    assert any("No such option '--layer'" in line for line in refused("s", "--layer", "1"))
    assert any("Missing argument 'SPACE'" in line for line in refused("--model", "m"))


def test_a_printed_config_repeats_the_call(tmp_path: Path) -> None:
    (tmp_path / "loss.yaml").write_text("{preset: fast, rate: 2}")
    words = (
        "s",
        "--model",
        "m",
        "--langs",
        "en,es",
        "--strength",
        "es=1.5,sw=2",
        "--no-template",
        "--keep-in-memory",
        "--loss",
        tmp_path / "loss.yaml",
        "--steps",
        "2",
        "--lr",
        "3",
        "--adapter",
        "4",
        "--prompt",
        "a,b",
    )
    printed = CliRunner().invoke(main(), ["run", *map(str, words), "--json", "--print-config"])
    content = yaml.safe_load(printed.output)
    assert content == {
        "model": "m",
        "langs": ["en", "es"],
        "strength": {"es": 1.5, "sw": 2.0},
        "steps": 2,
        "template": False,
        "low-memory": False,
        "loss": {"preset": "fast", "rate": 2},
        "rate": 3.0,
        "adapter": 4,
        "prompt": ["a,b"],
    }
    assert "# layers: '-2:'\n" in printed.output and "threads" not in printed.output
    (tmp_path / "again.yaml").write_text(printed.output)
    again = CliRunner().invoke(
        main(), ["run", "s", "-C", str(tmp_path / "again.yaml"), "--print-config"]
    )
    assert again.output == printed.output
    assert call("s", "-C", tmp_path / "again.yaml") == call(*words)


def test_a_config_is_printed_before_everything_is_known_and_never_with_problems() -> None:
    printed = CliRunner().invoke(main(), ["run", "s", "--print-config"])
    assert printed.exit_code == 0 and "# low-memory: true\n" in printed.output
    assert yaml.safe_load(printed.output) is None  # comments only
    assert refused("s", "--print-config", "--steps", "0")[0].startswith("--steps: got '0'")


def test_help_says_default_bounds_and_choices() -> None:
    text = CliRunner().invoke(main(), ["run", "--help"], terminal_width=100).output
    flat = " ".join(text.split())
    for words in (
        "--layers TEXT Blocks. [default: -2:]",
        "--mode [full|part] What. [default: full]",
        "--model TEXT Folder or hub id. [required]",
        "-j, --threads INTEGER Threads. [x>=1]",
        "--template / --no-template Use the template.",
        "--low-memory / --keep-in-memory Keep weights in files. [default: low-memory]",
        "--force Replace --out.",
        "--rate, --lr FLOAT Learning rate. [x>0]",
        "SPACE",
        "--prompt TEXT A prompt; repeat for several.",
        "--config FILE",
    ):
        assert words in flat, (words, text)
    assert "--no-force" not in text and "--extra" not in text


def with_field(extra: Callable[[], dict[str, object]]) -> click.Command:
    fields = extra()
    model = type(
        "More", (Run,), {"__annotations__": {"warmth": float}, "__module__": __name__, **fields}
    )
    return command(model, "run")(lambda settings: seen.append(settings))


def test_adding_a_field_is_all_it_takes_for_an_option(tmp_path: Path) -> None:
    """One field: option, help, YAML key, line of the printed config, bounds, nearest name."""
    more = with_field(lambda: {"warmth": option(0.5, "Share of warmth.", ge=0, le=1)})
    assert call("s", "--model", "m", "--warmth", "0.25", held=more).warmth == 0.25
    assert call("s", "--model", "m", held=more).warmth == 0.5
    (tmp_path / "c.yaml").write_text("{model: m, warmth: 0.75}")
    assert call("s", "-C", tmp_path / "c.yaml", held=more).warmth == 0.75
    run = CliRunner().invoke
    assert "# warmth: 0.5\n" in run(main(more), ["run", "s", "--print-config"]).output
    assert (
        "\nwarmth: 0.1\n"
        in "\n" + run(main(more), ["run", "s", "--warmth", "0.1", "--print-config"]).output
    )
    told = " ".join(run(main(more), ["run", "--help"]).output.split())
    assert "--warmth FLOAT Share of warmth. [default: 0.5; x>=0 and x<=1]" in told
    wrong = run(main(more), ["run", "s", "--model", "m", "--warmth", "2"])
    assert wrong.exit_code == 2 and "--warmth: got '2', expected a number less than" in wrong.output
    (tmp_path / "c.yaml").write_text("{model: m, warmt: 1}")
    assert (
        "the nearest is 'warmth'"
        in run(main(more), ["run", "s", "-C", str(tmp_path / "c.yaml")]).output
    )


class Merge(Verb):
    """Options that are typed several times, or stand in YAML only."""

    param: dict[str, int] = option({}, "Parameters.", many=True, adds=True)
    slices: tuple[int, ...] = option((), "Blocks.", typed=False)

    @field_validator("param", mode="before")
    @classmethod
    def _joined(cls, values: object) -> object:
        parts = values if isinstance(values, list | tuple) else [values]
        pairs = [p if isinstance(p, dict) else dict([p.split("=")]) for p in parts]
        return {key: value for pair in pairs for key, value in pair.items()}


def test_what_is_typed_is_added_where_an_option_says_so(tmp_path: Path) -> None:
    held = command(Merge, "run")(lambda settings: seen.append(settings))
    (tmp_path / "m.yaml").write_text("{param: {a: 1, b: 2}, slices: [3]}")
    found = call("-C", tmp_path / "m.yaml", "--param", "b=5", "--param", "c=6", held=held)
    assert found.param == {"a": 1, "b": 5, "c": 6} and found.slices == (3,)
    help = CliRunner().invoke(main(held), ["run", "--help"]).output
    assert "--slices" not in help and "--param" in help
