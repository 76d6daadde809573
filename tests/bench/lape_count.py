"""Counting positive gates of (4096, 14336) bfloat16, against torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lens.neurons import Counts
from tests.bench.common import Row, side_by_side

TOKENS, NEURONS = 4096, 14336


def run() -> Iterator[Row]:
    """Yield a row for one thread and for two."""
    gates = torch.randn(TOKENS, NEURONS, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)

        def ours(threads: int = threads) -> Counts:
            counts = Counts(NEURONS)
            counts.update(gates, n_threads=threads)
            return counts

        if (ours().result().positive != (gates > 0).sum(0).numpy()).any():
            raise RuntimeError("the counts differ from those of torch")
        mine, theirs = side_by_side(ours, lambda: (gates > 0).sum(0), turns=5, each=1)
        bytes_read = gates.numel() * gates.element_size()
        yield Row(
            f"LAPE count, ({TOKENS}, {NEURONS}) bfloat16",
            f"torch (x > 0).sum(0), {threads} thread{'s' * (threads > 1)} each",
            theirs / mine,
            ">= 2",
            f"{mine * 1e3:.1f} ms ({bytes_read / mine / 1e9:.1f} GB/s) against "
            f"{theirs * 1e3:.1f} ms",
        )
    torch.set_num_threads(before)
