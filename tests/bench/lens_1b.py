"""A 25-step run of the published recipe on a random-weight model of 1.1 billion parameters.

Llama type, bfloat16: 22 blocks of width 2048, 32 heads over 4 key-value heads, 5632 inside, 32,000
words; the top 2 blocks are trained by ``lens-paper`` on 200 parallel prompts in 7 languages, 16 to
128 tokens each, micro-batch 1, 8 prompts a step. Every side runs in a process of its own:

- ``lens``, ``lens-lora``: `lens.train` from loading to the last step. The second finds the states
  that the first cached; the time to make them is added to its own.
- ``published``, ``published-lora``: two models, one forward pass each per language and prompt,
  with logits. One step is measured, and scaled to 25.
"""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

from tests.bench.common import Row, child

MODULE = "tests.bench.lens_1b_side"
STEPS = 25


def run() -> Iterator[Row]:
    """Yield total time and peak memory, whole blocks and LoRA."""
    with TemporaryDirectory() as folder:
        child(MODULE, "write", folder)
        made = 0.0
        for kind in ("", "-lora"):
            ours = child(MODULE, f"lens{kind}", folder)
            theirs = child(MODULE, f"published{kind}", folder)
            made = made or ours["caching"]
            yield from _rows("LoRA" if kind else "whole blocks", ours, theirs, made)


def _rows(
    kind: str, ours: dict[str, float], theirs: dict[str, float], made: float
) -> Iterator[Row]:
    name, rival = f"1.1 B run of {STEPS} steps, {kind}", "two-model loop, one step, scaled"
    mine = ours["loading"] + made + ours["training"]
    other = theirs["loading"] + STEPS * theirs["step"]
    step = ours["training"] / STEPS
    detail = (
        f"{mine:.0f} s (caching {made:.0f} s, then {step:.1f} s a step) against "
        f"{other:.0f} s ({theirs['step']:.1f} s a step)"
    )
    yield Row(name, rival, other / mine, ">= 1", detail)
    rival = f"two-model loop, {theirs['step'] / step:.1f} x"
    detail = f"{ours['peak'] / 1e9:.2f} GB against {theirs['peak'] / 1e9:.2f} GB"
    yield Row(f"its peak memory, {kind}", rival, ours["peak"] / theirs["peak"], "<= 0.6", detail)
