"""Merge, be killed at random moments, resume, and compare with a merge that was left alone.

``python -m tests.helpers.maec_killed FOLDER KILLS`` spreads the kills over several methods and
prints what was seen as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from lens.merging.operations import merge
from tests.helpers import maec_files as files

SHAPES = {f"model.layers.{n}.w.weight": (96, 64) for n in range(24)}
METHODS = ("task_arithmetic", "ties", "dare_ties", "maec")
SLICE = 512


def config(at: Path, method: str) -> dict:
    """A merge of two models into a base."""
    base, *others = (str(at / name) for name in ("base", "a", "b"))
    if method == "maec":
        return {
            "merge_method": "maec", "base_model": base, "parameters": {"k1": 0.2, "k2": 0.5},
            "abilities": [{"trained": others[0]}], "languages": [{"model": others[1]}],
        }  # fmt: skip
    models = [{"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in others]
    return {"merge_method": method, "base_model": base, "models": models}


def forked(work) -> int:
    """Do something in a child process of which nothing else is known."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def run(at: Path, method: str, *, kills: int, rng: random.Random) -> dict:
    """Kill a merge until it was killed ``kills`` times; one that got through begins anew."""
    from lens.merging import tensors

    plain, tensors.SLICE = tensors.SLICE, SLICE
    try:
        base = files.checkpoint(at / "base", shapes=SHAPES)
        for seed, name in enumerate("ab", 1):
            files.checkpoint(at / name, seed=seed, near=base, shapes=SHAPES)
        values, out, left = config(at, method), at / "out", at / "out.unfinished"

        def begin() -> int:
            resume = left.exists()
            return forked(lambda: merge(values, out, resume=resume, force=True))

        started = time.monotonic()
        assert os.waitpid(forked(lambda: merge(values, at / "alone")), 0)[1] == 0
        took = time.monotonic() - started
        want, killed, resumed, same = files.contents(at / "alone"), 0, 0, True
        while killed < kills:
            resumed += left.exists()
            child = begin()
            time.sleep(rng.random() * took)
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)[1]
            killed += os.WIFSIGNALED(ended)
            if not os.WIFSIGNALED(ended):
                same &= ended == 0 and files.contents(out) == want
        assert os.waitpid(begin(), 0)[1] == 0
        same &= files.contents(out) == want and not left.exists()
    finally:
        tensors.SLICE = plain
    return {"method": method, "killed": killed, "resumed": resumed, "same": same}


def main(folder: Path, kills: int) -> None:
    """Spread the kills over the methods."""
    rng = random.Random(0)
    found = []
    for method in METHODS:
        at = folder / method
        at.mkdir(parents=True)
        found.append(run(at, method, kills=kills // len(METHODS), rng=rng))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
