"""Capture: padding, batching, sites, memory, bad states; through the C core."""

import numpy as np
import pytest
import torch

from lens import arrays
from lens.errors import InputError
from lens.models.architecture import block_output, locate
from lens.models.hidden_states import capture, pool_states
from lens.models.loading import load
from lens.models.tokenization import ChatOptions, encode, pad
from tests.helpers import tiny

ROWS = ["a", "some words", "a longer line of text, with more in it", "mid size", "b b b"]
SITES = ("block.0", "block.1", "block.2", "final")


def states(model, tokenizer, **options):
    result = capture(model, tokenizer, ROWS, keep_states=True, **options)
    return np.stack([result.states[site] for site in result.sites])


def by_hand(model, tokenizer, *, pooling="mean", role="text", prompts=None):
    """One row at a time, without padding, read from output_hidden_states where that is possible."""
    parts = locate(model)
    found = {site: [] for site in SITES}
    for row in encode(tokenizer, ROWS, role=role, prompts=prompts):
        last: list[torch.Tensor] = []
        hook = parts.blocks[2].register_forward_hook(
            lambda _m, _a, out, last=last: last.append(block_output(out))
        )
        with torch.no_grad():
            hidden = model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        hook.remove()
        places = [hidden[1], hidden[2], last[0], hidden[3]]
        for site, state in zip(SITES, places, strict=True):
            part = state[0, row.pool_start : row.pool_stop].double().numpy()
            weights = {
                "mean": np.ones(len(part)),
                "last": np.eye(len(part))[-1],
                "weighted": np.arange(1, len(part) + 1),
            }[pooling]
            found[site].append(weights @ part / weights.sum())
    return np.stack([np.stack(found[site]) for site in SITES])


@pytest.mark.parametrize("family", tiny.PROBED)
def test_batching_and_padding_side_change_nothing(family, tokenizer):
    model = tiny.model(family)
    single = states(model, tokenizer, batch_size=1)
    scale = np.abs(single).max()
    for side in ("left", "right"):
        together = states(model, tokenizer, batch_size=5, padding_side=side)
        np.testing.assert_allclose(together, single, rtol=0, atol=1e-5 * max(scale, 1))
    np.testing.assert_allclose(single, by_hand(model, tokenizer), rtol=0, atol=1e-5 * max(scale, 1))
    assert not np.allclose(single[:, 0], single[:, 1])  # rows do differ


@pytest.mark.parametrize("pooling", ["mean", "last", "weighted"])
@pytest.mark.parametrize("role", ["text", "user", "assistant"])
def test_poolings_and_roles(llama, tokenizer, pooling, role):
    prompts = ["ask", "ask more"] if role == "assistant" else None
    options = {"pooling": pooling, "role": role, "prompts": prompts}
    expected = by_hand(llama, tokenizer, **options)
    np.testing.assert_allclose(
        states(llama, tokenizer, batch_size=3, **options), expected, rtol=1e-5, atol=1e-5
    )


def test_moments_are_those_of_the_states(llama, tokenizer):
    result = capture(llama, tokenizer, ROWS, keep_states=True, batch_size=2)
    assert result.sites == SITES
    assert result.n_rows == 5
    for site in SITES:
        moments = result.moments[site].result()
        assert moments.count == 5
        np.testing.assert_allclose(moments.mean, result.states[site].mean(axis=0), rtol=1e-12)
        variance = result.states[site].var(axis=0, ddof=1)
        np.testing.assert_allclose(moments.variance, variance, rtol=1e-9)


def test_shards_merge_to_the_whole(llama, tokenizer):
    rows = [f"{word} {i}" for i in range(130) for word in ("red", "blue", "green")]
    whole = capture(llama, tokenizer, rows, sites=-1).moments["block.2"].result()
    first = capture(llama, tokenizer, rows[:300], sites=-1).moments["block.2"]
    first.merge(capture(llama, tokenizer, rows[300:], sites=-1, row_offset=300).moments["block.2"])
    assert first.result().count == whole.count == 390
    np.testing.assert_allclose(first.result().mean, whole.mean, rtol=1e-6, atol=1e-8)


def test_the_forward_pass_stops_after_the_last_site(llama, tokenizer):
    ran = []
    hooks = [
        module.register_forward_hook(lambda _m, _a, _o, name=name: ran.append(name))
        for name, module in (("1", llama.model.layers[1]), ("2", llama.model.layers[2]))
    ]
    capture(llama, tokenizer, ROWS[:1], sites=[0, 1])
    for hook in hooks:
        hook.remove()
    assert ran == ["1"]


def test_model_is_left_as_it_was(tokenizer):
    model = tiny.model("gpt2")
    model.train()
    capture(model, tokenizer, ROWS)
    assert model.training and model.transformer.h[0].training
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_hooks_go_away_after_an_error(tokenizer):
    llama = tiny.model("llama")  # its own: transformers leaves hooks of output_hidden_states
    with pytest.raises(InputError, match="pooling: got"):
        capture(llama, tokenizer, ROWS, pooling="median")
    with pytest.raises(RuntimeError, match="broken"):
        hook = llama.model.layers[0].register_forward_pre_hook(broken)
        try:
            capture(llama, tokenizer, ROWS)
        finally:
            hook.remove()
    assert not any(module._forward_hooks for module in llama.modules())


def broken(*_args):
    raise RuntimeError("broken")


def limit_rows(model, most):
    """Make the first block run out of memory above a number of rows, as a device would."""

    def check(_module, args):
        if args[0].shape[0] > most:
            raise torch.OutOfMemoryError(f"{args[0].shape[0]} rows: out of memory")

    return model.model.layers[0].register_forward_pre_hook(check)


def test_batch_size_halves_when_memory_runs_out(llama, tokenizer):
    expected = states(llama, tokenizer)
    hook = limit_rows(llama, 2)
    try:
        result = capture(llama, tokenizer, ROWS, keep_states=True, batch_size=5)
    finally:
        hook.remove()
    assert result.batch_size == 2
    found = np.stack([result.states[site] for site in SITES])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_single_row_too_large_for_memory(llama, tokenizer):
    hook = limit_rows(llama, 0)
    try:
        with pytest.raises(InputError, match="out of memory with a single row"):
            capture(llama, tokenizer, ROWS)
    finally:
        hook.remove()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite_name_site_and_row(tokenizer, bad):
    model = tiny.model("llama")
    (byte,) = tokenizer("z", add_special_tokens=False)["input_ids"]

    def spoil(_module, args, output):
        return output.masked_fill((ids[0] == byte).unsqueeze(-1), bad)

    ids: list[torch.Tensor] = [torch.empty(0)]
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: ids.__setitem__(0, kwargs["input_ids"]), with_kwargs=True
    )
    locate(model)
    model.model.layers[1].register_forward_hook(spoil)
    rows = ["good row", "x", "buzz", "good"]
    with pytest.raises(InputError, match=r"block\.1 for row 2 of swh_Latn is not finite"):
        capture(model, tokenizer, rows, label="swh_Latn")
    assert capture(model, tokenizer, rows, sites=[0]).n_rows == 4


@pytest.mark.parametrize("far", [False, True], ids=["core", "torch"])
def test_garbage_in_padding_is_never_read(far, monkeypatch):
    monkeypatch.setattr(arrays, "_is_far", lambda tensor: far)
    values = torch.full((1, 3, 4), float("nan"))
    values[0, 1] = 2.0
    mask = torch.tensor([[False, True, False]])
    for mode in ("mean", "last", "weighted"):
        pooled = pool_states(values, mask, mode=mode)
        np.testing.assert_array_equal(pooled, np.full((1, 4), 2.0))


def test_half_precision_models(tokenizer):
    model = tiny.model("llama").to(torch.bfloat16)
    found = states(model, tokenizer)
    assert np.isfinite(found).all()
    expected = states(tiny.model("llama"), tokenizer)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "block.7"}, "unknown layer 7"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"rows": []}, "no rows"),
        ({"rows": ["x" * 200]}, r"longer than the 128 positions .* max_tokens=128"),
        ({"role": "user", "chat": ChatOptions(extra={"x_y": 1})}, "does not know"),
    ],
)
def test_bad_input(llama, tokenizer, options, message):
    rows = options.pop("rows", ROWS)
    with pytest.raises(InputError, match=message):
        capture(llama, tokenizer, rows, **options)


def test_long_rows_can_be_cut_and_are_counted(llama, tokenizer):
    result = capture(llama, tokenizer, ["x" * 200, "short"], max_tokens=128)
    assert result.n_truncated == 1
    assert result.n_tokens == 128 + 6


def test_a_tokenizer_of_another_model(tokenizer):
    with pytest.raises(InputError, match="has 50 embeddings"):
        capture(tiny.model("llama", vocab_size=50), tokenizer, ROWS)


def test_progress_is_silent_off_a_terminal_and_shown_on_request(llama, tokenizer, capsys):
    capture(llama, tokenizer, ROWS, label="swh_Latn")
    assert capsys.readouterr().err == ""
    capture(llama, tokenizer, ROWS, label="swh_Latn", progress=True)
    assert "Capturing swh_Latn" in capsys.readouterr().err


@pytest.mark.needs_shared
def test_a_real_model_is_independent_of_padding(shared):
    model, tokenizer = load(shared / "models" / "polyglot-14m", dtype="float32")
    rows = ["In the beginning", "Hapo mwanzo Mungu aliziumba mbingu na nchi.", "起初"]
    right = capture(model, tokenizer, rows, keep_states=True, batch_size=3)
    left = capture(model, tokenizer, rows, keep_states=True, padding_side="left")
    single = capture(model, tokenizer, rows, keep_states=True, batch_size=1)
    assert len(right.sites) == 9
    for site in right.sites:
        scale = np.abs(single.states[site]).max()
        for other in (left, right):
            np.testing.assert_allclose(
                other.states[site], single.states[site], rtol=0, atol=1e-5 * scale
            )
    batch = pad(encode(tokenizer, rows), side="left")
    assert batch.position_ids[:, -1].tolist() == [len(r.ids) - 1 for r in encode(tokenizer, rows)]
