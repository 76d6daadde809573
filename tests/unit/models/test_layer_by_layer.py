"""Layer by layer: one block's weights at a time, and what comes out is the same."""

import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import lens
from lens.cli.app import main
from lens.errors import InputError
from lens.models.architecture import locate
from lens.models.fingerprint import model_fingerprint
from lens.models.hidden_states import capture
from lens.models.loading import load
from lens.models.offload import store_of
from lens.space.probe import probe
from lens.space.space import Space
from lens.space.state_store import StateStore
from tests.helpers import tiny

ROWS = ["a", "some words", "a longer line of text, with more in it", "mid size", "b b b"]
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
LANGUAGES = {"en": ROWS, "es": [row[::-1] for row in ROWS]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """Folder of a checkpoint of each family, made when it is asked for."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny.model(family).save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return folder


def states(model, tokenizer, **options):
    result = capture(model, tokenizer, ROWS, keep_states=True, **options)
    return np.stack([result.states[site] for site in result.sites])


@pytest.mark.parametrize("family", tiny.PROBED)
def test_the_same_bits_as_the_whole_model(family, saved, tokenizer):
    whole, _ = load(saved(family))
    model, _ = load(saved(family), layer_by_layer=True)
    parts = locate(model)
    assert all(p.is_meta for p in parts.blocks.parameters())
    for options in ({"batch_size": 2}, {"pooling": "last", "padding_side": "left"}):
        expected = states(whole, tokenizer, **options)
        found = states(model, tokenizer, **options)
        again = states(whole, tokenizer, layer_by_layer=True, **options)
        np.testing.assert_array_equal(again, found)
        # Padding goes to experts too, and is zero here: their products have other shapes.
        close = 1e-6 if family in MIXTURES else 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=close)
    assert all(p.is_meta for p in parts.blocks.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in whole.modules())
    assert not any("forward" in vars(m) for m in (*whole.modules(), *model.modules()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt2"])
def test_the_fingerprint_is_that_of_the_whole_model(family, saved):
    whole, _ = load(saved(family))
    model, _ = load(saved(family), layer_by_layer=True)
    assert model_fingerprint(model) == model_fingerprint(whole)


def test_another_dtype_than_the_file(saved, tokenizer):
    whole, _ = load(saved("llama"), dtype="bfloat16")
    model, _ = load(saved("llama"), dtype="bfloat16", layer_by_layer=True)
    np.testing.assert_array_equal(states(model, tokenizer), states(whole, tokenizer))
    assert model_fingerprint(model) == model_fingerprint(whole)


def test_a_space_of_a_model_in_parts_is_that_of_the_whole(saved, tokenizer, tmp_path):
    whole, _ = load(saved("llama"))
    model, _ = load(saved("llama"), layer_by_layer=True)
    expected = probe(whole, tokenizer, LANGUAGES, pivot="en")
    found = probe(model, tokenizer, LANGUAGES, pivot="en", keep_states=tmp_path / "states")
    assert found.sha256 == expected.sha256
    assert StateStore(tmp_path / "states").sites == found.sites
    found.check_model(whole)


def test_one_block_at_a_time(saved, tokenizer):
    model, _ = load(saved("llama"), layer_by_layer=True)
    seen, alive = [], []
    store, blocks = store_of(model), locate(model).blocks
    hold = store._fetch

    def counted(model, prefix):
        loaded = hold(model, prefix)
        gc.collect()
        seen.append(prefix)
        alive.append(sum(ref() is not None for ref in refs))
        index = int(prefix.split(".")[-2])
        weights = loaded.get_submodule("model.layers")[index]
        assert sum(not p.is_meta for p in loaded.parameters()) == len(list(weights.parameters()))
        refs.append(weakref.ref(next(weights.parameters())))
        return loaded

    refs = []
    store._fetch = counted
    capture(model, tokenizer, ROWS, sites=[0, 1], batch_size=2)
    # Block 0 is looked at once more, for the form of its output; block 2 is not needed.
    assert seen == ["model.layers.0.", "model.layers.0.", "model.layers.1."]
    assert alive == [0, 0, 0]
    assert len(blocks) == 3


def test_a_model_without_a_final_norm(tmp_path, tokenizer):
    made = tiny.model("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    made.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load(tmp_path, layer_by_layer=True)
    np.testing.assert_array_equal(states(model, tokenizer), states(made, tokenizer))


def test_memory_runs_out_in_a_later_block(saved, tokenizer):
    model, _ = load(saved("llama"))
    expected = states(model, tokenizer)

    def check(_module, args):
        if args[0].shape[0] > 2:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.model.layers[1].register_forward_pre_hook(check)
    result = capture(model, tokenizer, ROWS, keep_states=True, layer_by_layer=True)
    hook.remove()
    assert result.batch_size == 2
    found = np.stack([result.states[site] for site in result.sites])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_what_cannot_be_loaded_so(saved, tokenizer, tmp_path):
    with pytest.raises(InputError, match="one block on one device"):
        load(saved("llama"), layer_by_layer=True, device="auto")
    model, _ = load(saved("llama"), layer_by_layer=True)
    with pytest.raises(InputError, match="can only be run so"):
        capture(model, tokenizer, ROWS, layer_by_layer=False)
    space = probe(model, tokenizer, LANGUAGES, pivot="en")
    with pytest.raises(InputError, match="for probing alone"):
        lens.train(model, tokenizer, space, LANGUAGES)
    with pytest.raises(InputError, match="for probing alone"):
        with lens.steer(model, []):
            pass
    shutil.copytree(saved("llama"), tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="holds gptq weights"):
        load(tmp_path / "packed", layer_by_layer=True)


def test_one_block_counts_for_a_memory_limit(saved, tokenizer):
    whole, _ = load(saved("llama"))
    model, _ = load(saved("llama"), layer_by_layer=True)
    least = sum(p.numel() * p.element_size() for p in whole.parameters())
    with pytest.raises(InputError, match=r"or load it layer by layer \(--layer-by-layer\)"):
        capture(whole, tokenizer, ROWS, sites=0, max_memory=least)
    found = capture(model, tokenizer, ROWS, sites=0, max_memory=least, keep_states=True)
    expected = capture(whole, tokenizer, ROWS, sites=0, keep_states=True)
    np.testing.assert_allclose(
        found.states["block.0"], expected.states["block.0"], rtol=0, atol=1e-5
    )


def test_from_the_command_line(saved, tmp_path):
    rows = {"en": [f"the {i} birds" for i in range(8)], "es": [f"las {i} aves" for i in range(8)]}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = ["probe", "--model", str(saved("llama")), "--data", str(tmp_path / "rows.json")]
    extra = ["--layer-by-layer", "--max-memory", "1GB", "--sites", "block.1,final", "--resume"]
    kept = ["--keep-states", str(tmp_path / "states"), "--select-rank"]
    for name, options in (("whole", []), ("layers", extra + kept)):
        out = str(tmp_path / f"{name}.safetensors")
        done = CliRunner().invoke(main, [*command, "--out", out, *options])
        assert done.exit_code == 0, done.output
        assert not (tmp_path / f"{name}.safetensors.unfinished").exists()
    whole, layers = (Space.load(tmp_path / f"{name}.safetensors") for name in ("whole", "layers"))
    assert layers.sites == ("block.1", "final")
    for site in layers.sites:
        np.testing.assert_array_equal(layers.means(site), whole.means(site))
        assert "held-out" in layers.fit(site).rank_reason
    assert StateStore(tmp_path / "states").dtype == "float16"
