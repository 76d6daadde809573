"""Checkpoints written as the difference from the one a model was loaded from."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lens
from lens.models.architecture import locate
from lens.models.checkpoint import SourceCheckpoint, copy_file, take_over
from lens.models.loading import load
from lens.training import LensConfig, Retain, Separate
from tests.helpers import tiny

PROMPTS = {
    "eng_Latn": ["what is red?", "who is it?", "where?", "when is tea?"],
    "spa_Latn": ["que es rojo?", "quien es?", "donde?", "cuando hay te?"],
}


def stored(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint in several files, with a tokenizer and what else lies about."""

    def made(family="llama", *, dtype=torch.float32, shard="40KB"):
        folder = tmp_path / "source"
        tiny.model(family).to(dtype).save_pretrained(folder, max_shard_size=shard)
        tiny.tokenizer().save_pretrained(folder)
        (folder / "README.md").write_text("of the source")
        (folder / "pytorch_model.bin").write_bytes(b"old")
        return folder

    return made


def changed_band(model, block=-1):
    """Change the last block's weights in place, as training would; return them by name."""
    parts = locate(model)
    index = range(len(parts.blocks))[block]
    band = {}
    with torch.no_grad():
        for name, parameter in parts.blocks[index].named_parameters():
            parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.1)
            band[f"{parts.blocks_name}.{index}.{name}"] = parameter.detach().clone()
    return band


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("shard", ["40KB", "5GB"])
def test_only_the_band_changes_in_every_family(saved, tmp_path, family, shard):
    folder = saved(family, shard=shard)
    model, _ = load(folder)
    band = changed_band(model)
    source = SourceCheckpoint.of(model, band)
    if family == "mixtral":  # stored expert by expert, held as one tensor
        assert source is None
        return
    out = tmp_path / "out"
    out.mkdir()
    rewritten = source.write(out, model, band)
    source.write_rest(out)
    again = AutoModelForCausalLM.from_pretrained(out)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    before, now = stored(folder), stored(out)
    differ = {name for name in before if not torch.equal(bits(before[name]), bits(now[name]))}
    prefix = model.base_model_prefix
    assert differ == {source.name_of(name, prefix) for name in band}
    old, new = hashes(folder), hashes(out)
    assert set(rewritten) == {n for n in new if n in old and new[n] != old[n]}
    assert 0 < len(rewritten) <= len(source.files)
    if shard == "40KB":
        assert len(rewritten) < len(source.files)
        untouched = next(f.name for f in source.files if f.name not in rewritten)
        assert (out / untouched).samefile(folder / untouched) or new[untouched] == old[untouched]
    assert "README.md" not in new and "pytorch_model.bin" not in new


def test_a_source_that_is_not_the_models_is_not_used(saved):
    folder = saved()
    model, _ = load(folder)
    band = changed_band(model)
    assert SourceCheckpoint.of(model, band) is not None
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").add_(1)
    assert SourceCheckpoint.of(model, band) is None
    assert SourceCheckpoint.of(tiny.model(), {}) is None
    (folder / "model.safetensors.index.json").write_text("{")
    assert SourceCheckpoint.of(load_again(folder, model), band) is None


def load_again(folder, model):
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").sub_(1)
    return model


def test_tensors_keep_the_dtype_they_are_stored_in(saved, tmp_path):
    folder = saved(dtype=torch.bfloat16)
    model, _ = load(folder, dtype="float32")
    band = changed_band(model)
    source = SourceCheckpoint.of(model, band)
    (tmp_path / "out").mkdir()
    source.write(tmp_path / "out", model, band)
    for name, tensor in stored(tmp_path / "out").items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, model.get_parameter(name).bfloat16())


def test_files_are_taken_over_and_copied(tmp_path):
    first, second, third = (tmp_path / name for name in "abc")
    first.write_bytes(b"x" * 5000)
    take_over(first, second)
    copy_file(first, third)
    third.write_bytes(b"y")
    assert second.read_bytes() == first.read_bytes() == b"x" * 5000
    assert not third.samefile(first)


def test_a_trained_model_is_written_over_its_source(saved, tmp_path):
    folder = saved()
    model, tokenizer = load(folder)
    space = lens.probe(model, tokenizer, PROMPTS, pivot="eng_Latn", role="user", pooling="last")
    settings = LensConfig(terms=(Separate(), Retain()), rank="full", steps=2, batch_size=2)
    result = lens.train(model, tokenizer, space, PROMPTS, losses=settings, layers="-1:")
    before = hashes(folder)
    result.save(tmp_path / "out")
    assert hashes(folder) == before
    now = hashes(tmp_path / "out")
    same = {name for name in before if now.get(name) == before[name]}
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= same
    assert {"generation_config.json", "chat_template.jinja"} <= same
    facts = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert facts["checkpoint"]["form"] == "changed files"
    assert set(facts["checkpoint"]["taken_over"]) <= same
    assert not set(facts["checkpoint"]["rewritten"]) & same
    inputs = facts["inputs"]
    assert len(inputs["prompts"]["spa_Latn"]["sha256"]) == 64 and len(inputs["tokenizer"]) == 64
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weights in result.weights.items():
        assert torch.equal(again.get_parameter(name), weights)
    # another template than the source's is written, not lost
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    result.save(tmp_path / "other")
    assert AutoTokenizer.from_pretrained(tmp_path / "other").chat_template == (
        "{{ messages[0]['content'] }}"
    )
