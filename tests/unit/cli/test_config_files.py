"""YAML in place of options: what it holds, what is refused, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lens.cli.app import main
from lens.training.config import PRESETS, LensConfig, resolve
from tests.unit.cli.test_cli import place, refused, run

__all__ = ["place"]  # a fixture


def test_config_holds_flags_and_the_command_line_wins(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "probe.yaml"
    config.write_text(yaml.safe_dump({
        "model": str(place / "model"), "data": str(place / "text"), "langs": ["en", "es"],
        "sites": "-1:", "max_tokens": 5, "out": str(tmp_path / "a.safetensors"), "json": True,
    }))  # fmt: skip
    data = json.loads(run("probe", "-C", config).stdout)
    assert data["languages"] == ["eng_Latn", "spa_Latn"] and data["about"]["max_tokens"] == 5
    asked = ("--langs", "en,sw", "--role", "user", "--max-tokens", 64)
    done = run("probe", "-C", config, *asked, "--force")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["languages"] == ["eng_Latn", "swh_Latn"]
    chat = {"template": None, "system": None, "enable_thinking": None, "extra": {}}
    assert data["about"]["role"] == "user" and data["about"]["chat"] == chat


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("layer: '-2:'", "unknown key 'layer'; the nearest is 'layers'"),
        ("batchsize: 4", "the nearest is 'batch-size'"),
        ("- a\n- b", "expected keys with values"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_configs(tmp_path: Path, content: str, words: str) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(content)
    refused("train", "--config", config, words=words)
    refused("train", "--config", tmp_path / "absent.yaml", words="check the path")


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def test_every_problem_is_told_at_once_one_line_a_key(tmp_path: Path) -> None:
    config = write(tmp_path / "train.yaml", {
        "steps": 2.5, "lr": -1, "lora": "many", "force": "maybe", "dtype": [1], "layer": "-2:",
        "losses": {"preset": "lens", "rnk": 3, "patience": 0}, "strength": "much",
        "tune": {"validation": {"prompt": "x"}, "trials": 0}, "batch-size": 4, "batch_size": 5,
        "low-memory": True, "keep-in-memory": True, "warmup-ratio": None,
    })  # fmt: skip
    lines = refused("train", "-C", config, words="train.yaml: steps: got 2.5").splitlines()
    told = [line.partition(f"{config}: ")[2] for line in lines]
    for start, words in (
        ("lr: ", "got -1, expected a number greater than 0"),
        ("lora: ", "got 'many', expected a valid integer"),
        ("force: ", "got 'maybe', expected a valid boolean"),
        ("dtype: ", "got [1], expected a valid string"),
        ("losses: patience: ", "got 0, expected a number greater than or equal to 1"),
        ("losses: ", "unknown key 'rnk'; the nearest is 'rank'"),
        ("strength: ", "spa_Latn=1.5"),
        ("tune: validation.prompts: ", "missing"),
        ("tune: validation: ", "unknown key 'prompt'; the nearest is 'prompts'"),
        ("tune: trials: ", "got 0"),
        ("unknown key 'layer'", "the nearest is 'layers'"),
        ("'batch-size' and 'batch_size'", "are one option"),
        ("'low-memory' and 'keep-in-memory'", "are one option"),
    ):
        assert sum(line.startswith(start) and words in line for line in told) == 1, (start, told)
    assert not any("warmup" in line for line in told)  # nothing after the colon: not given


def commands(group=main, path=()) -> dict[str, object]:
    """Every command that takes a config, by its words."""
    found = {}
    for name in group.verbs:
        one = group.get_command(None, name)
        words = (*path, name)
        if hasattr(one, "verbs"):
            found |= commands(one, words)
        if any(param.name == "print_config" for param in one.params):
            found[" ".join(words)] = one
    return found


@pytest.mark.parametrize("words", list(commands()))
def test_the_defaults_of_every_option_are_good_yaml(words: str, tmp_path: Path) -> None:
    """What --print-config prints without any option, uncommented, is taken and changes nothing."""
    printed = run(*words.split(), *arguments(commands()[words]), "--print-config").stdout
    config = tmp_path / "defaults.yaml"
    config.write_text(printed.replace("# ", ""), encoding="utf-8")
    again = run(*words.split(), *arguments(commands()[words]), "-C", config, "--print-config")
    assert again.exit_code == 0, again.output
    assert yaml.safe_load(again.stdout) == yaml.safe_load(printed.replace("# ", ""))


def arguments(command) -> list[str]:
    return ["x" for param in command.params if param.param_type_name == "argument"]


def test_a_printed_config_repeats_the_call(place: Path, tmp_path: Path) -> None:
    given = ("train", "--model", place / "model", "--space", place / "space.safetensors",
             "--prompts", place / "text", "--langs", "es,sw", "--strength", "es=1.5,sw=2",
             "--keep-in-memory", "--no-template", "--losses", "lens-paper",
             "--steps", 2)  # fmt: skip
    printed = run(*given, "--out", tmp_path / "one", "--print-config").stdout
    assert not (tmp_path / "one").exists()
    content = yaml.safe_load(printed)
    assert content["low-memory"] is False and content["template"] is False
    assert content["strength"] == {"es": 1.5, "sw": 2.0} and content["langs"] == ["es", "sw"]
    assert resolve(content["losses"]) == PRESETS["lens-paper"]
    assert "seed" not in content and "# seed: 0\n" in printed
    config = tmp_path / "again.yaml"
    config.write_text(printed, encoding="utf-8")
    assert run("train", "-C", config, "--print-config").stdout == printed
    assert run(*given, "--out", tmp_path / "one").exit_code == 0
    assert run("train", "-C", config, "--out", tmp_path / "two").exit_code == 0
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    assert logs[0] == logs[1]


def test_losses_come_from_a_file_or_a_mapping(place: Path, tmp_path: Path) -> None:
    losses = {"preset": "lens", "rank": 1, "terms": [{"kind": "separate"}, {"kind": "norm"},
              {"kind": "retain", "rows": "text"}]}  # fmt: skip
    path = write(tmp_path / "losses.yaml", losses)
    inside = write(tmp_path / "train.yaml", {"losses": losses})
    common = ("train", "--model", place / "model", "--space", place / "space.safetensors",
              "--prompts", place / "text", "--texts", place / "text", "--steps", 2)  # fmt: skip
    for name, more in (("one", ("--losses", path)), ("two", ("-C", inside))):
        done = run(*common, *more, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        facts = json.loads((tmp_path / name / "reproduce.json").read_text())
        expected = resolve(losses).model_copy(update={"steps": 2})
        assert LensConfig.model_validate(facts["losses"]) == expected
        assert set(facts["inputs"]["texts"]) == {"spa_Latn", "swh_Latn"}
    entry = json.loads((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss_separate", "loss_norm", "loss_retain"} <= set(entry)
    refused(
        *common, "--out", tmp_path / "x", "--losses", tmp_path / "no.yaml", words="check the path"
    )
    path.write_text("terms: [{kind: separate, site: [1]}]")
    refused(*common, "--out", tmp_path / "x", "--losses", path, words="terms.0.site: got [1]")
    refused(*common, "--out", tmp_path / "x", "--losses", "lensv1", words="nearest is 'lens'")
