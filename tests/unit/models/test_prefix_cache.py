"""The prefix cache gives the states of the whole model, for every supported family."""

import pytest
import torch

from lens.errors import InputError
from lens.models.architecture import locate
from lens.models.prefix_cache import PrefixCache, pad_right
from tests.helpers.tiny import FAMILIES, model

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18], [19]]


def _cache(family, *, first_block=2, sites=("final",), batch_size=4):
    net = model(family).eval()
    cache = PrefixCache(net, locate(net), first_block=first_block, sites=sites)
    cache.add(ROWS, keep="all", batch_size=batch_size)
    return net, cache


def _whole(net, site="final"):
    """States of the model run from the tokens, right-padded like the cache's batches."""
    out = net.base_model(
        input_ids=pad_right([torch.tensor(r) for r in ROWS]),
        use_cache=False,
        output_hidden_states=True,
    )
    if site == "final":
        return out.last_hidden_state
    return out.hidden_states[int(site.removeprefix("block.")) + 1]


def _allowed(family):
    """Equal bits, but for experts: padding is routed differently, so their batch shapes differ."""
    return 1e-5 if family == "mixtral" else 0.0


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_replay_is_bit_equal_to_the_whole_model_at_equal_shapes(family):
    net, cache = _cache(family)
    batch = cache.batch(range(len(ROWS)))
    replayed, whole = cache.forward(batch)["final"], _whole(net)
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(
            replayed[i, : len(row)], whole[i, : len(row)], rtol=0, atol=_allowed(family)
        )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradients_of_the_band_are_those_of_the_whole_model(family):
    net, cache = _cache(family)
    band = [p for block in cache.parts.blocks[2:] for p in block.parameters()]
    aim = torch.randn(4, cache.parts.width, generator=torch.Generator().manual_seed(1))
    batch = cache.batch(range(len(ROWS)))
    (batch.last(cache.forward(batch)["final"]) * aim).sum().backward()
    mine = [p.grad.clone() for p in band]
    net.zero_grad()
    (batch.last(_whole(net)) * aim).sum().backward()
    for p, grad in zip(band, mine, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=_allowed(family))
    assert any(grad.abs().max() > 0 for grad in mine)


@torch.no_grad()
def test_a_change_of_the_band_is_seen_and_one_below_is_not():
    net, cache = _cache("llama")
    batch = cache.batch(range(len(ROWS)))
    before = cache.forward(batch)["final"]
    next(cache.parts.blocks[0].parameters()).add_(1.0)
    assert torch.equal(cache.forward(batch)["final"], before)
    next(cache.parts.blocks[2].parameters()).add_(1.0)
    assert not torch.equal(cache.forward(batch)["final"], before)
    # bypassed only inside the replay
    assert all("forward" not in vars(block) for block in cache.parts.blocks)
    assert not net.training


@torch.no_grad()
def test_batching_and_padding_change_nothing_but_rounding():
    _, together = _cache("llama")
    _, single = _cache("llama", batch_size=1)
    for a, b in zip(together.rows, single.rows, strict=True):
        torch.testing.assert_close(a.entry, b.entry, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.reference["final"], b.reference["final"], rtol=0, atol=1e-5)
    batch = together.batch([1, 3])
    longer = together.batch([1, 3], length=9)
    assert longer.input_ids.shape == (2, 9)
    torch.testing.assert_close(
        batch.last(together.forward(batch)["final"]),
        longer.last(together.forward(longer)["final"]),
        rtol=0,
        atol=1e-5,
    )


@torch.no_grad()
def test_reference_states_and_sites():
    net, cache = _cache("llama", first_block=1, sites=("block.1", "final"))
    assert torch.equal(
        cache.reference([0], "block.1")[0], _whole(net, "block.1")[0, : len(ROWS[0])]
    )
    last = cache.add(ROWS, keep="last", batch_size=4)
    assert list(last) == [4, 5, 6, 7]
    for i, row in enumerate(ROWS):
        kept = cache.rows[4 + i].reference["final"]
        assert kept.shape == (1, cache.parts.width)
        assert torch.equal(kept[0], cache.rows[i].reference["final"][len(row) - 1])
    assert cache.nbytes > 0


def test_bad_settings_are_refused():
    net = model("llama")
    parts = locate(net)
    count = len(parts.blocks)
    with pytest.raises(InputError, match=f"blocks 0 to {count - 1}"):
        PrefixCache(net, parts, first_block=count)
    with pytest.raises(InputError, match="below the first trained block"):
        PrefixCache(net, parts, first_block=2, sites=("block.0",))
