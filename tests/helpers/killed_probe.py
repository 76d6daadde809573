"""Probe, be killed at random moments, resume, and compare with a probe that was left alone.

Run as a program, since each attempt is a fork that must start before torch has any threads:
``python -m tests.helpers.killed_probe FOLDER KILLS whole|layers``; prints what was seen as JSON.
"""

import json
import os
import sys
from pathlib import Path

import lens
from lens.models.hidden_states import BATCHES, UNIT
from lens.space.space import Space
from tests.helpers import tiny
from tests.helpers.killed import forked, killed_once

ROWS = {
    "en": [f"row {'of words ' * (i % 5)}{i}" for i in range(260)],
    "es": [f"fila {'de texto ' * (i % 7)}{i}" for i in range(260)],
}


def probe(folder, name, by_layer, *, resume=False):
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    space = lens.probe(
        net, tokenizer, ROWS, pivot="en", batch_size=64, layer_by_layer=by_layer,
        keep_states=folder / f"{name}.states", states_dtype="float32",
        work=folder / f"{name}.work", resume=resume,
    )  # fmt: skip
    space.save(folder / f"{name}.safetensors")


def size(work):
    """Something that grows with every batch and unit that is finished."""
    batches = work / BATCHES
    units = list(work.glob(f"*{UNIT}"))
    return (len(units), batches.stat().st_size if batches.exists() else 0)


def main(folder, kills, by_layer):
    work = folder / "killed.work"
    assert os.waitpid(forked(lambda: probe(folder, "alone", by_layer)), 0)[1] == 0
    left = []
    while len(left) < kills:
        child = forked(lambda: probe(folder, "killed", by_layer, resume=True))
        if not killed_once(child, lambda: size(work), within=0.03):
            break
        left.append(size(work))
    if not (folder / "killed.safetensors").exists():
        again = forked(lambda: probe(folder, "killed", by_layer, resume=True))
        assert os.waitpid(again, 0)[1] == 0
    alone, killed = (Space.load(folder / f"{name}.safetensors") for name in ("alone", "killed"))
    files = [(folder / f"{name}.states").glob("*.safetensors") for name in ("alone", "killed")]
    contents = [{file.name: file.read_bytes() for file in found} for found in files]
    found = {
        "left": left,
        "same_space": alone.sha256 == killed.sha256,
        "same_states": contents[0] == contents[1] and len(contents[0]) == 4,
        "work": work.exists(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "layers")
