"""Batches of rows of similar length, within the memory there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lens.errors import InputError
from lens.utils.files import said

if TYPE_CHECKING:
    from torch import nn

    from lens.models.architecture import DecoderParts

# States of a block that are alive at once, in widths and in widths of its feed-forward part: what
# the attention and the feed-forward part of a gated block hold, with float32 copies in norms.
_WIDTHS, _INNER_WIDTHS = 12, 3
_FLOAT = 4


def tokens_within(
    limit: int, model: nn.Module, parts: DecoderParts, *, sites: int, rows: int
) -> int:
    """Tokens of a padded batch that keep a probe within a memory limit.

    An estimate from the config: a token takes 12 d + 3 m numbers, m being the width of the
    feed-forward part, at 4 bytes, and with eager attention h more for each token of its row.
    """
    from lens.models.architecture import text_config

    resident = {id(p): p for p in (*model.parameters(), *model.buffers()) if not p.is_meta}
    absent = [p for p in parts.blocks[0].parameters() if p.is_meta]
    weights = sum(p.numel() * p.element_size() for p in (*resident.values(), *absent))
    itemsize = next(model.parameters()).element_size()
    sizes = {"width": parts.width, "sites": sites, "rows": rows, "itemsize": itemsize}
    return tokens_beside(limit, weights, text_config(model), **sizes)


def tokens_beside(
    limit: int, weights: int, config: Any, *, width: int, sites: int, rows: int, itemsize: int
) -> int:
    """`tokens_within`, from sizes in bytes and a config, as an object or a mapping."""
    pooled = sites * rows * width * 8
    most = (limit - weights - pooled) // _bytes_per_token(config, width, itemsize)
    if most < 1:
        raise InputError(
            f"max_memory is {said(limit)}, but the weights take {said(weights)} and pooled "
            f"states {said(pooled)}; allow more, load the model in a smaller dtype, or load it "
            "layer by layer (--layer-by-layer)"
        )
    return int(most)


def require_room_for(longest: int, tokens: int) -> None:
    """Refuse rows of which a single one exceeds the tokens that the limit allows."""
    if longest > tokens:
        raise InputError(
            f"max_memory leaves room for {tokens} tokens at once, but the longest row has "
            f"{longest}; cut rows with max_tokens, or allow more memory"
        )


def _bytes_per_token(config: Any, width: int, itemsize: int) -> int:
    inner = number_in(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * width
    numbers = _WIDTHS * width + _INNER_WIDTHS * inner
    if _value(config, "_attn_implementation") == "eager":
        heads = number_in(config, "num_attention_heads", "n_head") or 1
        longest = number_in(config, "max_position_embeddings", "n_positions") or 2048
        numbers += 2 * heads * min(longest, 2048)
    return numbers * max(_FLOAT, itemsize)


def number_in(config: Any, *names: str) -> int | None:
    """Return the first of some entries of a config that is a number."""
    found = (_value(config, name) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


# Rows are sorted by length inside windows of this many, and enter the statistics window by window
# in their own order, so that the batch size never changes which numbers are added to which.
WINDOW = 256
AUTO_BATCH = 32


@dataclass(slots=True)
class BatchLimit:
    """Most rows of a batch, which shrink when memory runs out, and most tokens with padding."""

    rows: int
    tokens: int | None = None

    def count(self, lengths: Sequence[int], done: int) -> int:
        """Rows of the next batch: lengths come sorted, so that the last row is the longest."""
        count = min(self.rows, len(lengths) - done)
        while (
            self.tokens is not None
            and count > 1
            and count * lengths[done + count - 1] > self.tokens
        ):
            count -= 1
        return count


def batch_limit(batch_size: int | Literal["auto"], tokens: int | None = None) -> BatchLimit:
    """Read a batch size."""
    if batch_size == "auto":
        return BatchLimit(AUTO_BATCH, tokens)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected 'auto' or a number from 1")
    return BatchLimit(batch_size, tokens)


def windows(count: int) -> Iterator[range]:
    """Positions of ``count`` rows, one window at a time."""
    for start in range(0, count, WINDOW):
        yield range(start, min(start + WINDOW, count))


def batches(lengths: Sequence[int], limit: BatchLimit) -> Iterator[tuple[int, int]]:
    """Rows and tokens of every batch, padding included, that rows of these lengths run in."""
    for window in windows(len(lengths)):
        ordered = sorted(lengths[i] for i in window)
        done = 0
        while done < len(ordered):
            rows = limit.count(ordered, done)
            done += rows
            yield rows, ordered[done - 1]
