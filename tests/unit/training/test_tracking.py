"""Trackers: off unless named, refused early when missing, complete when asked for."""

import importlib.util
import json
import sys

import pytest

import lens
from lens.errors import InputError, MissingExtraError
from lens.training import LensConfig, Retain, Separate
from lens.training.run import TRACKERS, RunOptions
from lens.training.trainer import LensTrainer
from tests.helpers import tiny

PROMPTS = {
    "eng_Latn": ["what is red?", "who is it?", "where?", "when is tea?"],
    "spa_Latn": ["que es rojo?", "quien es?", "donde?", "cuando hay te?"],
}
CONFIG = LensConfig(terms=(Separate(), Retain()), rank="full", steps=3, batch_size=2)


@pytest.fixture
def trainer():
    net, tokenizer = tiny.model(), tiny.tokenizer()
    space = lens.probe(net, tokenizer, PROMPTS, pivot="eng_Latn", role="user", pooling="last")
    return LensTrainer(net, tokenizer, space, PROMPTS)


def test_nothing_is_reported_unless_asked_for(trainer, tmp_path, monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_API_KEY", "TRACKIO_PROJECT", "REPORT_TO"):
        monkeypatch.setenv(name, "x")
    loaded = set(sys.modules)
    result = trainer.run(CONFIG, running=RunOptions(folder=tmp_path / "w"))
    assert not {"wandb", "trackio", "tensorboard"} & (set(sys.modules) - loaded)
    result.save(tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["out"]
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.log


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_before_training(trainer, tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(MissingExtraError, match=rf"lens-lm\[{name}\]"):
        trainer.run(CONFIG, running=RunOptions(folder=tmp_path / "w", report_to=(name,)))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_refused(trainer, tmp_path):
    with pytest.raises(InputError, match="unknown tracker 'neptune'; expected one of: tensorboard"):
        trainer.run(CONFIG, running=RunOptions(folder=tmp_path / "w", report_to=("neptune",)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_value_of_the_log(trainer, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    running = RunOptions(folder=tmp_path / "w", report_to=("tensorboard",))
    result = trainer.run(CONFIG, running=running)
    result.save(tmp_path / "out")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set().union(*result.log) - {"step"}
    for name in events.Tags()["scalars"]:
        expected = [(e["step"], e[name]) for e in result.log if name in e]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [s for s, _ in found] == [s for s, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(trainer, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trainer.run(CONFIG, running=RunOptions(folder=tmp_path / "w", report_to=("wandb",)))
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.filterwarnings("ignore")
def test_trackio_local(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    trainer.run(CONFIG, running=RunOptions(folder=tmp_path / "w", report_to=("trackio",)))
    assert list((tmp_path / "trackio").rglob("*.db"))
