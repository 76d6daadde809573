"""Two processes that share the prompts give what one gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lens
from lens.errors import InputError
from lens.training.processes import Processes, start
from tests.helpers import tiny

PROMPTS = {
    "en": ["what is red?", "who?", "where are we?", "when is tea?", "why?"],
    "es": ["que es rojo?", "quien es?", "donde?", "cuando hay te?", "por que?"],
    "sw": ["nini nyekundu?", "ni nani?", "wapi?", "chai lini?", "kwa nini?"],
}


def test_rows_are_shared_out_without_overlap():
    parts = [Processes(rank, 3).own(range(10)) for rank in range(3)]
    assert sorted(i for part in parts for i in part) == list(range(10))
    assert Processes().own([4, 4, 1]) == [4, 4, 1] and Processes().gather("a") == ["a"]


def test_one_process_needs_no_group(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert start("auto") == (Processes(), "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="--device cuda, one process per GPU"):
        start("auto")


@pytest.fixture
def dtype():
    return torch.float32


@pytest.fixture
def place(tmp_path, dtype):
    model, tokenizer = tiny.model().to(dtype), tiny.tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    for code, rows in PROMPTS.items():
        (tmp_path / "text" / f"{code}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    space = lens.probe(model, tokenizer, PROMPTS, pivot="en", role="user", pooling="last")
    space.save(tmp_path / "space.safetensors")
    return tmp_path


def launched(processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, "-W", "ignore", *(launcher if processes > 1 else [])]


def run(command):
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def environment():
    root = str(Path(lens.__file__).parent.parent)
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def train(place, out, *more, processes=1):
    return run(command_of(place, out, *more, processes=processes))


def command_of(place, out, *more, processes):
    command = [
        *launched(processes), "-m", "lens", "train",
        "--model", place / "model", "--space", place / "space.safetensors",
        "--prompts", place / "text", "--validation", place / "text", "--validate-every", "3",
        "--steps", "7", "--batch-size", "3", "--out", out, *more,
    ]  # fmt: skip
    return [str(item) for item in command]


LEAVING = """
import sys
from lens.training import processes as distribution

distribution.start("cpu")
import torch.distributed as dist
import lens.models

group = dist.group.WORLD
lens.models.load(sys.argv[1], device="cpu")[0].generate  # imports what training imports
distribution.finish()
holders = sys.getrefcount(group) - 2  # this name and the argument
del group  # kept to the end, it would itself do what this test is about
assert not holders, f"{holders} still hold the process group"
"""


def test_nothing_keeps_the_group_once_it_was_left(place, tmp_path):
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING, encoding="utf-8")
    done = run([*launched(2), str(script), str(place / "model")])
    assert done.returncode == 0, done.stderr


def test_two_processes_give_what_one_gives(place, tmp_path):
    found = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = train(place, out, "--checkpoint-every", "2", processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("7 steps") == 1  # one of them talks
        log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found[processes] = (load_file(out / "model.safetensors"), log)
        assert not (tmp_path / f"{processes}.unfinished").exists()
    (one, log), (two, shared_log) = found[1], found[2]
    for a, b in zip(log, shared_log, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith(("loss", "validation", "grad")):
                assert b[name] == pytest.approx(a[name], rel=2e-6, abs=1e-6), name
    start = load_file(place / "model" / "model.safetensors")
    moved = max(float((one[n] - start[n]).abs().max()) for n in one)
    apart = max(float((one[n] - two[n]).abs().max()) for n in one)
    assert moved > 3e-3 and apart < 5e-6
    facts = json.loads((tmp_path / "2" / "reproduce.json").read_text())
    assert facts["inputs"]["processes"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_give_what_whole_copies_give(place, tmp_path):
    found = []
    for out, shard in ((tmp_path / "whole", ()), (tmp_path / "parts", ("--shard",))):
        given = (*shard, "--max-grad-norm", "1e9", "--checkpoint-every", "3")
        done = train(place, out, *given, processes=2)
        assert done.returncode == 0, done.stderr
        found.append(load_file(out / "model.safetensors"))
    whole, parts = found
    assert all(whole[name].equal(parts[name]) for name in whole)  # no clipping: not a bit apart
    start = load_file(place / "model" / "model.safetensors")
    assert not all(start[name].equal(whole[name]) for name in whole)


def test_a_sharded_run_that_is_stopped_goes_on_to_the_same_bits(place, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = ("--shard", "--micro-batch-size", "1", "--checkpoint-every", "3", "--steps", "40")
    assert train(place, whole, *given, processes=2).returncode == 0
    stop_after_a_checkpoint(place, parts, *given)
    assert not parts.exists()
    again = train(place, parts, *given, "--resume", processes=2)
    assert again.returncode == 0, again.stderr
    assert "resuming after step" in again.stderr
    a, b = (load_file(out / "model.safetensors") for out in (whole, parts))
    assert all(a[name].equal(b[name]) for name in a)


def stop_after_a_checkpoint(place, out, *more):
    """Ask the launcher, and so all processes, to stop as soon as there is a checkpoint."""
    command = command_of(place, out, *more, processes=2)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as running:
        while not list(Path(f"{out}.unfinished").glob("step-*")):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        said = running.communicate()[1]
    assert running.returncode != 0, said


def test_a_divergence_ends_all_processes(place, tmp_path):
    done = train(place, tmp_path / "out", "--lr", "1e30", "--max-grad-norm", "1e30", processes=2)
    assert done.returncode != 0
    assert "weights were put back" in done.stderr
    assert not (tmp_path / "out").exists()
