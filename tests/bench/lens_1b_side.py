"""One side of the 1.1 B benchmark; prints seconds of its parts and peak bytes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import lens
from lens.training.config import PRESETS, Lora
from lens.training.parameters import attach
from tests.bench.lens_step_side import LANGUAGES, Published, make_space, peak

CONFIG = LlamaConfig(
    vocab_size=32_000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    dtype="bfloat16",
)
PROMPTS, BATCH, SHORTEST, LONGEST = 200, 8, 16, 128
LORA = Lora(8)


def write(folder: Path) -> None:
    """Write the checkpoint, one file for each block and one for the rest."""
    CONFIG.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(CONFIG).named_parameters()}
    files: dict[str, list[str]] = {}
    for name in shapes:
        block = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        files.setdefault(f"model-{block}.safetensors", []).append(name)
    generator = torch.Generator().manual_seed(0)
    total = 0
    for file, names in files.items():
        tensors = {name: _weights(shapes[name], generator) for name in names}
        total += sum(t.nbytes for t in tensors.values())
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _weights(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def make_prompts(count: int) -> dict[str, list[list[int]]]:
    """Random token ids; lengths are spread evenly between the shortest and the longest."""
    rng = np.random.default_rng(0)
    found = {}
    for lang in LANGUAGES:
        lengths = rng.integers(SHORTEST, LONGEST + 1, count)
        found[lang] = [rng.integers(5, CONFIG.vocab_size, n).tolist() for n in lengths]
    return found


def load_model(folder: Path) -> Any:
    """The model in evaluation mode, bfloat16."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def of_lens(folder: Path, count: int, lora: Lora | None) -> Iterator[tuple[str, float]]:
    """Train through the public interface; yield seconds of loading, caching and training."""
    started = time.perf_counter()
    model = load_model(folder)
    loaded = time.perf_counter()
    changes = {
        "steps": count // BATCH,
        "batch_size": BATCH,
        "micro_batch_size": 1,
        "learning_rate": 1e-5,
    }
    result = lens.train(
        model,
        None,
        make_space(CONFIG.hidden_size),
        make_prompts(count),
        losses=PRESETS["lens-paper"].model_copy(update=changes),
        lora=lora,
        low_memory=True,
        cache=folder / "states",
    )
    yield "loading", loaded - started
    yield "caching", time.perf_counter() - loaded - result.seconds
    yield "training", result.seconds
    yield "loss", result.log[0]["loss"]


def published(folder: Path, lora: Lora | None) -> Iterator[tuple[str, float]]:
    """Take one step of the two-model loop; yield seconds of loading and of the step."""
    started = time.perf_counter()
    model, frozen = load_model(folder), load_model(folder)
    names: list[str] = []
    if lora is not None:
        top = tuple(f"model.layers.{CONFIG.num_hidden_layers - i}." for i in (1, 2))
        linears = [
            n
            for n, module in model.named_modules()
            if n.startswith(top) and isinstance(module, torch.nn.Linear)
        ]
        names = list(attach(model, linears, lora)[1])
    loop = Published(
        model, frozen, make_prompts(BATCH), make_space(CONFIG.hidden_size), names=names
    )
    loaded = time.perf_counter()
    yield "loading", loaded - started
    yield "loss", loop.step()
    yield "step", time.perf_counter() - loaded


def main() -> None:
    """Measure the side named on the command line, or write the checkpoint they load."""
    parser = argparse.ArgumentParser(description=__doc__)
    sides = ("lens", "lens-lora", "published", "published-lora")
    parser.add_argument("side", choices=("write", *sides))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    given = parser.parse_args()
    lora = LORA if given.side.endswith("-lora") else None
    found: dict[str, float] = {}
    if given.side == "write":
        write(given.folder)
    elif given.side.startswith("lens"):
        found = dict(of_lens(given.folder, given.prompts, lora))
    else:
        found = dict(published(given.folder, lora))
    print(json.dumps(found | {"peak": peak()}))


if __name__ == "__main__":
    main()
