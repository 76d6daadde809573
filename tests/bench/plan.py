"""Plans of `lens.planning` for a training run and a probe, against the real ones.

Random-weight Llamas in float32, 7 languages, 8 prompts of 64 tokens, four steps of whole batches
or of one prompt at a time. Plan, run and plan again, each in a process of its own; times of the
two plans are averaged, since a shared machine changes its speed. Memory is VmHWM beyond that of a
process that has trained a tiny model. Probes: 2 languages, 40 rows of 48 tokens, with a journal,
beside a process that has probed a tiny model. At the end, the plan of an 8-billion configuration.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lens.planning.plan import plan_training
from lens.planning.resources import Rates
from lens.report.console import duration
from tests.bench.common import Row, child

MODULE = "tests.bench.plan_side"
# blocks, width, trained blocks, prompts in a pass, low_memory
CASES = ((12, 512, 2, 8, 1), (12, 512, 4, 8, 0), (24, 768, 2, 8, 1), (24, 768, 4, 1, 1))
PROBED = ((12, 512), (24, 768))  # blocks, width
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    "dtype": "bfloat16",
}  # fmt: skip


def run() -> Iterator[Row]:
    """Yield ratios of planned to measured, the larger over the smaller."""
    for case in CASES:
        yield from compared(*case)
    for blocks, width in PROBED:
        with tempfile.TemporaryDirectory() as folder:
            child(MODULE, "write", folder, str(blocks), str(width))
            for layer_by_layer in (False, True):
                yield from probed(folder, f"{blocks} × {width}", layer_by_layer=layer_by_layer)
    yield from large()


def compared(blocks: int, width: int, k: int, micro: int, low_memory: int) -> Iterator[Row]:
    """Compare plan and run of one model and band: memory, caching, steps."""
    with tempfile.TemporaryDirectory() as folder:
        child(MODULE, "write", folder, str(blocks), str(width))
        how = (folder, str(k), str(micro), str(low_memory))
        before = child(MODULE, "planned", *how)
        real = child(MODULE, "real", *how)
        after = child(MODULE, "planned", *how)
    kept = "low memory" if low_memory else "kept in memory"
    name = f"plan, {blocks} × {width}, K {k}, {micro} a pass, {kept}"
    planned = before["peak"]
    detail = f"{planned / 1e6:.0f} MB planned, {real['peak'] / 1e6:.0f} MB measured"
    yield _row(name, "peak memory of the run", planned, real["peak"], detail)
    for part in ("cache", "steps"):
        guess = (before[part] + after[part]) / 2
        detail = f"{guess:.2f} s planned ({before[part]:.2f}, {after[part]:.2f}), "
        detail += f"{real[part]:.2f} s measured"
        yield _row(name, f"time of the run: {part}", guess, real[part], detail)


def probed(folder: str, size: str, *, layer_by_layer: bool) -> Iterator[Row]:
    """Compare plan and run of a probe: memory and time."""
    how = (folder, str(int(layer_by_layer)))
    before = child(MODULE, "probe-planned", *how)
    real = child(MODULE, "probed", *how)
    after = child(MODULE, "probe-planned", *how)
    name = f"plan of a probe, {size}, {'layer by layer' if layer_by_layer else 'whole'}"
    planned, guess = before["peak"], (before["probe"] + after["probe"]) / 2
    detail = f"{planned / 1e6:.0f} MB planned, {real['peak'] / 1e6:.0f} MB measured"
    yield _row(name, "peak memory of the run", planned, real["peak"], detail)
    detail = f"{guess:.2f} s planned ({before['probe']:.2f}, {after['probe']:.2f}), "
    detail += f"{real['probe']:.2f} s measured"
    yield _row(name, "time of the run", guess, real["probe"], detail)


def large() -> Iterator[Row]:
    """Plan a model of 8 billion from its config; the figure is how long that takes."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(LLAMA_8B), encoding="utf-8")
        prompts = {lang: [[5] * 64] * 300 for lang in ("eng_Latn", "spa_Latn", "swh_Latn")}
        given = Rates(2e11, 2e11, 2e10)
        plan = plan_training(config, prompts, low_memory=True, rates=given)
        plan = plan_training(config, prompts, low_memory=True, rates=given)
    detail = f"peak {plan.peak / 1e9:.2f} GB, {duration(plan.time or 0)} at 200 GFLOP/s"
    yield Row("plan of an 8 billion config, without its weights", "2 s", plan.seconds / 2, "<= 1",
              f"{plan.seconds:.2f} s; {detail}")  # fmt: skip


def _row(name: str, rival: str, planned: float, measured: float, detail: str) -> Row:
    ratio = max(planned / measured, measured / planned)
    return Row(name, rival, ratio, "<= 1.43", f"{detail}, ratio {planned / measured:.2f}")
