"""A random-weight checkpoint, the plan of a job on it, or the real job: one of them a process."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lens.models.loading import load
from lens.planning.plan import plan_probing, plan_training
from lens.planning.resources import LIBRARIES
from lens.space.probe import probe
from lens.space.space import Space
from lens.training.config import resolve
from lens.training.trainer import LensTrainer
from tests.helpers import tiny

LANGUAGES = ("eng_Latn", "spa_Latn", "ind_Latn", "swh_Latn", "tur_Latn", "rus_Cyrl", "zho_Hans")
PROMPTS, TOKENS, STEPS = 8, 64, 4
ROWS, WORDS, VOCABULARY = 40, 48, 32_000  # of a probe, in the first two languages


def write(folder: Path, *, blocks: int, width: int) -> None:
    """Write a random-weight Llama in float32 with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words().save_pretrained(folder)


def words() -> Any:
    """A tokenizer with a token for each of as many words as the model has embeddings."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", pad_token="w0")


def settings(k: int, micro: int, *, low_memory: bool) -> dict[str, Any]:
    """What plan and training share."""
    losses = resolve("lens").model_copy(
        update={"steps": STEPS, "micro_batch_size": micro, "learning_rate": 1e-5}
    )
    return {"layers": f"-{k}:", "low_memory": low_memory, "losses": losses}


def prompts(count: int, tokens: int, vocabulary: int) -> dict[str, list[list[int]]]:
    """Random token ids, parallel over languages."""
    rng = np.random.default_rng(0)
    return {lang: rng.integers(3, vocabulary, (count, tokens)).tolist() for lang in LANGUAGES}


def space(width: int) -> Space:
    """A space from random states."""
    rng = np.random.default_rng(1)
    states = {
        lang: rng.normal(size=(20, width)) + rng.normal(size=width) + 2.0 for lang in LANGUAGES
    }
    return Space.from_states({"final": states}, pivot=LANGUAGES[0])


def memory(key: str) -> int:
    """Bytes of ``VmHWM`` or ``VmRSS`` of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def trained(folder: Path, given: dict[str, Any]) -> dict[str, float]:
    """Load and train; seconds of caching and of a step, and the time of a whole run."""
    model, tokenizer = load(folder)
    width, vocabulary = model.config.hidden_size, model.config.vocab_size
    started = time.perf_counter()
    trainer = LensTrainer(
        model, tokenizer, space(width), prompts(PROMPTS, TOKENS, vocabulary),
        layers=given["layers"], low_memory=given["low_memory"],
    )  # fmt: skip
    cached = time.perf_counter() - started
    result = trainer.run(given["losses"])
    return {"cache": cached, "steps": result.seconds}


def real(folder: Path, given: dict[str, Any]) -> dict[str, float]:
    """Measure a real run; memory beyond that of a process that has trained a tiny model."""
    with tempfile.TemporaryDirectory() as place:
        tiny.model("llama", num_hidden_layers=8).save_pretrained(place)
        tiny.tokenizer().save_pretrained(place)
        trained(Path(place), given)
    libraries = memory("VmRSS")
    seconds = trained(folder, given)
    return {**seconds, "libraries": libraries, "peak": memory("VmHWM") - libraries}


def planned(folder: Path, given: dict[str, Any]) -> dict[str, float]:
    """Plan the same run."""
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    plan = plan_training(folder, prompts(PROMPTS, TOKENS, vocabulary), **given)
    seconds = {cost.name: cost.seconds or 0.0 for cost in plan.costs}
    return {**seconds, "peak": plan.peak - LIBRARIES, "seconds": plan.seconds}


def text() -> dict[str, list[str]]:
    """Random words, parallel over two languages."""
    rng = np.random.default_rng(2)
    drawn = rng.integers(1, VOCABULARY, (2, ROWS, WORDS))
    return {
        lang: [" ".join(f"w{i}" for i in row) for row in rows]
        for lang, rows in zip(LANGUAGES, drawn, strict=False)
    }


def probed(folder: Path, rows: dict[str, list[str]], *, layer_by_layer: bool) -> float:
    """Load, probe and save as ``lens probe`` does; seconds of the probe."""
    with tempfile.TemporaryDirectory() as place:
        model, tokenizer = load(folder, layer_by_layer=layer_by_layer)
        started = time.perf_counter()
        found = probe(model, tokenizer, rows, work=Path(place) / "unfinished")
        seconds = time.perf_counter() - started
        found.save(Path(place) / "space.safetensors")
    return seconds


def probe_real(folder: Path, *, layer_by_layer: bool) -> dict[str, float]:
    """Measure a real probe; memory beyond that of a process that has probed a tiny model."""
    with tempfile.TemporaryDirectory() as place:
        tiny.model("llama", num_hidden_layers=8).save_pretrained(place)
        tiny.tokenizer().save_pretrained(place)
        few = {lang: ["one row", "another"] for lang in LANGUAGES[:2]}
        probed(Path(place), few, layer_by_layer=layer_by_layer)
    libraries = memory("VmRSS")
    seconds = probed(folder, text(), layer_by_layer=layer_by_layer)
    return {"probe": seconds, "libraries": libraries, "peak": memory("VmHWM") - libraries}


def probe_planned(folder: Path, *, layer_by_layer: bool) -> dict[str, float]:
    """Plan the same probe."""
    plan = plan_probing(folder, text(), layer_by_layer=layer_by_layer)
    seconds = sum(cost.seconds or 0.0 for cost in plan.costs if cost.name != "read")
    return {"probe": seconds, "peak": plan.peak - LIBRARIES, "seconds": plan.seconds}


def main() -> None:
    """Do what the command line names, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("write", "real", "planned", "probed", "probe-planned"))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "numbers", type=int, nargs="+", help="blocks width, K micro low_memory, or layer_by_layer"
    )
    given = parser.parse_args()
    if given.side.startswith("probe"):
        action = probe_real if given.side == "probed" else probe_planned
        print(json.dumps(action(given.folder, layer_by_layer=bool(given.numbers[0]))))
        return
    first, second, *rest = given.numbers
    if given.side == "write":
        write(given.folder, blocks=first, width=second)
        print("{}")
        return
    shared = settings(first, second, low_memory=bool(rest and rest[0]))
    print(json.dumps((real if given.side == "real" else planned)(given.folder, shared)))


if __name__ == "__main__":
    main()
