"""Models packed by bitsandbytes in 8 and 4 bit: frozen below, the trained band unpacked."""

import copy

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

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    net = tiny.model("llama", hidden_size=64, intermediate_size=128)
    net.save_pretrained(path)
    return path


def packed(folder, bits):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    chosen = {
        8: {"load_in_8bit": True},
        4: {
            "load_in_4bit": True,
            "bnb_4bit_compute_dtype": torch.float32,
            "bnb_4bit_quant_type": "nf4",
        },
    }[bits]
    config = BitsAndBytesConfig(**chosen)
    net = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.float32
    ).eval()
    if bits == 4:  # first: a layer that is run before may have taken a layout for inference
        locate(net)
    return net


@torch.no_grad()
def logits(net):
    return net(IDS).logits.float()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_band_is_unpacked_and_the_rest_is_not(folder, bits, tmp_path):
    from peft.utils.integrations import dequantize_module_weight
    from transformers import AutoModelForCausalLM

    net = packed(folder, bits)
    theirs = dequantize_module_weight(net.model.layers[2].mlp.up_proj).detach()
    blocks = locate(net).blocks
    trainer = LensTrainer(net, tiny.tokenizer(), space(64), prompts(), layers="2:")
    assert is_quantized(blocks[1].mlp.up_proj)
    mine = blocks[2].mlp.up_proj
    assert type(mine) is nn.Linear and mine.weight.dtype == torch.float32
    # 8-bit layers answer in float16
    tolerance = 1e-3 if bits == 8 else 0
    torch.testing.assert_close(mine.weight, theirs.float(), rtol=tolerance, atol=tolerance)
    result = trainer.run(config_of("lens"))
    assert all(torch.is_floating_point(weights) for weights in result.weights.values())
    trained = logits(net)
    trainer.restore()
    assert (trained - logits(net)).abs().max() > 1e-3
    trainer.load(result.weights)
    # what is written is loaded as it was: the band in float, the rest packed
    net.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu", dtype=torch.float32)
    again = locate(back).blocks
    assert type(again[2].mlp.up_proj) is nn.Linear and is_quantized(again[1].mlp.up_proj)
    assert torch.equal(again[2].mlp.up_proj.weight, mine.weight)
    torch.testing.assert_close(logits(back), trained, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layers", ["2:", "0,2"])
def test_training_is_the_plain_loop_over_the_packed_model(folder, bits, layers):
    net = packed(folder, bits)
    trainer = in_one_batch(LensTrainer(net, None, space(64), prompts(), layers=layers))
    other = copy.deepcopy(net)
    config = config_of("lens")
    result = trainer.run(config, seed=3)
    plain = PlainLoop(other, list(result.weights), prompts(), config)
    losses = plain.run(3)
    # 8 bit: which activations count as outliers is decided over the whole batch, equal in both
    assert [entry["loss"] for entry in result.log] == losses
    for name, weights in plain.trained.items():
        assert torch.equal(result.weights[name], weights.detach()), name


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_packed_layers(folder, bits, dora, tmp_path):
    from peft import PeftModel

    net = packed(folder, bits)
    before = logits(net)
    lora = Lora(4, dora=dora)
    trainer = LensTrainer(net, tiny.tokenizer(), space(64), prompts(), lora=lora, low_memory=True)
    result = trainer.run(config_of("lens"))
    wrapped = locate(net).blocks[2].mlp.up_proj.base_layer
    assert is_quantized(wrapped) != dora  # DoRA reads the weight itself in every step
    assert is_quantized(locate(net).blocks[0].mlp.up_proj)
    assert {weights.dtype for weights in result.weights.values()} == {torch.float32}
    trained = logits(net)
    assert (trained - before).abs().max() > 1e-3
    result.save(tmp_path / "out")
    back = PeftModel.from_pretrained(packed(folder, bits), tmp_path / "out").eval()
    # 8-bit layers round what they are given; unpacked for DoRA they do not
    close = 0.1 if dora and bits == 8 else 1e-5
    torch.testing.assert_close(logits(back), trained, rtol=0, atol=close)
    trainer.release()
    assert (logits(net) - before).abs().max() <= close


@pytest.mark.parametrize("bits", [8, 4])
def test_cached_states_of_a_packed_model_are_its_own(folder, bits, tmp_path):
    options = {"layers": "2:", "cache": tmp_path}
    first = LensTrainer(packed(folder, bits), None, space(64), prompts(), **options)
    again = LensTrainer(packed(folder, bits), None, space(64), prompts(), **options)
    plain = LensTrainer(tiny.model("llama", hidden_size=64, intermediate_size=128), None,
                        space(64), prompts(), **options)  # fmt: skip
    assert tuple(t.data.cache.reused for t in (first, again, plain)) == (0, 4, 0)
