"""Weights in mapped files: dropped after use, never lost."""

import ctypes
import hashlib
import platform
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lens.models.offload import Heap, held_briefly, lying_in_files, own_bytes, release, spill
from lens.training.config import Lora
from lens.training.trainer import LensTrainer
from tests.helpers import tiny
from tests.helpers.plain_loop import rows as prompts
from tests.helpers.plain_loop import space
from tests.unit.training.test_plain_loop import config_of

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="pages are only dropped on Linux"
)
WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.arange(1 << 18, dtype=torch.float32)}, path)
    return load_file(path)["weight"]


def resident(path):
    """Bytes of a file's mappings that are in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def test_a_mapped_weight_is_dropped_and_comes_back(mapped, tmp_path):
    total = mapped.double().sum()
    assert lying_in_files([mapped, torch.ones(9)]) == [True, False]
    assert resident(tmp_path / "weights.safetensors") >= mapped.nbytes
    assert mapped.nbytes - 8192 <= release([mapped]) <= mapped.nbytes
    assert resident(tmp_path / "weights.safetensors") <= 8192
    assert torch.equal(mapped.double().sum(), total)


@pytest.mark.parametrize("at", [3000, 1 << 17])
def test_what_was_written_is_not_lost(mapped, at):
    mapped[at] = -1.0
    assert release([mapped]) == 0
    assert mapped[at] == -1.0


def test_ordinary_memory_and_parts_of_it_are_left_alone():
    values = torch.arange(1 << 20)
    assert release([values, values[::2], values[1:], torch.empty(0)]) == 0
    assert torch.equal(values, torch.arange(1 << 20))


def test_a_spilled_weight_keeps_what_is_written_to_it():
    layer = torch.nn.Linear(512, 512, bias=False)
    weights = layer.weight.detach().clone()
    assert spill([layer]) == weights.nbytes
    assert spill([layer]) == 0  # it lies in a file already
    with torch.no_grad():
        layer.weight[100] = 7.0
    assert release([layer.weight]) > 0
    weights[100] = 7.0
    assert torch.equal(layer.weight, weights)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_that_lies_between_objects_goes_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    libc.free(libc.malloc(24 << 20))  # from now on, blocks below this size come from the heap
    heap = Heap()
    heap.tidy()
    before = own_bytes()
    blocks, between = [], []
    while own_bytes() < 1.5 * before + (100 << 20):
        blocks.append(libc.malloc(4 << 20))
        ctypes.memset(blocks[-1], 1, 4 << 20)
        between.append(libc.malloc(1 << 20))  # stays between them
    for block in blocks:
        libc.free(block)
    held = own_bytes()
    heap.tidy()
    assert own_bytes() < held - 0.7 * len(blocks) * (4 << 20)
    for small in between:
        libc.free(small)


def test_modules_are_released_after_each_call_and_at_the_end(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(512, 512), "b": torch.ones(512, 512)}, path)
    found = load_file(path)
    layers = torch.nn.Sequential(*(torch.nn.Linear(512, 512, bias=False) for _ in found))
    for layer, weights in zip(layers, found.values(), strict=True):
        layer.weight.data = weights
    seen = []
    layers[1].register_forward_pre_hook(lambda *_: seen.append(resident(path)))
    with held_briefly([layers]):
        layers(torch.ones(1, 512))
        layers[0].weight.sum()
    # no more than one of the two, and what lies around it
    assert seen[0] < 300_000
    assert resident(path) < 300_000
    layers(torch.ones(1, 512))
    assert resident(path) >= 2 << 20


@pytest.fixture
def folder(tmp_path):
    tiny.model("llama", **WIDE).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("lora", [None, Lora(2), Lora(2, dora=True)])
def test_training_from_a_checkpoints_file_gives_the_same_bits(folder, lora, tmp_path):
    before = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    config = config_of("lens")
    options = {"layers": "2:", "lora": lora}
    whole = LensTrainer(loaded(folder), None, space(256), prompts(), **options).run(config)
    net = loaded(folder)
    trainer = LensTrainer(net, None, space(256), prompts(), low_memory=True, **options)
    frozen = [p for block in net.model.layers[:2] for p in block.parameters()]
    assert all(lying_in_files(frozen))
    sparse = trainer.run(config)
    assert sparse.log == whole.log
    assert all(torch.equal(sparse.weights[name], w) for name, w in whole.weights.items())
    trainer.restore()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).digest() == before
    reference = loaded(folder).state_dict()
    trainer.release()
    assert all(torch.equal(w, reference[name]) for name, w in net.state_dict().items())


def test_frozen_weights_are_not_in_memory_while_training(folder):
    path = folder / "model.safetensors"
    net = loaded(folder)
    trainer = LensTrainer(net, None, space(256), prompts(), layers="2:", low_memory=True)
    assert resident(path) < 0.1 * path.stat().st_size
    seen = []
    trainer.run(config_of("lens"))
    net.model.layers[2].register_forward_pre_hook(lambda *_: seen.append(resident(path)))
    trainer.run(config_of("lens"))
    assert max(seen) < 0.1 * path.stat().st_size
    with torch.no_grad():
        net(torch.tensor([[5, 6, 7]]))
    assert resident(path) > 0.5 * path.stat().st_size


def test_weights_changed_after_loading_stay_changed(folder):
    config = config_of("lens")
    runs = []
    for low_memory in (False, True):
        net = loaded(folder)
        with torch.no_grad():
            net.model.layers[0].mlp.up_proj.weight.mul_(1.5)
            net.model.layers[2].mlp.up_proj.weight.mul_(1.5)
        trainer = LensTrainer(net, None, space(256), prompts(), layers="2:", low_memory=low_memory)
        runs.append(trainer.run(config))
        trainer.restore()
        scaled = 1.5 * loaded(folder).model.layers[2].mlp.up_proj.weight
        assert torch.equal(net.model.layers[2].mlp.up_proj.weight, scaled)
    assert runs[0].log == runs[1].log
