"""Less memory, the same training: parts of a step, activations computed again, 16 bits."""

import json
import math

import pytest
import torch

from lens.training import Align, LanguageModel, Norm, PivotKL, Retain, Separate
from lens.training.objective import BatchObjective
from lens.training.optimizer import DivergedError, LossScale, Optimization, draws
from lens.training.run import RunOptions
from tests.helpers.runs import config, geometry, make, same


def test_parts_of_a_step_add_up_to_it_for_every_term():
    answers = {
        "spa_Latn": ["rojo", "una persona", None, "hoy por la tarde"],
        "swh_Latn": [None, "mimi", "hapa", None],
    }
    texts = {"spa_Latn": ["hola que tal", "adios", "si"], "swh_Latn": ["jambo", "karibu sana"]}
    trainer = make(texts=texts, answers=answers, references="all")
    for term in (
        Separate(), Separate(positions=3), Align(), Retain(), Retain(positions=4),
        Retain(form="token_mean"), Retain(rows="text"), PivotKL(), PivotKL(positions=2),
        LanguageModel(languages={"spa_Latn": 0.5}), LanguageModel(rows="text"),
        Norm(positions="all"), Norm(positions="mean", languages={"swh_Latn": 0.0}),
    ):  # fmt: skip
        settings = config(terms=(term,), shares_every=0)
        strength = dict.fromkeys(trainer.data.languages, 1.5)
        step = BatchObjective(trainer.data, settings, {"final": geometry(trainer)}, strength)
        with torch.no_grad():
            for parameter in trainer.parameters.values():
                parameter.mul_(1.01)
            whole = float(step([0, 1, 2, 3])[0])
            parts = [([0], 0.25), ([1, 2, 3], 0.75)]
            together = sum(share * float(step(p, [0, 1, 2, 3])[0]) for p, share in parts)
        assert together == pytest.approx(whole, rel=2e-5), term
        assert whole > 0, term


def test_activations_computed_again_change_nothing_and_take_less():
    kept = {}

    def measured(running):
        held = set()

        def pack(tensor):
            held.add((tensor.data_ptr(), tensor.numel() * tensor.element_size()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = make().run(config(steps=1), running=running)
        kept[running.gradient_checkpointing] = sum(size for _, size in held)
        return result

    plain, again = measured(RunOptions()), measured(RunOptions(gradient_checkpointing=True))
    assert same(plain, again)
    assert kept[True] < 0.7 * kept[False]
    block = make().parts.blocks[-1]
    assert "forward" not in vars(block)


def test_small_steps_are_not_lost_in_16_bits():
    settings = config(steps=60, learning_rate=2e-5, warmup_ratio=0.0)
    exact = make().run(settings)
    short = make(dtype=torch.bfloat16).run(settings)
    moved = close = 0
    for name, weights in short.weights.items():
        assert weights.dtype == torch.bfloat16
        start = short.original[name].float()
        far = (exact.weights[name] - exact.original[name]).abs() > 6e-4
        moved += int(far.sum())
        close += int(((weights.float() - start)[far] != 0).sum())
    # each single step of 2e-5 is below the spacing of bfloat16 numbers of most weights
    assert moved > 100 and close > 0.3 * moved


def test_float16_scales_the_loss_and_leaves_overflowing_steps_out():
    weights = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))

    def loss_of(_part, _whole):
        loss = (weights.float() * 1e-3).sum()
        return loss, {"loss": float(loss.detach())}

    settings = config(steps=20, learning_rate=1e-2, warmup_ratio=0.0)
    optimization = Optimization([weights], settings, order=draws(4, 2, seed=0), dtype=torch.float16)
    optimization.scale = LossScale(2.0**30)
    log = [optimization.step(loss_of) for _ in range(20)]
    left_out = [e["step"] for e in log if "left_out" in e]
    # 1e-3 times the scale is above 65504, the largest float16, until it is 2^25
    assert left_out == [0, 1, 2, 3, 4] and log[5]["loss_scale"] == 2.0**25
    assert "grad_norm" not in log[0] and log[5]["grad_norm"] == pytest.approx(
        1e-3 * math.sqrt(3), rel=1e-3
    )
    assert weights[0] < 0.95
    assert json.loads(json.dumps(log), parse_constant=None) == log

    def hopeless(_part, _whole):
        loss = (weights.float() * math.inf).sum()
        return loss, {"loss": 1.0}

    with pytest.raises(DivergedError, match="gradient is not finite"):
        for _ in range(20):
            Optimization([weights], settings, order=draws(4, 2, seed=0)).step(hopeless)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_training_follows_float32(dtype):
    settings = config(steps=10, batch_size=4)
    exact, short = make().run(settings), make(dtype=dtype).run(settings)
    assert short.log[-1]["loss"] < 0.8 * short.log[0]["loss"]
    assert short.log[-1]["loss"] == pytest.approx(exact.log[-1]["loss"], rel=0.15)
    assert ("loss_scale" in short.log[0]) == (dtype == torch.float16)
