"""Merges of 0.27 B parameters against mergekit and against `cat`; peak memory at any size.

``python -m tests.bench.merge big`` measures memory at 8 GB and more for each checkpoint (sparse
inputs, about 9 GB of disk for the result); ``python -m tests.bench.merge plans`` sets the time that
plans tell beside the time that merges take, method by method.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import yaml

from tests.bench.common import Row, timed

ROOT = Path(__file__).parents[2]
WIDTH, INNER, VOCABULARY, BLOCKS = 1024, 4096, 32_000, 14
TURNS = 7
MODELS = 3  # and a base
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
    "intermediate_size": INNER, "vocab_size": VOCABULARY, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": True,
    "dtype": "bfloat16",
}  # fmt: skip


def shapes(blocks: int = BLOCKS) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama-type model."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for n in range(blocks):
        block = {f"self_attn.{p}_proj": (WIDTH, WIDTH) for p in "qkvo"}
        block |= {"mlp.up_proj": (INNER, WIDTH), "mlp.gate_proj": (INNER, WIDTH),
                  "mlp.down_proj": (WIDTH, INNER), "input_layernorm": (WIDTH,),
                  "post_attention_layernorm": (WIDTH,)}  # fmt: skip
        found |= {f"model.layers.{n}.{name}.weight": shape for name, shape in block.items()}
    return found | {"model.norm.weight": (WIDTH,)}


def checkpoint(folder: Path, *, seed: int, blocks: int = BLOCKS, sparse: bool = False) -> Path:
    """Write a checkpoint in bfloat16: random weights, or a file of holes."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # any will do; both programs copy them
        shutil.copyfile(ROOT / "lens" / "demo" / "checkpoints" / "base" / name, folder / name)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": blocks}))
    header, end = {}, 0
    for name, shape in shapes(blocks).items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        rng = np.random.default_rng(seed)
        block = rng.standard_normal(1 << 22, np.float32)
        bits = (block.view(np.uint32) >> 16).astype(np.uint16)
        for at in range(0, 0 if sparse else end, bits.nbytes):
            file.write(np.roll(bits, at // 997).tobytes()[: end - at])
    os.truncate(path, 8 + len(raw) + end)
    return folder


def recipe(at: Path, method: str = "task_arithmetic") -> dict[str, object]:
    """Base and three models, as a YAML file for both programs."""
    models = [
        {"model": str(at / f"m{i}"), "parameters": {"weight": 0.3}} for i in range(1, MODELS + 1)
    ]
    return {"merge_method": method, "base_model": str(at / "m0"), "models": models,
            "dtype": "float32", "out_dtype": "bfloat16"}  # fmt: skip


def ours(at: Path) -> tuple[float, float]:
    """`lens merge` from the shell."""
    shutil.rmtree(at / "ours", ignore_errors=True)
    command = [sys.executable, "-m", "lens", "merge", "-C", str(at / "merge.yaml")]
    return timed([*command, "--out", str(at / "ours"), "--quiet"])


def theirs(at: Path) -> tuple[float, float]:
    """`mergekit-yaml` from the shell."""
    shutil.rmtree(at / "theirs", ignore_errors=True)
    code = (
        "import warnings; warnings.simplefilter('ignore'); "
        "from mergekit.scripts.run_yaml import main; main()"
    )
    command = [sys.executable, "-c", code, str(at / "merge.yaml"), str(at / "theirs"), "--quiet"]
    return timed(command)


def cat(at: Path) -> tuple[float, float]:
    """Read four checkpoints and write one, and wait until it is on the disk, as we do."""
    files = " ".join(str(at / f"m{i}" / "model.safetensors") for i in range(MODELS + 1))
    first, out = at / "m0" / "model.safetensors", at / "cat.out"
    out.unlink(missing_ok=True)
    rest = files.partition(" ")[2]
    return timed(["sh", "-c", f"cat {rest} > /dev/null; cat {first} > {out}; sync {out}"])


def in_turns(*sides: Callable[[], tuple[float, float]]) -> list[tuple[float, float]]:
    """Median seconds and largest peak of each side, in turns, after one that is not counted."""
    found: list[list[tuple[float, float]]] = [[] for _ in sides]
    for turn in range(TURNS + 1):
        for side, seen in zip(sides, found, strict=True):
            measured = side()
            if turn:
                seen.append(measured)
    return [(float(np.median([s for s, _ in x])), max(m for _, m in x)) for x in found]


def run() -> Iterator[Row]:
    """Yield all rows."""
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        for i in range(MODELS + 1):
            checkpoint(at / f"m{i}", seed=i)
        (at / "merge.yaml").write_text(yaml.safe_dump(recipe(at)))
        os.sync()  # what was just made is not to be written while others are timed
        what = "task arithmetic, 4 × 0.27 B bfloat16"
        (mine, memory), (copy, _) = in_turns(lambda: ours(at), lambda: cat(at))
        detail = f"{mine:.2f} s against {copy:.2f} s, both until the result is on the disk"
        yield Row(f"merge: {what}", "cat of the same bytes", mine / copy, "<= 1.5", detail)
        detail = f"{memory:.0f} MB resident at most"
        yield Row(f"merge: {what}, memory", "300 MB", memory / 300, "<= 1", detail)
        if find_spec("mergekit") is not None:
            (mine, _), (rival, held) = in_turns(lambda: ours(at), lambda: theirs(at))
            yield Row(f"merge: {what}", "mergekit", rival / mine, ">= 4",
                      f"{mine:.2f} s against {rival:.2f} s and {held:.0f} MB")  # fmt: skip


def memory_at(gigabytes: float) -> None:
    """Print the peak memory of merging sparse checkpoints of one size."""
    per_block = sum(int(np.prod(s)) for n, s in shapes(1).items() if "layers" in n)
    blocks = round(gigabytes * 5e8 / per_block)
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        for i in range(MODELS + 1):
            checkpoint(at / f"m{i}", seed=i, blocks=blocks, sparse=True)
        (at / "merge.yaml").write_text(yaml.safe_dump(recipe(at)))
        size = (at / "m0" / "model.safetensors").stat().st_size
        seconds, memory = ours(at)
        print(f"{size / 1e9:.2f} GB a checkpoint: {memory:.0f} MB resident, {seconds:.1f} s")


def planned() -> None:
    """Print the time of merges by each method, as planned and as it was."""
    from lens.merging.operations import merge
    from lens.merging.plan import plan_merge

    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        base, *others = (str(checkpoint(at / f"m{i}", seed=i)) for i in range(MODELS + 1))
        half = {"weight": 0.3, "density": 0.5, "epsilon": 0.1}
        models = [{"model": other, "parameters": half} for other in others]
        special = {
            "slerp": {"models": models[:1], "parameters": {"t": 0.5}},
            "maec": {"abilities": [{"trained": others[0]}], "languages": [{"model": others[1]}],
                     "parameters": {"k1": 0.2, "k2": 0.8}},
        }  # fmt: skip
        for method in ("task_arithmetic", "slerp", "ties", "dare_ties", "della", "breadcrumbs",
                       "maec"):  # fmt: skip
            config = {"merge_method": method, "base_model": base, "models": models}
            if method in special:
                config = {"merge_method": method, "base_model": base, **special[method]}
            told, started = plan_merge(config).seconds, time.perf_counter()
            merge(config, at / "out", force=True)
            print(f"{method}: planned {told:.1f} s, took {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    if "plans" in sys.argv:
        planned()
        raise SystemExit
    for size in (0.5, 8.5) if "big" in sys.argv else (0.5, 2.0):
        memory_at(size)
