"""Small checkpoints for the tests of merging, written and read without torch."""

import json
from pathlib import Path

import numpy as np

from lens.merging.tensors import as_float32
from lens.models.checkpoint import DTYPES, read_header

SHAPES = {
    "model.embed_tokens.weight": (48, 16),
    **{
        f"model.layers.{n}.{name}": shape
        for n in range(4)
        for name, shape in {
            "input_layernorm.weight": (16,),
            "self_attn.q_proj.weight": (16, 16),
            "mlp.up_proj.weight": (24, 16),
        }.items()
    },
    "model.norm.weight": (16,),
    "lm_head.weight": (48, 16),
}
CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 16, "vocab_size": 48,
          "num_attention_heads": 2, "tie_word_embeddings": False, "dtype": "bfloat16"}  # fmt: skip


def raw_of(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values as the raw bits of a dtype, rounded to nearest even."""
    if dtype != "BF16":
        return np.ascontiguousarray(values, DTYPES[dtype].storage)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_file(path: Path, tensors: dict, *, metadata=None) -> None:
    """Write a safetensors file; tensors are (dtype name, array of raw bits) by name."""
    header, data, end = {"__metadata__": metadata or {"format": "pt"}}, [], 0
    for name, (dtype, array) in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
        data.append(array.tobytes())
    write_raw(path, json.dumps(header).encode(), b"".join(data))


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    """Write a header, whatever it says, and data."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def checkpoint(folder: Path, *, seed=0, near=None, by=0.05, dtype="BF16", config=None, shards=1,
               shapes=SHAPES) -> Path:  # fmt: skip
    """Write a random checkpoint, or one that differs a little from another; return its folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    before = read(near) if near else {}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32)
        values = before[name] + by * values if near else values
        tensors[name] = (dtype, raw_of(values, dtype))
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    names = sorted(tensors)
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for i, part in enumerate(np.array_split(names, shards), 1):
        file = f"model-{i:05d}-of-{shards:05d}.safetensors"
        write_file(folder / file, {str(name): tensors[str(name)] for name in part})
        weight_map |= {str(name): file for name in part}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint in float32."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        for name, stored in read_header(path).tensors.items():
            raw = np.fromfile(path, stored.kind.storage, stored.size, offset=stored.start)
            found[name] = as_float32(raw, stored.kind).reshape(stored.shape)
    return found


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """Largest distance of two arrays of bfloat16 values, in units in the last place."""

    def key(x: np.ndarray) -> np.ndarray:
        bits = (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.int64)
        return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)

    return int(np.abs(key(a) - key(b)).max(initial=0))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {p.name: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def raw_bits(folder: Path) -> dict[str, bytes]:
    """Bytes of every tensor of a checkpoint."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        content = path.read_bytes()
        for name, stored in read_header(path).tensors.items():
            found[name] = content[stored.start : stored.start + stored.nbytes]
    return found
