"""Loading, block location on every family, layer and site names, and chat encoding."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lens.errors import InputError
from lens.models.architecture import _KNOWN, accepts, block_output, locate, with_block_output
from lens.models.layers import resolve_layers, resolve_site, resolve_sites
from lens.models.loading import load
from lens.models.tokenization import ChatOptions, encode, encode_prompts, pad
from tests.helpers import tiny

# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("family", tiny.PROBED)
def test_located_blocks_give_the_hidden_states_of_transformers(family):
    model = tiny.model(family)
    parts = locate(model)
    assert len(parts.blocks) == 3
    assert parts.width == 32
    assert parts.embedding is model.get_input_embeddings()
    assert parts.lm_head is model.get_output_embeddings()
    states: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _m, _a, output: states.append(block_output(output)))
        for module in (*parts.blocks, parts.final_norm)
    ]
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert len(hidden) == 4
    for ours, theirs in zip(states[:2], hidden[1:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    # Theirs is after the final norm: our last block is before it, our "final" equals it.
    assert not torch.allclose(states[2], hidden[3])
    torch.testing.assert_close(states[3], hidden[3], rtol=0, atol=0)


def test_locating_leaves_no_hook_and_no_change_of_mode():
    model = tiny.model()
    model.train()
    model.model.layers[1].eval()
    locate(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training and not model.model.layers[1].training


def test_rotary_is_found_where_the_family_has_one():
    assert locate(tiny.model("llama")).rotary is not None
    assert locate(tiny.model("gpt2")).rotary is None


def test_model_without_a_final_norm():
    model = tiny.model("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    assert locate(model).final_norm is None


def test_located_parts_are_found_again_after_blocks_are_replaced():
    model = tiny.model()
    before = locate(model)
    model.model.layers = nn.ModuleList(model.model.layers[:2])
    model.config.num_hidden_layers = 2
    after = locate(model)
    assert before.blocks is not after.blocks
    assert len(after.blocks) == 2
    assert _KNOWN[model] == ("model.layers", id(after.blocks))


class Parallel(nn.Module):
    """Two stacks side by side, summed: no list here carries a residual stream."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        x = self.embed(input_ids)
        return self.norm(x + sum(branch(x) for branch in self.branches))


class Multimodal(nn.Module):
    """A longer list of vision blocks beside the text stack, as multimodal wrappers have."""

    def __init__(self):
        super().__init__()
        self.text = tiny.model("llama")
        self.config = self.text.config
        self.vision = nn.Module()
        self.vision.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))

    def forward(self, input_ids, attention_mask=None, pixel_values=None):
        if pixel_values is not None:
            for layer in self.vision.layers:
                pixel_values = layer(pixel_values)
        return self.text(input_ids=input_ids, attention_mask=attention_mask)


def test_the_text_stack_of_a_multimodal_model_is_found():
    model = Multimodal()
    assert locate(model).blocks_name == "text.model.layers"
    model.config.num_hidden_layers = 5  # even where the sizes point to the other list
    assert locate(Multimodal()).blocks is not model.vision.layers
    with pytest.raises(InputError, match="they ran in the order"):
        locate(model, blocks="vision.layers")


def test_blocks_inside_an_adapter_are_found():
    model = tiny.model("llama")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    parts = locate(wrapped)
    assert parts.blocks is model.model.layers
    assert accepts(wrapped, "position_ids")


def test_refusal_lists_candidates_and_the_way_out():
    with pytest.raises(InputError) as caught:
        locate(Parallel())
    text = str(caught.value)
    assert "branches (3 x Linear)" in text
    assert "not the output of the one before" in text
    assert "blocks=" in text


def test_a_named_block_list_is_checked_too():
    assert locate(tiny.model(), blocks="model.layers").blocks_name == "model.layers"
    with pytest.raises(InputError, match="no module of this name"):
        locate(tiny.model(), blocks="model.nothing")
    with pytest.raises(InputError, match="expected a ModuleList"):
        locate(tiny.model(), blocks="model.norm")


def test_block_outputs_of_both_kinds():
    state = torch.zeros(1, 2, 3)
    assert block_output(state) is state
    assert block_output((state, "cache")) is state
    assert with_block_output((state, "cache"), state + 1)[1] == "cache"
    with pytest.raises(InputError, match="expected a tensor"):
        block_output(("nothing",))


# ---------------------------------------------------------------- names of layers and sites


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("-2:", (6, 7)),
        ("1:3,5", (1, 2, 5)),
        (":2", (0, 1)),
        ("all", tuple(range(8))),
        (-1, (7,)),
        ([3, 3, 0], (0, 3)),
        ("7,-8", (0, 7)),
    ],
)
def test_layers(spec, expected):
    assert resolve_layers(spec, 8) == expected


@pytest.mark.parametrize("spec", ["8", "-9", "0:9", "2:2", "", "top", True, 8])
def test_unknown_layers_are_refused(spec):
    with pytest.raises(InputError):
        resolve_layers(spec, 8)


def test_sites():
    assert resolve_sites("all", 2) == ("block.0", "block.1", "final")
    assert resolve_sites(["final", "block.-1", 0], 3) == ("block.0", "block.2", "final")
    assert resolve_sites("-2:", 3) == ("block.1", "block.2")
    with pytest.raises(InputError, match="unknown layer 5"):
        resolve_sites("block.5", 3)
    with pytest.raises(InputError):
        resolve_sites([], 3)


def test_one_site_among_those_there_are():
    sites = ("block.2", "block.5", "final")
    assert resolve_site(-1, sites) == "block.5"
    assert resolve_site("block.-2", sites) == "block.2"
    assert resolve_site(5, sites) == "block.5"
    assert resolve_site("final", sites) == "final"
    with pytest.raises(InputError, match=r"this one has: block\.2"):
        resolve_site("block.3", sites)


# ---------------------------------------------------------------- loading


def test_load_from_a_folder(tmp_path, tokenizer, capsys):
    tiny.model("qwen2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()
    model, loaded = load(tmp_path, dtype="bf16")
    assert capsys.readouterr().err == ""  # no bar where stderr is not a terminal
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert loaded("ab")["input_ids"] == tokenizer("ab")["input_ids"]


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load("./no/such/folder")
    with pytest.raises(InputError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(InputError, match="unknown dtype 'int3'"):
        load(tmp_path, dtype="int3")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(InputError, match="cannot load the checkpoint"):
        load(tmp_path)
    with pytest.raises(InputError, match="unknown device"):
        load(tmp_path, device="toaster")
    with pytest.raises(InputError, match="revision"):
        load("somebody/model@v1", revision="v2")


# ---------------------------------------------------------------- encoding


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_text_rows_pool_over_the_text_only(tokenizer):
    (row,) = encode(tokenizer, ["abc"])
    assert row.ids[0] == tokenizer.bos_token_id
    assert text_of(tokenizer, row.ids[row.pool_start : row.pool_stop]) == "abc"


def test_no_double_beginning_of_sequence(tokenizer):
    (plain,) = encode(tokenizer, ["<s>abc"])
    assert plain.ids.count(tokenizer.bos_token_id) == 1
    assert text_of(tokenizer, plain.ids[plain.pool_start : plain.pool_stop]) == "abc"
    (chat,) = encode_prompts(tokenizer, ["abc"])
    assert chat.count(tokenizer.bos_token_id) == 1


def test_user_rows_end_in_the_generation_prompt(tokenizer):
    (row,) = encode(tokenizer, ["hi"], role="user")
    assert text_of(tokenizer, row.ids) == "<s><|user|>hi</s><|assistant|>"
    assert row.pool_stop == len(row.ids)


def test_options_reach_the_template(tokenizer):
    chat = ChatOptions(system="be brief", enable_thinking=True)
    (ids,) = encode_prompts(tokenizer, ["hi"], chat=chat)
    expected = "<s><|system|>be brief</s><|user|>hi</s><|assistant|><think>"
    assert text_of(tokenizer, ids) == expected
    (plain,) = encode_prompts(tokenizer, ["hi"], chat=ChatOptions(template=False))
    assert text_of(tokenizer, plain) == "<s>hi"


def test_assistant_rows_pool_over_the_positions_that_predict(tokenizer):
    (row,) = encode(tokenizer, ["yes"], role="assistant", prompts=["hi"])
    assert text_of(tokenizer, row.ids) == "<s><|user|>hi</s><|assistant|>yes"
    predicted = row.ids[row.pool_start + 1 : row.pool_stop + 1]
    assert text_of(tokenizer, predicted) == "yes"
    assert text_of(tokenizer, [row.ids[row.pool_start]]) == "<|assistant|>"


def test_assistant_rows_keep_what_the_template_puts_before_the_answer():
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>"
        "{% if m['role'] == 'assistant' %}<think>{% endif %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = tiny.tokenizer(template=template)
    (row,) = encode(tokenizer, ["yes"], role="assistant", prompts=["hi"])
    assert text_of(tokenizer, row.ids) == "<|user|>hi<|assistant|><think>yes"
    assert text_of(tokenizer, [row.ids[row.pool_start]]) == "<think>"


def test_assistant_rows_without_a_template():
    tokenizer = tiny.tokenizer(template=None)
    (row,) = encode(tokenizer, ["yes"], role="assistant", prompts=["hi"])
    assert text_of(tokenizer, row.ids) == "<s>hi\nyes"
    assert row.pool_stop - row.pool_start == 3


def test_truncation_is_counted_and_never_cuts_a_prompt(tokenizer):
    (row,) = encode(tokenizer, ["abcdef"], max_tokens=4)
    assert row.truncated and len(row.ids) == 4
    assert row.pool_stop == 4
    answer, prompt = ["abcdef"], ["hi"]
    (row,) = encode(tokenizer, answer, role="assistant", prompts=prompt, max_tokens=8)
    assert row.truncated and row.pool_stop == 7
    with pytest.raises(InputError, match="cannot be cut"):
        encode(tokenizer, ["a long prompt"], role="user", max_tokens=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"role": "system"}, "unknown role"),
        ({"role": "assistant"}, "needs prompts"),
        ({"rows": ["ok", ""]}, "row 1 gives no tokens"),
        ({"role": "user", "chat": ChatOptions(extra={"datum": 1})}, "does not know 'datum'"),
    ],
)
def test_rows_that_cannot_be_used(tokenizer, arguments, message):
    with pytest.raises(InputError, match=message):
        encode(tokenizer, arguments.pop("rows", ["a"]), **arguments)


def test_a_template_that_is_not_there():
    tokenizer = tiny.tokenizer(template=None)
    with pytest.raises(InputError, match="the tokenizer has none"):
        encode_prompts(tokenizer, ["a"], chat=ChatOptions(template=True))
    with pytest.raises(InputError, match="need a chat template"):
        encode_prompts(tokenizer, ["a"], chat=ChatOptions(system="s"))


def test_a_template_that_refuses():
    tokenizer = tiny.tokenizer(template="{{ raise_exception('only one turn') }}")
    with pytest.raises(InputError, match="only one turn"):
        encode_prompts(tokenizer, ["a"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(tokenizer, side):
    rows = encode(tokenizer, ["a", "abcd"])
    batch = pad(rows, side=side)
    assert batch.input_ids.shape == (2, 5)
    for i, row in enumerate(rows):
        real = batch.attention_mask[i].bool()
        assert batch.input_ids[i][real].tolist() == list(row.ids)
        assert batch.position_ids[i][real].tolist() == list(range(len(row.ids)))
        pooled = batch.input_ids[i][batch.pool_mask[i]].tolist()
        assert pooled == list(row.ids[row.pool_start : row.pool_stop])


def test_padding_side_is_checked(tokenizer):
    with pytest.raises(InputError, match="padding side"):
        pad(encode(tokenizer, ["a"]), side="top")
