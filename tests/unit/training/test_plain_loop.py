"""Training from the cache gives the weights of the plain loop over two whole models."""

import copy
import re

import pytest
import torch

from lens.models.architecture import locate
from lens.training.config import PRESETS, Lora
from lens.training.parameters import attach
from lens.training.trainer import LensTrainer
from tests.helpers import tiny
from tests.helpers.plain_loop import PlainLoop, rows, space

STEPS = {"steps": 4, "batch_size": 4}


def config_of(preset, **changes):
    return PRESETS[preset].model_copy(update={**STEPS, **changes})


def prompts_of(family):
    # Experts get tokens sorted by expert, padding too: equal shapes need equal lengths.
    return rows(equal=family == "mixtral")


def in_one_batch(trainer):
    """Cache all rows in one forward pass, which then has the shapes of a training step."""
    ids = [row.input_ids.tolist() for row in trainer.data.cache.rows]
    trainer.data.cache.rows.clear()
    trainer.data.cache.add(ids, keep="all", batch_size=len(ids))
    return trainer


def both_ways(net, prompts, config, *, exact, written_out=False, **options):
    """Train from the cache and by the plain loop; give result, plain loop and its losses."""
    other, frozen = copy.deepcopy(net), copy.deepcopy(net)
    trainer = LensTrainer(net, None, space(), prompts, **options)
    if exact:
        in_one_batch(trainer)
    result = trainer.run(config, seed=3)
    if options.get("lora"):
        wrapped = {n for n, m in net.named_modules() if hasattr(m, "base_layer")}
        attach(other, [n for n, _ in other.named_modules() if n in wrapped], options["lora"])
    plain = PlainLoop(
        other, list(result.weights), prompts, config, frozen=frozen, written_out=written_out
    )
    losses = plain.run(3)
    moved = [
        (weights - trainer.original[name]).abs().max() for name, weights in result.weights.items()
    ]
    assert max(moved) > 1e-4
    return result, plain, losses


def compare(net, prompts, config, **options):
    """Equal bits of every weight and of every step's loss, and nothing else moved."""
    result, plain, losses = both_ways(net, prompts, config, exact=True, **options)
    for name, weights in plain.trained.items():
        assert torch.equal(result.weights[name], weights.detach()), name
    assert [entry["loss"] for entry in result.log] == losses
    before = dict(plain.frozen.named_parameters())
    for name, parameter in net.named_parameters():
        original = before.get(name.replace(".base_layer.", "."))
        if name not in result.weights and original is not None:
            assert torch.equal(parameter, original), name
    return result


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("preset", ["lens", "lens-paper"])
def test_full_blocks_bit_for_bit(family, preset):
    compare(tiny.model(family), prompts_of(family), config_of(preset))


def close(result, plain, losses):
    """Equal to rounding: the losses of all steps, and the weights but for a few."""
    apart = torch.cat(
        [(result.weights[n] - w.detach()).abs().flatten() for n, w in plain.trained.items()]
    )
    # Softmax does not see the bias of keys: its gradient is rounding alone, which AdamW makes as
    # large as any other. Such weights are few, and their sum of steps bounds them.
    assert (apart > 1e-5).float().mean() < 0.005
    assert apart.max() < 2 * plain.config.steps * plain.config.learning_rate
    assert [entry["loss"] for entry in result.log] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_full_blocks_to_rounding_when_the_cache_was_made_in_other_batches(family):
    options = {"exact": False, "cache_batch": 3}
    close(*both_ways(tiny.model(family), rows(), config_of("lens"), **options))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3", "opt"])
@pytest.mark.parametrize("preset", ["lens", "lens-paper"])
def test_full_blocks_to_rounding_with_losses_written_out_as_formulas(family, preset):
    options = {"exact": False, "written_out": True}
    close(*both_ways(tiny.model(family), rows(), config_of(preset), **options))


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_bit_for_bit(family, dora):
    lora = Lora(4, dora=dora)
    result = compare(tiny.model(family), prompts_of(family), config_of("lens-paper"), lora=lora)
    assert all("lora_" in name for name in result.weights)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "gpt2", "opt", "olmo2"])
@pytest.mark.parametrize("options", [{}, {"lora": Lora(2)}], ids=["full", "lora"])
def test_a_set_of_bands_bit_for_bit(family, options):
    net = tiny.model(family, num_hidden_layers=6)
    result = compare(net, rows(), config_of("lens"), layers="1:3,-1:", **options)
    assert result.layers == (1, 2, 5)
    blocks = {
        int(name.split(f"{locate(net).blocks_name}.")[1].split(".")[0]) for name in result.weights
    }
    assert blocks == {1, 2, 5}


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "opt", "bloom", "gpt2", "falcon"])
def test_biases_alone_bit_for_bit(family):
    result = compare(tiny.model(family), rows(), config_of("lens"), modules="bias")
    assert all(name.endswith("bias") for name in result.weights)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("modules", ["attention", "mlp", "norm"])
def test_parts_of_blocks_bit_for_bit(family, modules):
    result = compare(tiny.model(family), prompts_of(family), config_of("lens"), modules=modules)
    names = {"attention": "attn|attention", "mlp": r"mlp|\.fc\d", "norm": "norm|ln_"}[modules]
    assert all(re.search(names, name) for name in result.weights)
