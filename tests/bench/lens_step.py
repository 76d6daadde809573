"""One Lens optimizer step against the published loop with two whole models.

24 random-weight blocks of width 768, the top 2 trained, 7 languages, 64 tokens a prompt, 8 prompts
a step, float32. Every side runs in a process of its own. Sides:

- ``published``: two models, one forward pass each per language and prompt, with logits.
- ``batched``: two models, all languages of a prompt in one pass, no logits.
- ``lens``: `lens.LensTrainer`, the same batching as ``batched``.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.common import Row, child

MODULE = "tests.bench.lens_step_side"


def run() -> Iterator[Row]:
    """Yield speed as used, speed like for like, peak memory, and agreement of the losses."""
    sides = {side: child(MODULE, side) for side in ("published", "batched", "lens")}
    ours, name = sides["lens"], "Lens step, 24 blocks, top 2"
    for side, what, goal in (
        ("published", "two-model loop, as used", ">= 10"),
        ("batched", "two-model loop, like for like", ">= 7"),
    ):
        theirs = sides[side]
        detail = f"{ours['seconds']:.2f} s against {theirs['seconds']:.2f} s a step"
        yield Row(name, what, theirs["seconds"] / ours["seconds"], goal, detail)
    peak = sides["published"]["peak"]
    detail = f"{ours['peak'] / 1e9:.2f} GB against {peak / 1e9:.2f} GB"
    yield Row("Lens peak memory", "two-model loop, as used", ours["peak"] / peak, "<= 0.6", detail)
    reference = sides["published"]["loss"]
    gap = max(abs(side["loss"] - reference) / reference for side in sides.values())
    losses = ", ".join(f"{side} {found['loss']:.7f}" for side, found in sides.items())
    yield Row("Lens loss of the first step", "relative difference", gap, "<= 1e-5", losses)
