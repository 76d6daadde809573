"""Lens training: losses against autograd, cached steps against two whole models, bad input."""

import copy
import dataclasses
import json

import pytest
import torch

import lens
from lens.errors import InputError
from lens.models.prefix_cache import PrefixCache
from lens.training import PRESETS, Align, LensConfig, Retain, Separate, resolve
from lens.training.objective import geometries
from lens.training.trainer import LensTrainer, StrengthTrial, choose_strengths
from tests.helpers import tiny

PROMPTS = {
    "eng_Latn": ["what is red?", "who is it?", "where?", "when is tea?"],
    "spa_Latn": ["que es rojo?", "quien es?", "donde?", "cuando hay te?"],
    "ind_Latn": ["apa merah?", "siapa dia?", "di mana?", "kapan teh?"],
    "swh_Latn": ["nini nyekundu?", "ni nani?", "wapi?", "chai lini?"],
}
OTHERS = [lang for lang in PROMPTS if lang != "eng_Latn"]


@pytest.fixture
def setting():
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    space = lens.probe(
        net, tokenizer, PROMPTS, pivot="eng_Latn", role="user", pooling="last", sites="all"
    )
    return net, tokenizer, space


def short(**changes):
    return LensConfig(
        **{
            "terms": (Separate(), Align(pivot="frozen"), Retain()),
            "steps": 3,
            "batch_size": 4,
            "learning_rate": 1e-3,
            **changes,
        }
    )


# -- training


class TwoModels(PrefixCache):
    """The plain loop: both models run from the tokens, every time."""

    def __init__(self, cache, frozen):
        self.__dict__.update(cache.__dict__)
        self.frozen = frozen
        self.last_batch = None

    def batch(self, indices, length=None):
        batch = super().batch(indices, length)
        self.last_batch = (list(indices), batch)
        return batch

    def forward(self, batch):
        return self._forward(batch.input_ids)

    @torch.no_grad()
    def reference(self, indices, site):
        whole = self.frozen.base_model(input_ids=self.last_batch[1].input_ids, use_cache=False)
        states, order = whole.last_hidden_state, self.last_batch[0]
        kept = [states[order.index(i)] for i in indices]
        width = max(len(self.rows[i].input_ids) for i in indices)
        return torch.stack(kept)[:, :width]

    def last_reference(self, indices, site):
        whole = self.frozen.base_model(input_ids=self.last_batch[1].input_ids, use_cache=False)
        return self.last_batch[1].last(whole.last_hidden_state).detach()


def _cached_in_one_batch(trainer):
    """Cache all rows in one forward pass, so that it has the shapes of a training batch."""
    trainer.restore()
    rows = [row.input_ids.tolist() for row in trainer.data.cache.rows]
    trainer.data.cache.rows.clear()
    trainer.data.cache.add(rows, keep="all", batch_size=len(rows))
    return trainer


@pytest.mark.parametrize("preset", ["lens", "lens-paper"])
def test_cached_training_gives_the_weights_of_the_two_model_loop(setting, preset):
    net, tokenizer, space = setting
    config = PRESETS[preset].model_copy(update={"steps": 4, "batch_size": 4, "rank": "full"})
    frozen = copy.deepcopy(net)
    trainer = LensTrainer(net, tokenizer, space, PROMPTS, layers="-2:")
    close = trainer.run(config, seed=3)
    equal = _cached_in_one_batch(trainer).run(config, seed=3)
    plain = LensTrainer(copy.deepcopy(frozen), tokenizer, space, PROMPTS, layers="-2:")
    plain.data = dataclasses.replace(plain.data, cache=TwoModels(plain.data.cache, frozen))
    reference = plain.run(config, seed=3)
    # equal batch shapes: equal bits; other shapes in the cache: equal to rounding
    assert [e["loss"] for e in equal.log] == [e["loss"] for e in reference.log]
    for name, weights in equal.weights.items():
        assert torch.equal(weights, reference.weights[name])
        torch.testing.assert_close(close.weights[name], weights, rtol=0, atol=1e-5)
    moved = max((w - frozen.get_parameter(n)).abs().max() for n, w in equal.weights.items())
    assert moved > 1e-4


def test_only_the_band_changes_and_restore_undoes_it(setting):
    net, tokenizer, space = setting
    before = copy.deepcopy(net.state_dict())
    flags = [p.requires_grad for p in net.parameters()]
    trainer = LensTrainer(net, tokenizer, space, PROMPTS, layers="1:2")
    result = trainer.run(short())
    changed = {n for n, p in net.state_dict().items() if not torch.equal(p, before[n])}
    assert changed and all(".1." in name for name in changed)
    assert changed <= set(result.weights)
    assert [p.requires_grad for p in net.parameters()] == flags
    trainer.restore()
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())
    trainer.load(result.weights)
    assert not torch.equal(net.state_dict()[min(changed)], before[min(changed)])


def test_runs_are_repeatable_and_start_from_the_original_weights(setting):
    net, tokenizer, space = setting
    trainer = LensTrainer(net, tokenizer, space, PROMPTS)
    first = trainer.run(short(), seed=5)
    trainer.run(short(), seed=6)
    again = trainer.run(short(), seed=5)
    assert first.log == again.log
    assert all(torch.equal(first.weights[n], again.weights[n]) for n in first.weights)


def test_low_memory_and_micro_batches_change_no_result(setting):
    net, tokenizer, space = setting
    whole = LensTrainer(net, tokenizer, space, PROMPTS).run(short())
    net.load_state_dict(tiny.model("llama").state_dict())
    trainer = LensTrainer(net, tokenizer, space, PROMPTS, low_memory=True)
    spilled = trainer.run(short())
    assert spilled.log == whole.log
    assert all(torch.equal(spilled.weights[n], w) for n, w in whole.weights.items())
    pieces = trainer.run(short(micro_batch_size=1, terms=(Separate(), Align())))
    at_once = trainer.run(short(terms=(Separate(), Align())))
    for name, weights in at_once.weights.items():
        torch.testing.assert_close(pieces.weights[name], weights, rtol=0, atol=2e-4)
    trainer.restore()
    fresh = tiny.model("llama").state_dict()
    assert all(torch.equal(p, fresh[n]) for n, p in net.state_dict().items())


@pytest.mark.parametrize("off", ["separate", "align", "retain"])
def test_a_weight_of_zero_removes_exactly_that_term(setting, off):
    net, tokenizer, space = setting
    terms = [Separate(), Align(), Retain()]
    kept = tuple(term for term in terms if term.kind != off)
    zeroed = tuple(t.model_copy(update={"weight": 0.0}) if t.kind == off else t for t in terms)
    trainer = LensTrainer(net, tokenizer, space, PROMPTS)
    without = trainer.run(short(terms=kept, steps=2))
    zero = trainer.run(short(terms=zeroed, steps=2))
    assert without.log == zero.log
    assert f"loss_{off}" not in zero.log[0]
    assert len([k for k in zero.log[0] if k.startswith("loss_")]) == 2


def test_losses_at_a_block_site_and_on_text(setting):
    net, tokenizer, space = setting
    terms = (Separate(site="block.1"), Retain(), Retain(rows="text", weight=0.5))
    trainer = LensTrainer(
        net,
        tokenizer,
        space,
        PROMPTS,
        sites=("block.1", "final"),
        texts={"es": ["hola que tal", "adios"]},
    )
    entry = trainer.run(short(terms=terms)).log[-1]
    assert entry["loss_separate@block.1"] > 0
    assert entry["loss_retain"] >= 0


def test_strength_scales_the_step_and_training_moves_along_it(setting):
    net, tokenizer, space = setting
    config = LensConfig(terms=(Separate(),), steps=30, batch_size=4, learning_rate=3e-3)
    trainer = LensTrainer(net, tokenizer, space, PROMPTS)
    log = trainer.run(config, strength={"es": 1.0, "id": 1.0, "sw": 2.0}).log
    assert log[-1]["loss_separate"] < 0.5 * log[0]["loss_separate"]


def test_random_geometry_keeps_rank_and_length(setting):
    _, _, space = setting
    config = short()
    true = geometries(space, ["final"], config)["final"]
    drawn = true.randomised(1)
    assert drawn.basis.shape == true.basis.shape
    torch.testing.assert_close(
        drawn.basis.T @ drawn.basis, torch.eye(drawn.basis.shape[1]), rtol=0, atol=1e-5
    )
    for lang in OTHERS:
        torch.testing.assert_close(drawn.step[lang].norm(), true.step[lang].norm())
    assert (drawn.basis.T @ true.basis).abs().max() < 0.9


# -- saving


def test_a_saved_run_is_an_ordinary_checkpoint(setting, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net, tokenizer, space = setting
    result = lens.train(net, tokenizer, space, PROMPTS, losses=short(), layers="-1:", steps=2)
    out = tmp_path / "trained"
    result.save(out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    for name, weights in result.weights.items():
        assert torch.equal(loaded.get_parameter(name), weights)
    assert AutoTokenizer.from_pretrained(out)("hola").input_ids == tokenizer("hola").input_ids
    facts = json.loads((out / "reproduce.json").read_text())
    assert facts["layers"] == [2] and facts["versions"]["torch"] == torch.__version__
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(InputError, match="exists already"):
        result.save(out)
    result.save(out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["trained"]


# -- bad input


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"spa_Latn": ["a"], "ind_Latn": ["b"]}, "pivot eng_Latn has no prompts"),
        ({"eng_Latn": ["a"]}, "besides the pivot"),
        ({**PROMPTS, "fra_Latn": PROMPTS["spa_Latn"]}, "the space has no fra_Latn"),
        ({**PROMPTS, "spa_Latn": ["a"]}, "not parallel, row counts are eng_Latn: 4, spa_Latn: 1"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(setting, prompts, message):
    net, tokenizer, space = setting
    with pytest.raises(InputError, match=message):
        LensTrainer(net, tokenizer, space, prompts)


def test_settings_that_do_not_fit_are_refused(setting):
    net, tokenizer, space = setting
    with pytest.raises(InputError, match="unknown losses 'push'; use one of lens, lens"):
        resolve("push")
    with pytest.raises(InputError, match="learning_rat"):
        resolve({"terms": [], "learning_rat": 1})
    with pytest.raises(InputError, match="another model"):
        LensTrainer(tiny.model("llama", seed=1), tokenizer, space, PROMPTS)
    with pytest.raises(InputError, match="unknown layer 9"):
        LensTrainer(net, tokenizer, space, PROMPTS, layers="9")
    trainer = LensTrainer(net, tokenizer, space, PROMPTS)
    with pytest.raises(InputError, match=r"losses read block\.2, but the cache holds final"):
        trainer.run(short(terms=(Separate(site="block.2"),)))
    with pytest.raises(InputError, match="no strength for ind_Latn, swh_Latn"):
        trainer.run(short(), strength={"es": 1.0})
    with pytest.raises(InputError, match="needs texts"):
        trainer.run(short(terms=(Retain(rows="text"),)))


def test_divergence_names_the_term_and_puts_the_weights_back(setting):
    net, tokenizer, space = setting
    before = copy.deepcopy(net.state_dict())
    trainer = LensTrainer(net, tokenizer, space, PROMPTS)
    with pytest.raises(InputError, match="weights were put back"):
        trainer.run(short(steps=20, learning_rate=1e30, max_grad_norm=1e30))
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())


# -- choice of strength


def test_strengths_are_chosen_within_the_drift_bound():
    quality = {("es", 0.5): 0.2, ("es", 1.0): 0.6, ("es", 2.0): 0.9}

    def trial(strength):
        drift = {0.5: 0.001, 1.0: 0.01, 2.0: 0.5}[strength]
        return [
            StrengthTrial("es", strength, quality["es", strength], 1.0, drift),
            StrengthTrial("id", strength, 0.4, 0.5 + strength / 10, drift),
        ]

    choice = choose_strengths(trial, [0.5, 1.0, 2.0], max_drift=0.02)
    assert choice.strength == {"es": 1.0, "id": 1.0}
    assert len(choice.trials) == 6
    assert choose_strengths(trial, [2.0], max_drift=0.02).strength == {"es": 2.0, "id": 2.0}
    with pytest.raises(InputError, match="grid of strengths is empty"):
        choose_strengths(trial, [])


def test_prompts_longer_than_the_model_are_refused(setting):
    net, tokenizer, space = setting
    long = {lang: ["word " * 60, *rows[1:]] for lang, rows in PROMPTS.items()}
    with pytest.raises(InputError, match="longer than the 128 positions"):
        LensTrainer(net, tokenizer, space, long)
