"""How much memory may be taken, and how many tokens a batch may then have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lens.errors import InputError
from lens.models.blocks import DecoderParts, text_config
from lens.sizes import said

# States of a block that are alive at once, in widths and in widths of its feed-forward part: what
# the attention and the feed-forward part of a gated block hold, with float32 copies in norms.
_WIDTHS, _INNER_WIDTHS = 12, 3


def tokens_within(
    limit: int, model: nn.Module, parts: DecoderParts, *, sites: int, rows: int
) -> int:
    """Tokens of a padded batch that keep a probe within a memory limit.

    Parameters
    ----------
    limit : int
        Bytes for weights, pooled states and activations; libraries are not counted.
    model : torch.nn.Module
        The model; of blocks that are loaded one at a time, one counts.
    parts : DecoderParts
        Its parts.
    sites, rows : int
        Pooled states held at once.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    InputError
        When the weights alone take the limit.

    Notes
    -----
    An estimate from the config: a token takes 12 d + 3 m numbers, m being the width of the
    feed-forward part, at 4 bytes, and with eager attention h more for each token of its row.
    """
    resident = {id(p): p for p in (*model.parameters(), *model.buffers()) if not p.is_meta}
    absent = [p for p in parts.blocks[0].parameters() if p.is_meta]
    weights = sum(p.numel() * p.element_size() for p in (*resident.values(), *absent))
    pooled = sites * rows * parts.width * 8
    left = limit - weights - pooled
    most = left // _bytes_per_token(model, parts)
    if most < 1:
        raise InputError(
            f"max_memory is {said(limit)}, but the weights take {said(weights)} and pooled "
            f"states {said(pooled)}; allow more, load the model in a smaller dtype, or load it "
            "layer by layer (--layer-by-layer)"
        )
    return int(most)


def _bytes_per_token(model: nn.Module, parts: DecoderParts) -> int:
    config: Any = text_config(model)
    inner = _number(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * parts.width
    numbers = _WIDTHS * parts.width + _INNER_WIDTHS * inner
    if getattr(config, "_attn_implementation", None) == "eager":
        heads = _number(config, "num_attention_heads", "n_head") or 1
        longest = _number(config, "max_position_embeddings", "n_positions") or 2048
        numbers += 2 * heads * min(longest, 2048)
    return numbers * max(torch.float32.itemsize, next(model.parameters()).element_size())


def _number(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)
