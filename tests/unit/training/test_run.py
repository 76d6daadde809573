"""How runs are carried out: killed, stopped, out of room, diverging, validated."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import lens
from lens.errors import InputError
from lens.training import LanguageModel, Retain
from lens.training.objective import ValidationMonitor
from lens.training.optimizer import DivergedError
from lens.training.run import RunFolder, RunOptions
from lens.training.trainer import LensTrainer
from lens.utils.signals import StoppedError
from tests.helpers.runs import HELD_OUT, PROMPTS, config, geometry, make, no_file_above, same

# -- killed, stopped, resumed


def test_killed_at_any_moment_and_resumed_gives_the_same_bits(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.killed", str(tmp_path), "3"]
    root = str(Path(lens.__file__).parent.parent)
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["left"], "the run was always faster than the kill"
    assert any("workdir.json" in names for names in found["left"])
    assert any(name.startswith("step-") for names in found["left"] for name in names)
    assert found["same_log"] and found["same_band"] and found["steps"] == 14


@contextmanager
def signal_after(number, metrics, lines):
    """Send this process a signal once the log has so many lines."""

    def watch():
        for _ in range(5000):
            if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
                os.kill(os.getpid(), number)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stopped_by_a_signal_and_resumed(tmp_path, number, dtype):
    settings = config(steps=40)
    alone = make(dtype=dtype).run(settings)
    work = tmp_path / "out.unfinished"
    trainer = make(dtype=dtype)
    before = signal.getsignal(number)
    with signal_after(number, work / "metrics.jsonl", 3):
        with pytest.raises(StoppedError, match=r"after step \d+ of 40.*--resume") as stopped:
            trainer.run(settings, running=RunOptions(folder=work))
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    ((step, path),) = RunFolder(work).checkpoints()
    assert 3 <= step < 40
    assert {p.name for p in path.iterdir()} == {
        "band.safetensors", "optimizer.safetensors", "state.json",
    }  # fmt: skip
    assert all(torch.equal(p, trainer.original[n]) for n, p in trainer.parameters.items())
    with pytest.raises(InputError, match=f"unfinished training run, {step} steps long"):
        make(dtype=dtype).run(settings, running=RunOptions(folder=work))
    resumed = make(dtype=dtype).run(settings, running=RunOptions(folder=work, resume=True))
    assert same(resumed, alone)
    # a run that had ended is not trained again
    again = make(dtype=dtype).run(settings, running=RunOptions(folder=work, resume=True))
    assert same(again, alone)


def test_a_second_signal_stops_in_the_middle_of_a_step(tmp_path):
    work = tmp_path / "out.unfinished"
    trainer = make()
    seen = []

    def insist(gradient):
        seen.append(1)
        for _ in range(2 if len(seen) == 4 else 0):
            signal.raise_signal(signal.SIGINT)
        return gradient

    handle = next(iter(trainer.parameters.values())).requires_grad_().register_hook(insist)
    with pytest.raises(StoppedError, match=r"stopped at once.*step-000003") as stopped:
        trainer.run(config(), running=RunOptions(folder=work, checkpoint_every=1))
    handle.remove()
    assert stopped.value.exit_code == 130 and len(seen) == 4
    assert same(
        make().run(config(), running=RunOptions(folder=work, resume=True)), make().run(config())
    )


def test_adapters_and_recomputed_blocks_resume_too(tmp_path):
    work = tmp_path / "out.unfinished"
    settings = config(steps=40, validate_every=2)
    options = {"dtype": torch.bfloat16, "lora": 2, "layers": "0:1,2:", "validation": HELD_OUT}
    alone = make(**options).run(settings)
    recomputed = RunOptions(folder=work, gradient_checkpointing=True)
    with signal_after(signal.SIGINT, work / "metrics.jsonl", 5), pytest.raises(StoppedError):
        make(**options).run(settings, running=recomputed)
    with pytest.raises(InputError, match=r"lora\.rank: was 2, is now 3"):
        make(**{**options, "lora": 3}).run(settings, running=RunOptions(folder=work, resume=True))
    resumed = make(**options).run(settings, running=RunOptions(folder=work, resume=True))
    assert same(resumed, alone) and all("lora" in name for name in resumed.weights)
    resumed.save(tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() and not work.exists()


def test_another_run_is_not_resumed_and_the_message_says_why(tmp_path):
    work = tmp_path / "w.unfinished"
    make().run(config(), running=RunOptions(folder=work, checkpoint_every=4))
    again = RunOptions(folder=work, resume=True)
    with pytest.raises(InputError, match="it is not the same one") as refused:
        make().run(config(learning_rate=0.5), strength=2.0, seed=1, running=again)
    text = str(refused.value)
    assert "losses.learning_rate: was 0.001, is now 0.5" in text
    assert "strength.spa_Latn: was 1.0, is now 2.0" in text and "seed: was 0, is now 1" in text
    other = {lang: [*rows[:3], "x"] for lang, rows in PROMPTS.items()}
    trainer = make()
    trained = LensTrainer(trainer.model, trainer.tokenizer, trainer.space, other)
    with pytest.raises(InputError, match=r"prompts\.spa_Latn: has changed"):
        trained.run(config(), running=again)
    with pytest.raises(InputError, match=r"dtype: was float32, is now bfloat16"):
        make(dtype=torch.bfloat16).run(config(), running=again)
    with pytest.raises(InputError, match="validation"):
        make(validation=HELD_OUT).run(config(), running=again)
    other = {"final": geometry(trainer).randomised(1)}
    with pytest.raises(InputError, match="subspaces: has changed"):
        make().run(config(), running=again, geometry=other)
    fresh = make().run(config(), running=RunOptions(folder=work, force=True))
    assert len(fresh.log) == 8


def test_two_processes_do_not_write_one_folder(tmp_path):
    work = RunFolder(tmp_path / "w.unfinished")
    work.open({})
    with pytest.raises(InputError, match="another process is at work in"):
        make().run(config(), running=RunOptions(folder=work.path))
    work.leave(keep=False)
    assert not work.path.exists()


def test_a_broken_checkpoint_is_named(tmp_path):
    work = tmp_path / "w.unfinished"
    make().run(config(), running=RunOptions(folder=work, checkpoint_every=4))
    (work / "step-000008" / "band.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="step-000008 cannot be read"):
        make().run(config(), running=RunOptions(folder=work, resume=True))
    (work / "step-000008").rename(tmp_path / "away")
    resumed = make().run(config(), running=RunOptions(folder=work, resume=True))
    assert same(resumed, make().run(config()))


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    work = tmp_path / "w.unfinished"
    (work / "step-000004").mkdir(parents=True)
    (work / "run.json").write_text(json.dumps({"schema": "lens.run/1", "run": {}, "machine": {}}))
    for options in ({}, {"resume": True}):
        with pytest.raises(InputError, match=r"format of an earlier version.*--force"):
            make().run(config(), running=RunOptions(folder=work, **options))
    assert (work / "step-000004").exists()
    make().run(config(), running=RunOptions(folder=work, force=True))
    assert not (work / "run.json").exists()


def test_needs_a_folder():
    for running in (RunOptions(checkpoint_every=1), RunOptions(resume=True)):
        with pytest.raises(InputError, match="need a working folder"):
            make().run(config(), running=running)


# -- no room


def test_a_checkpoint_without_room_is_one_message_and_the_one_before_stays(tmp_path):
    work = tmp_path / "w.unfinished"
    settings = config(steps=30)
    alone = make().run(settings)
    with signal_after(signal.SIGINT, work / "metrics.jsonl", 3):
        with pytest.raises(StoppedError):
            make().run(settings, running=RunOptions(folder=work))
    before = sorted(p.name for p in work.rglob("*"))
    with no_file_above(40_000), pytest.raises(InputError, match="cannot write the checkpoint of"):
        make().run(settings, running=RunOptions(folder=work, resume=True, checkpoint_every=2))
    assert sorted(p.name for p in work.rglob("*")) == before
    resumed = make().run(settings, running=RunOptions(folder=work, resume=True))
    assert same(resumed, alone)


def test_a_result_without_room_is_kept_for_saving(tmp_path):
    out, work = tmp_path / "out", tmp_path / "out.unfinished"
    result = make().run(config(), running=RunOptions(folder=work))
    with no_file_above(40_000), pytest.raises(InputError, match=r"cannot write .*--resume"):
        result.save(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out.unfinished"]
    assert [p.name for p in work.glob(".*")] == [".lock"]
    (work / ".out.killed.lens-part").mkdir()  # what a killed process leaves
    make().run(config(), running=RunOptions(folder=work, resume=True)).save(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_complete_checkpoints_only(small_disk):
    work = small_disk / "w.unfinished"
    with pytest.raises(InputError, match=r"cannot write the checkpoint.*[Nn]o space left") as full:
        make().run(config(), running=RunOptions(folder=work, checkpoint_every=1))
    assert "\n" not in str(full.value)
    left = RunFolder(work).checkpoints()
    assert left and [p.name for p in work.glob(".*")] == [".lock"]
    (small_disk / "w.unfinished" / "step-000001").rename(small_disk / "x")  # make room …
    subprocess.run(["rm", "-r", str(small_disk / "x")], check=True)
    assert RunFolder(work).checkpoints() == [c for c in left if c[0] != 1]


# -- divergence


def test_divergence_keeps_the_last_good_weights(tmp_path):
    work = tmp_path / "w.unfinished"
    settings = config(steps=20, learning_rate=1e25, warmup_ratio=0.0, max_grad_norm=1e30)
    trainer = make()
    with pytest.raises(DivergedError, match=r"step (\d+): .*original weights") as diverged:
        trainer.run(settings, running=RunOptions(folder=work, checkpoint_every=1))
    assert all(torch.equal(p, trainer.original[n]) for n, p in trainer.parameters.items())
    assert all(step < diverged.value.step for step, _ in RunFolder(work).checkpoints())
    assert len((work / "metrics.jsonl").read_text().splitlines()) == diverged.value.step


def test_a_checkpoint_whose_weights_gave_the_bad_loss_is_dropped(tmp_path):
    work = tmp_path / "w.unfinished"
    trainer = make()
    parameter = next(iter(trainer.parameters.values()))
    seen = []

    def poison(gradient):
        seen.append(1)
        return gradient * math.nan if len(seen) == 4 else gradient

    handle = parameter.requires_grad_().register_hook(poison)
    with pytest.raises(DivergedError, match=r"step 3: the gradient is not finite") as diverged:
        trainer.run(config(), running=RunOptions(folder=work, checkpoint_every=1))
    handle.remove()
    assert "step-000002/band.safetensors" in str(diverged.value)
    assert [step for step, _ in RunFolder(work).checkpoints()] == [2]


# -- validation


def test_validation_measures_the_objective_and_keeps_the_best_weights():
    settings = config(steps=30, validate_every=2, learning_rate=0.02, patience=3)
    trainer = make(validation=HELD_OUT)
    result = trainer.run(settings)
    found = {e["step"] + 1: e["validation_loss"] for e in result.log if "validation_loss" in e}
    best = result.about["validation"]
    assert best["loss"] == min(found.values()) == found[best["best_step"]]
    assert len(result.log) == best["best_step"] + 6 < 30  # three validations without a lower loss
    where = {"final": geometry(trainer)}
    strength = dict.fromkeys(trainer.data.languages, 1.0)
    given = (trainer.held_out, trainer.parameters)
    watch = ValidationMonitor(*given, settings, where, strength)
    assert watch.measure(1)["validation_loss"] == best["loss"]
    whole = settings.model_copy(update={"micro_batch_size": 3})
    by_hand = ValidationMonitor(*given, whole, where, strength).step([0, 1, 2])
    assert by_hand[0].item() == pytest.approx(best["loss"], rel=1e-5)
    plain = make().run(settings)
    assert [e["loss"] for e in plain.log[: len(result.log)]] == [e["loss"] for e in result.log]


def test_validation_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="lack swh_Latn"):
        make(validation={k: v for k, v in HELD_OUT.items() if k != "swh_Latn"})
    answers = {"spa_Latn": ["rojo", "yo", "aqui", "hoy"]}
    trainer = make(validation=HELD_OUT, answers=answers)
    with pytest.raises(InputError, match="have no answers"):
        trainer.run(config(terms=(LanguageModel(),)))
    log = trainer.run(config(terms=(LanguageModel(), Retain()), validate_every=4)).log
    assert {"validation_loss", "validation_loss_retain"} == {
        key for key in log[-1] if key.startswith("validation")
    }
