"""One Lens optimizer step against the published loop with two whole models.

24 random-weight blocks of width 768, the top 2 trained, 7 languages, 64 tokens a prompt, 8 prompts
a step, float32. Every side runs in a process of its own, and loads one checkpoint. Sides:

- ``published``: two models, one forward pass each per language and prompt, with logits.
- ``batched``: two models, all languages of a prompt in one pass, no logits.
- ``lens``: `lens.LensTrainer`, the same batching as ``batched``.
- ``lens-in-memory``: the same over a model that was made in memory instead of loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

from tests.bench.common import Row, child

MODULE = "tests.bench.lens_step_side"
SIDES = ("published", "batched", "lens", "lens-in-memory")


def run() -> Iterator[Row]:
    """Yield speed as used, speed like for like, peak memory, and agreement of the losses."""
    with TemporaryDirectory() as folder:
        child(MODULE, "write", folder)
        sides = {side: child(MODULE, side, folder) for side in SIDES}
    ours, name = sides["lens"], "Lens step, 24 blocks, top 2"
    for side, what, goal in (
        ("published", "two-model loop, as used", ">= 12"),
        ("batched", "two-model loop, like for like", ">= 8"),
    ):
        theirs = sides[side]
        detail = f"{ours['seconds']:.2f} s against {theirs['seconds']:.2f} s a step"
        yield Row(name, what, theirs["seconds"] / ours["seconds"], goal, detail)
    yield _memory("Lens peak memory", ours, sides["published"], "<= 0.45")
    held = sides["lens-in-memory"]
    yield _memory("the same, model made in memory", held, sides["published"], "<= 0.6")
    reference = sides["published"]["loss"]
    gap = max(abs(side["loss"] - reference) / reference for side in sides.values())
    losses = ", ".join(f"{side} {found['loss']:.7f}" for side, found in sides.items())
    yield Row("Lens loss of the first step", "relative difference", gap, "<= 1e-5", losses)


def _memory(name: str, ours: dict[str, float], theirs: dict[str, float], goal: str) -> Row:
    """Peak against peak; the detail also says what is left without the libraries' own."""
    mine, other = ours["peak"], theirs["peak"]
    without = (mine - ours["libraries"]) / (other - theirs["libraries"])
    detail = (
        f"{mine / 1e9:.2f} GB against {other / 1e9:.2f} GB; {without:.2f} without the "
        f"{ours['libraries'] / 1e9:.2f} GB that the libraries take once imported"
    )
    return Row(name, "two-model loop, as used", mine / other, goal, detail)
