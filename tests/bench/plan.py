"""What `lens.planning` foretells of a training run, against the real run.

Random-weight Llamas in float32, 7 languages, 8 prompts of 64 tokens, four steps of whole batches
or of one prompt at a time. Plan, run and plan again, each in a process of its own; times of the
two plans are averaged, since a shared machine changes its speed. Memory is VmHWM beyond that of a
process that has trained a tiny model. At the end, the plan of an 8-billion configuration.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lens.planning import Rates, plan_training
from lens.planning.showing import duration
from tests.bench.common import Row, child

MODULE = "tests.bench.plan_side"
# blocks, width, trained blocks, prompts in a pass, low_memory
CASES = ((12, 512, 2, 8, 1), (12, 512, 4, 8, 0), (24, 768, 2, 8, 1), (24, 768, 4, 1, 1))
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
    return Row(name, rival, ratio, "<= 1.15", f"{detail}, ratio {planned / measured:.2f}")
