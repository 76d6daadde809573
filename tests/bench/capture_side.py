"""Probe a checkpoint of 6 GB layer by layer: ``python -m tests.bench.capture_side FOLDER``.

With a second argument the checkpoint is made, of random weights; the caller removes it. Prints
JSON: bytes on disk, of a block and of the states between blocks; peak and starting memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from lens.models.architecture import locate
from lens.models.loading import load
from lens.space.probe import probe
from tests.helpers import tiny

BLOCKS = 15
SIZES = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
    "num_key_value_heads": 8, "num_hidden_layers": BLOCKS, "vocab_size": 4096,
    "max_position_embeddings": 256,
}  # fmt: skip
ROWS = {
    "en": ["red", "a bird", "we eat", "rain"],
    "es": ["rojo", "un ave", "comemos", "lluvia"],
}


def write(folder: Path) -> int:
    """Write a checkpoint, one file a block, all blocks of the same random numbers."""
    config = transformers.LlamaConfig(**SIZES)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.float32
    config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        shape = transformers.AutoModelForCausalLM.from_config(config)
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in shape.named_parameters():
        parts = name.split(".")
        key = parts[2] if "layers" in parts else "rest"
        groups.setdefault(key, {})[name] = tuple(parameter.shape)
    weight_map = {}
    most = max(sum(int(np.prod(s)) for s in shapes.values()) for shapes in groups.values())
    numbers = np.random.default_rng(0).standard_normal(most, np.float32)
    numbers *= 0.02
    for key, shapes in groups.items():
        file = f"model-{key}.safetensors"
        weight_map.update(dict.fromkeys(shapes, file))
        write_file(folder / file, shapes, numbers)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_file(path: Path, shapes: dict[str, tuple[int, ...]], numbers: np.ndarray) -> None:
    """Write float32 tensors of these shapes, filled from the same numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + int(np.prod(shape)) * 4
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        numbers[: at // 4].tofile(file)


def status(field: str) -> int:
    """Bytes that the system says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def main(folder: Path) -> None:
    """Make the checkpoint where there is none, in a process of its own, then probe it."""
    with tempfile.TemporaryDirectory(prefix="lens-bench-") as small:  # loads the libraries
        tiny.model("llama").save_pretrained(small)
        tiny.tokenizer().save_pretrained(small)
        probe(*load(small, layer_by_layer=True), ROWS, pivot="en")
    start = status("VmHWM")
    disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    began = time.perf_counter()
    model, tokenizer = load(folder, layer_by_layer=True)
    probe(model, tokenizer, ROWS, pivot="en")
    seconds = time.perf_counter() - began
    parts = locate(model)
    tokens = sum(len(tokenizer(row)["input_ids"]) for rows in ROWS.values() for row in rows)
    found = {
        "disk": disk,
        "block": 4 * sum(p.numel() for p in parts.blocks[0].parameters()),
        "spill": 2 * tokens * parts.width * 4,
        "start": start,
        "peak": status("VmHWM"),
        "seconds": seconds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 2:  # what is in memory while it is made must not count
        write(Path(sys.argv[1]))
        print("{}")
    else:
        main(Path(sys.argv[1]))
