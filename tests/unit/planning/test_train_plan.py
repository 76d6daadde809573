"""Plans: counts against real models, the memory of phases, work, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lens.errors import InputError
from lens.models.architecture import locate
from lens.models.checkpoint import read_checkpoint
from lens.planning.checks import TrainFindings
from lens.planning.config import TrainPlanSettings
from lens.planning.model import (
    adapter_count,
    arranged,
    count,
    make_meta_model,
    structure_of,
)
from lens.planning.plan import plan_training
from lens.planning.resources import Rates, StepBatch, TrainSizing, forward_cost, step_cost
from lens.training.config import Lora, resolve
from lens.training.data import memory_for_states
from lens.training.parameters import Trainable
from tests.helpers import tiny
from tests.helpers.observed import observed

PROMPTS = {"en": [[3] * 9] * 5, "es": [[3] * 12] * 5, "sw": [[3] * 7] * 5}
RATES = Rates(1e9, 5e8, 1e8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a family's checkpoint with a tokenizer, made once."""
    made: dict[tuple, Path] = {}

    def folder(family="llama", *, dtype=torch.float32, shard="5GB") -> Path:
        key = (family, dtype, shard)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            tiny.model(family).to(dtype).save_pretrained(made[key], max_shard_size=shard)
            tiny.tokenizer().save_pretrained(made[key])
        return made[key]

    return folder


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_counts_from_headers_and_from_the_config_are_those_of_the_model(saved, tmp_path, family):
    model = tiny.model(family)
    parts = locate(model)
    every = sum(p.numel() for p in model.parameters())
    block = tuple(sum(p.numel() for p in b.parameters()) for b in parts.blocks)
    held = read_checkpoint(saved(family))
    alone = tmp_path / "anything.json"
    alone.write_text((saved(family) / "config.json").read_text())
    promised = read_checkpoint(alone)
    for found in (structure_of(held), make_meta_model(promised, dtype="F32").structure(promised)):
        assert (found.parameters, found.of_block) == (every, block)
        assert (found.width, found.vocabulary) == (32, tiny.VOCABULARY)
    assert held.problems == [] and held.dtype == "F32"


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "mixtral"])
@pytest.mark.parametrize("modules", ["full", "attention", "mlp", "norm", "bias", "attention,norm"])
def test_what_is_trained_is_what_training_takes(saved, family, modules):
    model = tiny.model(family)
    structure = structure_of(read_checkpoint(saved(family)))
    try:
        real = Trainable(model, locate(model), (1, 2), modules=modules)
    except InputError:
        with pytest.raises(InputError, match="selects nothing"):
            structure.chosen((1, 2), modules)
        return
    assert count(structure.chosen((1, 2), modules)) * 4 == real.nbytes


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "mixtral"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_counted_as_they_are_made(saved, family, dora):
    model = tiny.model(family)
    real = Trainable(model, locate(model), (1, 2), lora=Lora(4, dora=dora))
    found = plan_training(
        saved(family), PROMPTS, lora=Lora(4, dora=dora), rates=None, low_memory=True
    )
    assert found.errors == () and found.model is not None
    assert found.model.trained * 4 == real.nbytes


def test_experts_take_part(saved):
    found = plan_training(saved("mixtral"), PROMPTS, rates=None)
    assert found.errors == ()
    assert found.peak > 0 and all(cost.flops > 0 for cost in found.costs)
    quick = plan_training(saved("mixtral"), PROMPTS, rates=None, quick=True)
    assert quick.model == found.model


# ---------------------------------------------------------------- work and memory


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "olmo2"])
def test_formulas_are_close_to_the_real_model(family):
    """FLOPs and memory of a width at which activations outweigh what is counted per row."""
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_key_value_heads": 2}
    model = tiny.model(family, num_attention_heads=4, **sizes)
    structure = arranged({n: tuple(p.shape) for n, p in model.named_parameters()}, depth=3)
    ids = torch.zeros(16, 64, dtype=torch.int64)
    with torch.no_grad(), observed() as frozen:
        model.base_model(input_ids=ids, use_cache=False)
    model.requires_grad_(False)
    for block in locate(model).blocks[1:]:
        block.requires_grad_(True)
    with observed() as real:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        states.square().mean().backward()
    forward = forward_cost(structure, rows=16, tokens=64, itemsize=4)
    batch = StepBatch(prompts=16, languages=1, tokens=64, answer_tokens=64)
    step = step_cost(structure, 1, resolve("lens"), batch, itemsize=4)
    assert forward.flops == pytest.approx(frozen.flops, rel=0.1)
    assert forward.nbytes == pytest.approx(frozen.peak, rel=0.3)
    assert step.flops == pytest.approx(real.flops - frozen.flops / 3, rel=0.1)  # from block 1 on
    assert step.nbytes == pytest.approx(real.peak, rel=0.3)


def training_memory(folder, **given):
    given = {"losses": "lens"} | given
    plan = plan_training(folder, PROMPTS, rates=None, **given)
    assert plan.errors == ()
    return {phase.name: phase.parts for phase in plan.memory}


def test_each_part_follows_from_the_settings(saved):
    folder, short = saved(), saved(dtype=torch.bfloat16)
    block = 4 * structure_of(read_checkpoint(folder)).of_block[-1]
    kept = training_memory(folder)["train"]
    assert kept["optimizer"] == 4 * block and kept["gradients"] == 2 * block
    assert kept["original of the trained weights"] == 2 * block
    low = training_memory(folder, low_memory=True)["train"]
    assert "original of the trained weights" not in low and low["weights"] < kept["weights"]
    assert training_memory(short)["train"]["optimizer"] == 6 * block  # float32 masters too
    assert training_memory(short, dtype="float32")["load"]["pages of the files"] > 0
    one = training_memory(folder, layers="-1:")["train"]
    assert one["gradients"] == block and one["activations"] < kept["activations"]
    adapters = training_memory(folder, lora=2)["train"]
    assert adapters["gradients"] < kept["gradients"] and adapters["adapters"] > 0
    best = training_memory(folder, validation=PROMPTS)["train"]
    assert best["best weights so far"] == 2 * block
    few = resolve("lens").model_copy(update={"micro_batch_size": 1})
    assert training_memory(folder, losses=few)["train"]["activations"] < kept["activations"]
    words = training_memory(folder, losses="self-translation", low_memory=True)["train"]
    assert words["activations"] > low["activations"] and words["weights"] > low["weights"]


def test_activations_of_recomputed_blocks_are_fewer(saved):
    given = {"layers": "all"}
    plain = training_memory(saved(), **given)["train"]["activations"]
    assert training_memory(saved(), gradient_checkpointing=True, **given)["train"][
        "activations"
    ] < plain  # fmt: skip


def sizing_of(folder, **options):
    found = TrainFindings(read_checkpoint(folder), TrainPlanSettings(quick=True, **options))
    found.check(PROMPTS)
    return TrainSizing(found, found.structure, found.lengths)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_limit_is_that_of_training(saved, family, low_memory):
    model = tiny.model(family)
    parts = locate(model)
    trainable = Trainable(model, parts, (1, 2))
    unused = (parts.embedding, parts.blocks[0], parts.lm_head)
    real = memory_for_states(
        model, trained_bytes=trainable.nbytes, idle=unused if low_memory else (),
        max_memory="10MB",
    )  # fmt: skip
    sizing = sizing_of(saved(family), max_memory="10MB", low_memory=low_memory)
    assert sizing.limit() == real


def test_states_are_counted_as_they_are_cached(saved):
    tokens, pivot, rows = 5 * (9 + 12 + 7), 5 * 9, 15
    states = (tokens + pivot + (rows - 5)) * 32 * 4
    assert sizing_of(saved()).states() == states + tokens * 8


def test_time_is_work_over_rates(saved):
    plan = plan_training(saved(), PROMPTS, rates=RATES)
    cache, steps = plan.costs
    assert cache.seconds == pytest.approx(cache.flops / 1e9)
    assert steps.seconds == pytest.approx(steps.flops / 5e8 + steps.traffic / 1e8)
    again = plan_training(saved(), PROMPTS, rates=RATES)
    assert again.costs == plan.costs and again.memory == plan.memory
    assert plan_training(saved(), PROMPTS, rates=None).time is None
    with pytest.raises(InputError, match="rate training is 0"):
        Rates(1.0, 0.0, 1.0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "bloom", "gpt2"])
def test_speed_is_measured_unless_it_is_given(saved, family):
    plan = plan_training(saved(family), PROMPTS)
    assert plan.errors == () and plan.notes == ()
    assert plan.rates is not None and plan.rates.source == "measured"
    assert plan.time is not None and plan.time > 0


def test_disk_is_what_will_be_written(saved, tmp_path):
    folder = saved(shard="40KB")
    given = {"rates": None, "out": tmp_path / "out"}
    plan = plan_training(folder, PROMPTS, layers="-1:", cache=tmp_path / "c", **given)
    uses = {use.what: use for use in plan.disk}
    checkpoint = read_checkpoint(folder)
    last = {t.path.name for n, t in checkpoint.tensors.items() if ".2." in n}
    assert uses["result"].nbytes == sum(checkpoint.files[name] for name in last)
    assert uses["result"].nbytes < sum(checkpoint.files.values())
    assert uses["cached states"].where == str(tmp_path / "c") and uses["cached states"].stays
    assert "cached states" not in plan.memory[2].parts
    lora = {u.what: u for u in plan_training(folder, PROMPTS, lora=2, **given).disk}
    structure = structure_of(checkpoint)
    assert lora["result"].nbytes == 4 * adapter_count(structure.chosen((1, 2), "full"), Lora(2))
    steps = {u.what: u for u in plan_training(folder, PROMPTS, checkpoint_every=5, **given).disk}
    band = count(structure.chosen((1, 2), "full"))
    assert steps["checkpoints"].nbytes == 3 * 12 * band


def test_a_plan_is_plain_data(saved):
    plan = plan_training(saved(), PROMPTS, rates=RATES)
    content = json.loads(json.dumps(plan.to_dict()))
    assert content["schema"] == "lens.plan/1" and content["ok"] is True
    assert content["peak_bytes"] == max(phase["total"] for phase in content["memory"])
    assert {"model", "problems", "memory", "disk", "costs", "rates", "rows"} <= content.keys()
    assert content["seconds_estimated"] == pytest.approx(plan.time)
