"""Models packed by GPTQModel and Quanto themselves, as a frozen prefix, on a CPU."""

import importlib.util
import random

import pytest
import torch
from torch import nn

from lens.models.architecture import locate
from lens.models.quantization import is_quantized
from lens.training.config import Lora
from lens.training.trainer import LensTrainer
from tests.helpers import tiny
from tests.helpers.plain_loop import PlainLoop, space
from tests.helpers.plain_loop import rows as prompts
from tests.unit.training.test_plain_loop import config_of, in_one_batch

# Deprecations inside these libraries are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH = 64
LIBRARY = {
    "gptq": "gptqmodel",
    "quanto": "optimum.quanto",
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module", params=LIBRARY)
def kind(request):
    if not installed(LIBRARY[request.param]):
        pytest.skip(f"{LIBRARY[request.param]} is not installed")
    before = torch._dynamo.config.disable
    torch._dynamo.config.disable = True  # compiling takes minutes and changes no result
    yield request.param
    torch._dynamo.config.disable = before


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """A checkpoint: packed for the libraries that pack by calibration, plain for the others."""
    path = tmp_path_factory.mktemp("model")
    net = tiny.model("llama", hidden_size=WIDTH, intermediate_size=128)
    net.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    if kind == "gptq":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GPTQMODEL_CPU_WORKERS", "2")
            return calibrated(path, tmp_path_factory.mktemp("packed"))
    return path


def calibrated(path, out):
    from gptqmodel import GPTQModel, QuantizeConfig

    how = QuantizeConfig(bits=4, group_size=32, desc_act=False)
    net = GPTQModel.load(str(path), how, device="cpu")
    rng = random.Random(0)
    rows = [torch.tensor([[rng.randrange(5, 280) for _ in range(20)]]) for _ in range(16)]
    net.quantize([{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in rows])
    net.save(str(out))
    return out


def packed(kind, folder):
    from transformers import (
        AutoModelForCausalLM,
        GPTQConfig,
        QuantoConfig,
    )

    config = {
        "gptq": lambda: GPTQConfig(bits=4, backend="torch"),
        "quanto": lambda: QuantoConfig(weights="int8"),
    }[kind]()
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.float32
    ).eval()


@torch.no_grad()
def logits(net):
    return net(IDS).logits.float()


def test_the_band_is_unpacked_and_the_rest_is_not(kind, folder):
    net = packed(kind, folder)
    before = logits(net)
    blocks = locate(net).blocks
    assert is_quantized(blocks[2].mlp.up_proj)
    trainer = LensTrainer(net, tiny.tokenizer(), space(WIDTH), prompts(), layers="2:")
    assert is_quantized(blocks[1].mlp.up_proj)
    assert type(blocks[2].mlp.up_proj) is nn.Linear
    torch.testing.assert_close(logits(net), before, rtol=1e-3, atol=1e-3)
    result = trainer.run(config_of("lens"))
    assert all(torch.is_floating_point(weights) for weights in result.weights.values())
    assert (logits(net) - before).abs().max() > 5e-3
    trainer.restore()
    torch.testing.assert_close(logits(net), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", ["2:", "0,2"])
def test_training_is_the_plain_loop_over_the_packed_model(kind, folder, layers):
    def loaded():  # some packed weights cannot be copied
        return LensTrainer(packed(kind, folder), None, space(WIDTH), prompts(), layers=layers)

    config = config_of("lens")
    result = in_one_batch(loaded()).run(config, seed=3)
    model, frozen = loaded().model, loaded().model
    plain = PlainLoop(model, list(result.weights), prompts(), config, frozen=frozen)
    losses = plain.run(3)
    assert [entry["loss"] for entry in result.log] == losses
    for name, weights in plain.trained.items():
        assert torch.equal(result.weights[name], weights.detach()), name


@pytest.mark.parametrize("low_memory", [False, True])
def test_adapters_on_packed_layers(kind, folder, low_memory):
    net = packed(kind, folder)
    before = logits(net)
    trainer = LensTrainer(
        net, tiny.tokenizer(), space(WIDTH), prompts(), lora=Lora(4), low_memory=low_memory
    )
    result = trainer.run(config_of("lens"))
    assert is_quantized(locate(net).blocks[0].mlp.up_proj)
    assert {weights.dtype for weights in result.weights.values()} == {torch.float32}
    assert (logits(net) - before).abs().max() > 1e-3
    trainer.release()
    torch.testing.assert_close(logits(net), before, rtol=0, atol=1e-5)


def test_cached_states_of_a_packed_model_are_its_own(kind, folder, tmp_path):
    options = {"layers": "2:", "cache": tmp_path}
    first = LensTrainer(packed(kind, folder), None, space(WIDTH), prompts(), **options)
    again = LensTrainer(packed(kind, folder), None, space(WIDTH), prompts(), **options)
    assert (first.data.cache.reused, again.data.cache.reused) == (0, 4)
