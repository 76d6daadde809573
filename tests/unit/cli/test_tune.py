"""``lens train --tune`` on the sample world: what it writes, and how it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import lens
from lens.demo.languages import PIVOT
from lens.demo.models import checkpoint_path
from lens.demo.questions import questions
from tests.unit.cli.test_cli import refused, run

pytest.importorskip("optuna")
LANGS = (PIVOT, "spa_Latn", "swh_Latn")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A space, prompts, and questions with accepted answers, as a user would have them."""
    folder = tmp_path_factory.mktemp("tune")
    for split, count in (("train", 16), ("validation", 4)):
        asked = {code: questions(split, code, count) for code in LANGS}
        rows = [{code: asked[code][i].prompt for code in LANGS} for i in range(count)]
        right = [{c: list(asked[c][i].accepted[c]) for c in LANGS} for i in range(count)]
        for name, lines in ((split, rows), (f"{split}-references", right)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    done = run("probe", "--model", checkpoint_path("chat"), "--data", folder / "train.jsonl",
               "--pooling", "last", "--out", folder / "space.safetensors", "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def command(world: Path, out: Path, **changes: object) -> list[str]:
    """A tuning run with a tiny budget; its tuning file is written beside ``out``."""
    tuning = {
        "validation": {
            "prompts": str(world / "validation.jsonl"), "max_new_tokens": 8,
            "references": str(world / "validation-references.jsonl"),
        },
        "search": {"layers": ["-1:", "-2:"], "losses.terms.1.weight": {"low": 0.3, "high": 3}},
        "trials": 4, "max_drift": 1.0, "seed": 5,
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tuning | changes), encoding="utf-8")
    model, space = checkpoint_path("chat"), world / "space.safetensors"
    found = ("--model", model, "--space", space, "--prompts", world / "train.jsonl", "--steps", 3)
    return ["train", *map(str, found), "--tune", str(path), "--out", str(out)]


def trials(out: Path) -> list[dict]:
    return json.loads((out / "trials.json").read_text())["trials"]


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory) -> Path:
    """Output of a search that nobody disturbed."""
    out = tmp_path_factory.mktemp("alone") / "out"
    done = run(*command(world, out))
    assert done.exit_code == 0, done.output
    assert [f"trial {n} of 4: quality" in done.stderr for n in (1, 2, 3, 4)] == [True] * 4
    assert "chose trial" in done.stdout and "accuracy_in_language" in done.stdout
    return out


def test_the_best_setting_is_trained_and_every_trial_kept(alone: Path) -> None:
    kept = json.loads((alone / "trials.json").read_text())
    facts = json.loads((alone / "reproduce.json").read_text())
    best = kept["best"]
    assert [trial["number"] for trial in kept["trials"]] == [1, 2, 3, 4]
    assert best in kept["trials"] and kept["within"]
    assert best["quality"] == max(trial["quality"] for trial in kept["trials"])
    assert kept["trials"][0]["strength"] == {"spa_Latn": 2.25, "swh_Latn": 2.25}
    assert facts["strength"] == best["strength"] and facts["losses"] == best["setting"]["losses"]
    assert facts["layers"] == ([7] if best["setting"]["layers"] == "-1:" else [6, 7])
    assert facts["tuning"]["best"] == best and facts["tuning"]["trials"] == 4
    card = (alone / "README.md").read_text()
    assert f"trial {best['number']} of 4" in card and "trials.json" in card
    assert sorted(item.name for item in alone.parent.iterdir()) == ["out", "out.yaml"]
    lens.models.load(alone)


def test_killed_in_the_middle_and_started_again_it_gives_the_same(
    world: Path, alone: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "kept" / "trials"
    log = journal / "trials.jsonl"
    arguments = [*command(world, tmp_path / "out"), "--journal", str(journal)]
    root = str(Path(lens.__file__).parent.parent)
    child = subprocess.Popen([sys.executable, "-m", "lens", *arguments], stderr=subprocess.DEVNULL,
                             env=os.environ | {"PYTHONPATH": root})  # fmt: skip
    while child.poll() is None:
        if log.exists() and log.read_text().count('"quality"') >= 2:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "resuming after" in done.stderr and "trial 1 of 4" not in done.stderr
    assert trials(tmp_path / "out") == trials(alone)
    logs = [(out / "metrics.jsonl").read_text() for out in (tmp_path / "out", alone)]
    assert logs[0] == logs[1]
    assert log.exists()  # it was named, so it stays, for a longer search
    more = run(*command(world, tmp_path / "out", trials=5), "--journal", journal, "--force")
    assert more.exit_code == 0 and trials(tmp_path / "out")[:4] == trials(alone)
    refused(*command(world, tmp_path / "new", seed=6), "--journal", journal,
            words="tuning.seed: was 5, is now 6")  # fmt: skip
    log.write_text("what\n")
    refused(*command(world, tmp_path / "new"), "--journal", journal, words="line 1 is damaged")


def test_where_no_trial_keeps_the_bound_nothing_is_saved(world: Path, tmp_path: Path) -> None:
    few = {"search": {}, "trials": 2}
    tight = command(world, tmp_path / "out", max_drift=1e-9, **few)
    told = refused(*tight, "--quiet", words="no trial of 2 keeps the pivot's drift", code=3)
    assert "within 1e-09 nats" in told
    assert "the nearest is trial" in told and "raise max_drift" in told
    names = {item.name for item in tmp_path.iterdir()}
    assert names == {"out.yaml", "out.trials"}
    done = run(*command(world, tmp_path / "out", max_drift=1.0, **few))
    assert done.exit_code == 0 and "trial 1 of 2" not in done.stderr  # no trial was run again
    assert not (tmp_path / "out.trials").exists()


def test_adapters_and_parts_are_searched_too(world: Path, tmp_path: Path) -> None:
    searched = {"search": {"lora": [2, 3], "modules": ["attention", "mlp"]}, "trials": 3}
    arguments = command(world, tmp_path / "out", **searched)
    done = run(
        *arguments, "--lora", 2, "--modules", "mlp", "--seed", 1, "--strength", 1.5, "--json"
    )
    assert done.exit_code == 0, done.output
    kept = json.loads(done.stdout)["tuning"]
    first, best = kept["trials"][0], kept["best"]["setting"]
    assert (first["setting"]["lora"], first["setting"]["modules"]) == (2, "mlp")
    assert first["strength"] == {"spa_Latn": 1.5, "swh_Latn": 1.5} and kept["search"]["seed"] == 1
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["r"] == best["lora"]
    facts = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert facts["trained"]["modules"] == best["modules"]


def test_what_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    good = command(world, tmp_path / "out")
    plain = [item for item in good if item not in ("--tune", str(tmp_path / "out.yaml"))]
    refused(*plain, "--journal", "j", words="give --tune FILE too")
    refused(*plain, "--tune", "x", words="expected a YAML file")
    for changes, words in (
        ({"trails": 3}, "unknown key 'trails'; the nearest is 'trials'"),
        ({"search": {"prompts": [4]}}, "prompts cannot be searched"),
        ({"search": {"lora": [0]}}, "lora: got 0"),
        ({"search": {"losses.terms.7.weight": [1]}}, "no '7' here, expected one of 0, 1"),
        ({"validation": {"prompts": str(tmp_path / "absent")}}, "does not exist"),
    ):
        refused(*command(world, tmp_path / "out", **changes), words=words)
    assert [item.name for item in tmp_path.iterdir()] == ["out.yaml"]
