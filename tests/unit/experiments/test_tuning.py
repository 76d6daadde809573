"""Tuning: what is tried, what wins, how it goes on."""

import copy
import json
import sys

import pytest
import torch

import lens
from lens.errors import InputError, MissingExtraError
from lens.experiments.tuning import TunedTrial, TuningConfig, choose, read_tuning, tune
from tests.helpers import tiny
from tests.unit.experiments.test_ablation import lines

optuna = pytest.importorskip("optuna")

PROMPTS = {
    "eng_Latn": [f"what is {i}?" for i in range(6)],
    "spa_Latn": [f"que es {i}?" for i in range(6)],
    "ind_Latn": [f"apa {i}?" for i in range(6)],
}


@pytest.fixture
def given(tmp_path):
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    space = lens.probe(net, tokenizer, PROMPTS, pivot="eng_Latn", role="text", pooling="last")
    rows = [{code: texts[i] for code, texts in PROMPTS.items()} for i in range(3)]
    asked = {"prompts": lines(tmp_path / "asked.jsonl", rows), "max_new_tokens": 2}
    return net, tokenizer, space, PROMPTS, asked


def settings(asked, **changes):
    return TuningConfig.model_validate(
        {
            "validation": asked,
            "search": {
                "layers": ["-1:", "-2:"],
                "losses.rank": [1, "full"],
                "losses.terms.1.weight": {"low": 0.1, "high": 10, "log": True},
            },
            "trials": 4,
            "seed": 3,
        }
        | changes
    )


def run(given, tuning, **more):
    net, tokenizer, space, prompts, _ = given
    config = lens.training.PRESETS["lens"].model_copy(update={"steps": 2})
    before = copy.deepcopy(net.state_dict())
    found = tune(net, tokenizer, space, prompts, tuning, losses=config, **more)
    assert all(torch.equal(w, before[n]) for n, w in net.state_dict().items())
    return found


def test_every_trial_is_kept_and_the_first_is_the_given_setting(given):
    found = run(given, settings(given[-1]))
    assert [t.number for t in found.trials] == [1, 2, 3, 4]
    assert found.trials[0].strength == {"spa_Latn": 2.25, "ind_Latn": 2.25}
    assert {t.layers for t in found.trials} <= {"-1:", "-2:"}
    assert len({json.dumps(t.strength) for t in found.trials}) == 4
    assert all(0.1 <= t.losses["terms"][1]["weight"] <= 10 for t in found.trials)
    assert found.metric == "fidelity"


def test_a_search_goes_on_where_it_stopped_and_gives_the_same(given, tmp_path):
    work = tmp_path / "trials"
    run(given, settings(given[-1], trials=2), work=work)
    found = run(given, settings(given[-1]), work=work)
    assert len(found.trials) == 4
    again = run(given, settings(given[-1]), work=work)
    assert again.trials == found.trials and again.best == found.best
    with pytest.raises(InputError, match=r"tuning\.seed: was 3, is now 4"):
        run(given, settings(given[-1], seed=4), work=work)
    alone = run(given, settings(given[-1]))
    assert alone.trials == found.trials


def test_training_the_best_repeats_its_trial(given):
    net, tokenizer, space, prompts, asked = given
    tuning = settings(asked, trials=3, search={"lora": [2, 3], "modules": ["mlp", "full"]})
    original = copy.deepcopy(net)
    config = lens.training.PRESETS["lens"].model_copy(update={"steps": 2})
    found = tune(net, tokenizer, space, prompts, tuning, losses=config, modules="mlp", lora=2)
    assert list(net.state_dict()) == list(original.state_dict())  # no adapter is left on
    assert found.trials[0].setting["modules"] == "mlp" and found.trials[0].setting["lora"] == 2
    result = found.train()
    drift = lens.evaluation.pivot_kl(
        original, net, tokenizer, [f"what is {i}?" for i in range(3)], batch_size=64
    )
    assert drift.mean == pytest.approx(found.best.drift, rel=1e-6) and drift.mean > 0
    assert result.about["tuning"] == found.to_dict() and json.dumps(found.to_dict())
    with pytest.raises(InputError, match="holds no model"):
        choose(found.trials, tuning).train()


def test_a_trial_that_diverges_is_kept_and_not_run_again(given, tmp_path):
    tuning = settings(given[-1], search={"losses.learning_rate": [1e-3, 1e30]}, trials=6)
    work = tmp_path / "trials"
    found = run(given, tuning, work=work)
    wild = [t for t in found.trials if t.losses["learning_rate"] > 1]
    assert 0 < len(wild) < 6 and found.best not in wild
    assert all("diverged" in t.failed and t.quality is None for t in wild)
    assert "diverged" in str(wild[0]) and "drift" in str(found.best)
    assert run(given, tuning, work=work).trials == found.trials
    only = settings(given[-1], search={"losses.learning_rate": [1e30]}, trials=2)
    with pytest.raises(InputError, match="all 2 trials diverged"):
        run(given, only)


def test_the_best_trial_keeps_the_bound():
    def trial(number, quality, drift, fidelity=1.0):
        return TunedTrial(number, {}, {"es": 1.0}, quality, fidelity, drift)

    tuning = TuningConfig.model_validate({"validation": {"prompts": "x"}, "max_drift": 0.02})
    found = choose([trial(0, 0.9, 0.5), trial(1, 0.6, 0.01), trial(2, 0.6, 0.005)], tuning)
    assert found.best.number == 2 and found.within
    found = choose([trial(0, 0.9, 0.5), trial(1, 0.1, 0.4)], tuning)
    assert found.best.number == 1 and not found.within


def test_without_optuna_it_says_what_to_install(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "lens-lm\[tune\]"'):
        run(given, settings(given[-1]))


def test_what_does_not_fit_is_refused(given, tmp_path):
    asked = given[-1]
    with pytest.raises(InputError, match="no '7' here, expected one of 0, 1"):
        run(given, settings(asked, search={"losses.terms.7.weight": [1.0]}))
    path = tmp_path / "tuning.yaml"
    path.write_text(json.dumps({"validation": asked, "strength": {"low": 3, "high": 1}}))
    with pytest.raises(InputError, match="got 3 to 1, expected low < high"):
        read_tuning(path)
    path.write_text(json.dumps({"validation": asked, "trails": 3}))
    with pytest.raises(InputError, match="trails"):
        read_tuning(path)
    few = {**asked, "prompts": lines(tmp_path / "few.jsonl", [{"en": "a", "es": "b"}] * 2)}
    with pytest.raises(InputError, match="no ind_Latn, which is trained"):
        run(given, settings(few))
