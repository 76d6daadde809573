"""FLOPs and memory of what real tensors do, for plans to be compared with."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


@dataclass
class Work:
    """FLOPs, and most bytes of new tensors alive at one time."""

    flops: int = 0
    peak: int = 0


@contextmanager
def observed() -> Iterator[Work]:
    """Count what is done inside."""
    work = Work()
    alive: dict[int, Any] = {}
    now = 0

    def note(storage: Any, size: int) -> None:
        nonlocal now

        def gone(_reference: Any) -> None:
            nonlocal now
            now -= size
            alive.pop(key, None)

        key = id(storage)
        if key not in alive:
            alive[key] = weakref.ref(storage, gone)
            now += size

    def storages(values: Any) -> Iterator[Any]:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                yield tensor.untyped_storage()

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            for storage in storages((args, kwargs)):
                note(storage, 0)  # was there before: a weight, an input
            out = function(*args, **(kwargs or {}))
            for storage in storages(out):
                note(storage, storage.nbytes())
            work.peak = max(work.peak, now)
            return out

    ops = torch.ops.aten
    attention = {  # on a CPU, which torch's own table leaves out
        ops._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_a, **_k: sdpa_flop_count(
            q, k, v
        ),
        ops._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_a, **_k: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with Watching(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
        yield work
    work.flops = int(counter.get_total_flops())
