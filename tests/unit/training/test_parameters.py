"""What is trained: parts of blocks found by what they do, adapters, packed weights."""

import copy
import importlib.util
import json

import pytest
import torch
from torch import nn

from lens.errors import InputError, MissingExtraError
from lens.models.architecture import insides, locate
from lens.models.quantization import is_quantized, unpack
from lens.training.config import Lora
from lens.training.parameters import Trainable
from lens.training.trainer import LensTrainer
from tests.helpers import tiny
from tests.helpers.plain_loop import rows as prompts
from tests.helpers.plain_loop import space
from tests.unit.training.test_plain_loop import config_of

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@torch.no_grad()
def logits(net):
    return net(IDS).logits


def trainable(net, layers=(1, 2), **options):
    return Trainable(net, locate(net), layers, **options)


# -- parts


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_attention_is_told_from_the_rest_in_every_block(family):
    net = tiny.model(family)
    before = copy.deepcopy(net.state_dict())
    names = {"opt": ("fc1", "fc2")}.get(family, ("mlp",))
    for index in range(3):
        found = insides(net, locate(net), index)
        assert len(found.attention) == 1 and "att" in found.attention[0]
        assert found.mlp == names
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())


def test_names_and_kinds_add_up():
    net = tiny.model("llama")
    several = set(trainable(net, modules="attention, norm,mlp.down_proj").activate())
    apart = [set(trainable(net, modules=t).activate()) for t in ("attention", "norm")]
    assert several == apart[0] | apart[1] | {
        f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2)
    }
    assert set(trainable(net).activate()) == {
        n for n, _ in net.named_parameters() if n.startswith(("model.layers.1", "model.layers.2"))
    }


@pytest.mark.parametrize(
    ("family", "modules", "words"),
    [
        ("llama", "attn", r"'attn': no such name in model\.layers\.1.*self_attn\.q_proj"),
        ("llama", "bias", r"'bias': no parameter in model\.layers\.1 \(LlamaDecoderLayer\)"),
        ("llama", " , ", "names nothing; expected one of full, attention"),
        ("gpt2", "q_proj", r"use one of full, attention, mlp, bias, norm.*attn\.c_attn"),
    ],
)
def test_what_selects_nothing_is_refused_with_the_candidates(family, modules, words):
    with pytest.raises(InputError, match=words):
        trainable(tiny.model(family), modules=modules)


class Unsplit(nn.Module):
    """A block whose attention and feed-forward part are one module."""

    def __init__(self, block):
        super().__init__()
        self.inner = block

    def forward(self, hidden_states, *args, **kwargs):
        return self.inner(hidden_states, *args, **kwargs)


def test_a_block_that_cannot_be_taken_apart_says_so():
    net = tiny.model("llama")
    net.model.layers = nn.ModuleList(Unsplit(block) for block in net.model.layers)
    assert len(trainable(net, modules="attention").activate()) == 18  # inner mixes tokens
    with pytest.raises(InputError, match=r"no part that works as mlp.*inner\.mlp\.up_proj"):
        trainable(net, modules="mlp")
    assert len(trainable(net, modules="inner.mlp").activate()) == 6


@pytest.mark.parametrize("layers", ["3", "-4:", "1:9", "-1:-2"])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(InputError, match="3 blocks"):
        LensTrainer(tiny.model("llama"), None, space(), prompts(), layers=layers)


# -- adapters


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("dora", [False, True])
def test_a_saved_adapter_goes_onto_the_original_model(family, dora, tmp_path):
    from peft import PeftModel

    net, tokenizer = tiny.model(family), tiny.tokenizer()
    original = copy.deepcopy(net)
    flags = [p.requires_grad for p in net.parameters()]
    trainer = LensTrainer(net, tokenizer, space(), prompts(), lora=Lora(4, dora=dora))
    assert [p.requires_grad for n, p in net.named_parameters() if "lora_" not in n] == flags
    start = logits(original)
    torch.testing.assert_close(logits(net), start, rtol=0, atol=1e-5 if dora else 0)
    result = trainer.run(config_of("lens"))
    trained = logits(net)
    result.save(tmp_path / "out")
    loaded = PeftModel.from_pretrained(copy.deepcopy(original), tmp_path / "out").eval()
    assert torch.equal(logits(loaded), trained)
    assert (trained - start).abs().max() > 1e-3
    # a folder with an adapter, not with a model
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "reproduce.json"} <= names
    assert not any(name.startswith("model") for name in names)
    facts = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert facts["trained"]["lora"] == {"rank": 4, "alpha": 8, "dora": dora}
    trainer.release()
    assert torch.equal(logits(net), start)
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in original.named_parameters()]
    assert [p.requires_grad for p in net.parameters()] == flags


def test_adapters_sit_on_the_wanted_linear_layers_alone():
    net = tiny.model("llama")
    chosen = trainable(net, modules="attention", lora=Lora(3, alpha=5))
    expected = chosen.nbytes
    found = chosen.activate()
    assert len(found) == 2 * 4 * 2 and all(".self_attn." in name for name in found)
    assert sum(p.numel() * p.element_size() for p in found.values()) == expected
    layer = net.model.layers[1].self_attn.q_proj
    assert layer.scaling["default"] == 5 / 3
    assert not hasattr(net.model.layers[0].self_attn.q_proj, "base_layer")
    again = trainable(tiny.model("llama"), modules="attention", lora=Lora(3))
    torch.manual_seed(99)  # initial weights come from a seed of their own
    assert all(torch.equal(p, found[n]) for n, p in again.activate().items())


def test_adapters_of_16_bit_models_are_trained_in_32_bit():
    net = tiny.model("llama").bfloat16()
    trainer = LensTrainer(net, None, space(), prompts(), lora=2)
    result = trainer.run(config_of("lens"))
    assert {w.dtype for w in result.weights.values()} == {torch.float32}
    assert trainer.data.cache.rows[0].entry.dtype == torch.bfloat16


def test_adapters_that_cannot_be_are_refused(monkeypatch):
    net = tiny.model("llama")
    with pytest.raises(InputError, match="adapters go on linear layers, and modules='norm'"):
        trainable(net, modules="norm", lora=4)
    with pytest.raises(InputError, match=r"'mlp': no linear layer in model\.layers\.1"):
        trainable(tiny.model("mixtral"), modules="mlp", lora=4)  # experts are stacked, not linear
    for rank in (0, -1, 1.5):
        with pytest.raises(InputError, match="Lora: rank: got"):
            Lora(rank)
    trainer = LensTrainer(net, None, space(), prompts(), lora=2)
    with pytest.raises(InputError, match="carries adapters already"):
        LensTrainer(net, None, space(), prompts(), lora=2)
    trainer.release()
    LensTrainer(net, None, space(), prompts(), lora=2).release()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find_spec(name)
    )
    with pytest.raises(MissingExtraError, match=r'pip install "lens-lm\[hf\]"'):
        trainable(net, lora=4)
    assert trainable(net).activate()  # not needed without adapters


# -- packed weights


class PackedLinear(nn.Module):
    """Weight-only 8 bit in the layout of GPTQ and AWQ layers: integers, scales, buffers."""

    def __init__(self, linear, *, old_names=False):
        super().__init__()
        width = linear.in_features, linear.out_features
        names = ("infeatures", "outfeatures") if old_names else ("in_features", "out_features")
        for name, value in zip(names, width, strict=True):
            setattr(self, name, value)
        scales = linear.weight.detach().abs().amax(1) / 127
        packed = (linear.weight.detach() / scales[:, None]).round().to(torch.int8)
        self.register_buffer("qweight", packed)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def matrix(self):
        return self.qweight.float() * self.scales[:, None]

    def forward(self, x):
        return nn.functional.linear(x, self.matrix().to(x.dtype), self.bias)


def packed_model(family="qwen2", **options):
    net = tiny.model(family)
    for block in locate(net).blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(block.get_submodule(parent), child, PackedLinear(module, **options))
    return net


@pytest.mark.parametrize("old_names", [False, True])
def test_packed_layers_of_the_band_are_unpacked_and_the_prefix_stays(old_names):
    net = packed_model(old_names=old_names)
    blocks = locate(net).blocks
    matrices = {i: blocks[i].mlp.up_proj.matrix() for i in (1, 2)}
    before = logits(net)
    trainer = LensTrainer(net, None, space(), prompts(), layers="1:")
    assert isinstance(blocks[0].mlp.up_proj, PackedLinear)
    for i, matrix in matrices.items():
        assert type(blocks[i].mlp.up_proj) is nn.Linear
        assert torch.equal(blocks[i].mlp.up_proj.weight, matrix)
    torch.testing.assert_close(logits(net), before, rtol=0, atol=1e-5)
    result = trainer.run(config_of("lens"))
    assert any(name.endswith("q_proj.bias") for name in result.weights)
    assert (logits(net) - before).abs().max() > 1e-3


def test_only_what_is_trained_is_unpacked():
    net = packed_model()
    trainable(net, modules="attention")
    block = locate(net).blocks[2]
    assert type(block.self_attn.q_proj) is nn.Linear
    assert is_quantized(block.mlp.up_proj)
    other = packed_model()
    names = trainable(other, modules="norm,bias").activate()
    assert is_quantized(locate(other).blocks[2].self_attn.q_proj)
    assert names and all(n.endswith("bias") or "norm" in n for n in names)


def test_a_set_of_bands_runs_packed_blocks_in_between():
    net = packed_model()
    trainer = LensTrainer(net, None, space(), prompts(), layers="0,2")
    before = {n: p.clone() for n, p in trainer.parameters.items()}
    result = trainer.run(config_of("lens"))
    assert is_quantized(locate(net).blocks[1].mlp.up_proj)
    moved = {n for n, w in result.weights.items() if not torch.equal(w, before[n])}
    assert any(".layers.0." in n for n in moved) and any(".layers.2." in n for n in moved)


class InferenceOnly(PackedLinear):
    """A packed layer whose kernel passes no gradient."""

    def forward(self, x):
        return super().forward(x).detach()


def test_packed_layers_that_stop_gradients_are_unpacked_and_said(capsys):
    net = tiny.model("llama")
    for block in locate(net).blocks:
        block.mlp.up_proj = InferenceOnly(block.mlp.up_proj)
        block.mlp.down_proj = PackedLinear(block.mlp.down_proj)
    trainer = LensTrainer(net, None, space(), prompts(), layers="1", modules="norm")
    assert "2 packed layers from block 1 on pass no gradient" in capsys.readouterr().err
    blocks = locate(net).blocks
    assert is_quantized(blocks[0].mlp.up_proj) and is_quantized(blocks[2].mlp.down_proj)
    assert type(blocks[1].mlp.up_proj) is type(blocks[2].mlp.up_proj) is nn.Linear
    result = trainer.run(config_of("lens"))
    assert all(not torch.equal(w, trainer.original[n]) for n, w in result.weights.items())


def test_packed_layers_that_cannot_be_run_are_refused_and_kept(monkeypatch):
    net = packed_model()

    def fail(self, x):
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(PackedLinear, "forward", fail)
    with pytest.raises(InputError, match=r"cannot unpack model\.layers\.2.*no kernel.*lora"):
        unpack(net, ["model.layers.2.mlp.up_proj"], dtype=torch.float32)
    assert isinstance(net.model.layers[2].mlp.up_proj, PackedLinear)
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: self.scales / 0 + 0 * x[:, :1])
    with pytest.raises(InputError, match="not finite"):
        unpack(net, ["model.layers.2.mlp.up_proj"], dtype=torch.float32)
