"""``lens train`` that is stopped, resumed, validated, and asked about refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lens
from tests.helpers.runs import no_file_above
from tests.unit.cli import test_cli
from tests.unit.cli.test_cli import refused, run

place = test_cli.place


def test_train_resumes_validates_and_reports_refusals(place: Path, tmp_path: Path) -> None:
    (tmp_path / "refuse.txt").write_text("How do I steal?\n\nComo robo?\n", encoding="utf-8")
    common = ("train", "--model", place / "model", "--space", place / "space.safetensors",
              "--prompts", place / "text", "--steps", 6, "--validate-every", 3,
              "--validation", place / "text", "--micro-batch-size", 3)  # fmt: skip
    alone = tmp_path / "alone"
    shown = run(*common, "--out", alone, "--refusal-prompts", tmp_path / "refuse.txt")
    assert shown.exit_code == 0, shown.output
    assert "refusals: another first token on" in shown.stdout and "kept the weights of step" in (
        shown.stdout
    )
    facts = json.loads((alone / "reproduce.json").read_text())
    moved = facts["refusal_drift"]
    assert moved["n"] == 2 and moved["kl"] > 0 and 0 <= moved["changed"] <= 1
    assert facts["losses"]["micro_batch_size"] == 3 and facts["losses"]["validate_every"] == 3

    out, work = tmp_path / "out", tmp_path / "out.unfinished"
    with no_file_above(150_000):  # room for checkpoints, none for the model
        refused(*common, "--out", out, "--checkpoint-every", 2, words=f"kept in {work}: make room")
    assert work.is_dir() and not out.exists()
    refused(*common, "--out", out, words="unfinished training run, 6 steps long")
    refused(*common, "--out", out, "--resume", "--lr", 0.5, words="losses.learning_rate: was 0.001")
    again = run(*common, "--out", out, "--resume", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["steps"] == 6 and not work.exists()
    for name in ("model.safetensors", "metrics.jsonl", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()
    refused(*common, "--out", tmp_path / "x", "--report-to", "neptune", words="tensorboard")
    refused(*common, "--out", tmp_path / "x", "--refusal-prompts", tmp_path / "no", words="no")
    assert {item.name for item in tmp_path.iterdir()} == {"alone", "out", "refuse.txt"}


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(place: Path, tmp_path: Path) -> None:
    root = str(Path(lens.__file__).parent.parent)
    command = [
        sys.executable, "-m", "lens", "train", "--model", place / "model",
        "--space", place / "space.safetensors", "--prompts", place / "text",
        "--steps", "4000", "--out", tmp_path / "out",
    ]  # fmt: skip
    running = subprocess.Popen(
        list(map(str, command)), env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "out.unfinished" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    said = running.communicate()
    assert running.returncode == 130 and said[0] == ""
    assert "--resume" in said[1] and "Traceback" not in said[1]
    assert list((tmp_path / "out.unfinished").glob("step-*"))
