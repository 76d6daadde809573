"""Capture: what it costs above a bare forward pass, and how little memory a large model needs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.common import Row, child

OVERHEAD = 1.03


def run() -> Iterator[Row]:
    """Rows of the table."""
    yield from overhead(width=1024, blocks=6, rows=12)
    yield from overhead(width=512, blocks=8, rows=24)
    yield from memory()


def overhead(*, width: int, blocks: int, rows: int) -> Iterator[Row]:
    """Seconds of `capture`, tokenizing included, over those of the same batches run bare."""
    import torch

    from lens.models.architecture import forward_arguments, locate
    from lens.models.hidden_states import CaptureJournal, capture, capture_sets
    from lens.models.tokenization import encode, pad
    from tests.helpers import tiny

    model = tiny.model(
        "llama", hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=blocks,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    texts = [f"{i}: " + "words that say something, " * 2 for i in range(rows)]
    tokenizer = tiny.tokenizer()
    locate(model)
    encoded = sorted(encode(tokenizer, texts), key=lambda row: len(row.ids))
    batches = [pad(encoded[i : i + 8]) for i in range(0, rows, 8)]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                tensors = {
                    "input_ids": batch.input_ids,
                    "attention_mask": batch.attention_mask,
                    "position_ids": batch.position_ids,
                }
                model.base_model(**forward_arguments(model, tensors))

    def captured() -> None:
        capture(model, tokenizer, texts, batch_size=8)

    def journalled() -> None:
        with tempfile.TemporaryDirectory(prefix="lens-bench-") as folder:
            journal = CaptureJournal(Path(folder) / "work")
            capture_sets(model, tokenizer, {"": texts}, batch_size=8, journal=journal)

    mine, safe, theirs = there_and_back((captured, journalled, bare), turns=6)
    tokens = sum(len(row.ids) for row in encoded)
    what = (
        f"{rows} rows, {tokens} tokens, {blocks} blocks, {blocks + 1} sites, medians of 6 turns, "
        "tokenizing and pooling included"
    )
    for kind, seconds in (("capture", mine), ("capture that can be resumed", safe)):
        name = f"{kind}, width {width}"
        ratio = statistics.median(a / b for a, b in zip(seconds, theirs, strict=True))
        took, bare_took = (statistics.median(times) * 1e3 for times in (seconds, theirs))
        detail = f"{took:.0f} ms against {bare_took:.0f} ms: {what}"
        yield Row(name, "bare forward without head", ratio, f"<= {OVERHEAD}", detail)


def there_and_back(actions: tuple[Callable[[], None], ...], *, turns: int) -> list[list[float]]:
    """Mean seconds of each action in each turn, in which all run forwards and then backwards.

    Two equal sides differ by several per cent from one second to the next on a shared machine;
    a drift within a turn slows all of them alike.
    """
    for action in actions:
        action()
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(turns):
        spent = [0.0] * len(actions)
        order = range(len(actions))
        for i in (*order, *reversed(order)):
            started = time.perf_counter()
            actions[i]()
            spent[i] += (time.perf_counter() - started) / 2
        for seconds, one in zip(times, spent, strict=True):
            seconds.append(one)
    return times


def memory() -> Iterator[Row]:
    """Peak memory of a probe that holds one block at a time, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="lens-bench-") as folder:
        child("tests.bench.capture_side", folder, "write")
        found = child("tests.bench.capture_side", folder)
    allowed = 1.5 * found["block"] + found["spill"]
    detail = (
        f"peak {found['peak'] / 1e9:.2f} GB, {found['start'] / 1e9:.2f} GB of it before loading; "
        f"{found['disk'] / 1e9:.2f} GB on disk, a block {found['block'] / 1e6:.0f} MB, states "
        f"between blocks {found['spill'] / 1e6:.1f} MB, {found['seconds']:.0f} s"
    )
    grown = (found["peak"] - found["start"]) / allowed
    yield Row("layer by layer, memory above start", "1.5 blocks + spill", grown, "<= 1", detail)
    peak = found["peak"] / 2e9
    yield Row("layer by layer, peak memory", "2 GB", peak, "<= 1", detail)
