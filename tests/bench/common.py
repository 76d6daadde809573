"""What every benchmark shares: a row of the table, a timer, and a measured child process."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``bench.json``.

    ``ratio`` is how many times better than the rival (or the measured value over the limit, where
    ``goal`` says "<="); ``detail`` gives the two absolute figures.
    """

    name: str
    rival: str
    ratio: float
    goal: str
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the ratio satisfies the goal."""
        relation, bound = self.goal.split()
        return self.ratio >= float(bound) if relation == ">=" else self.ratio <= float(bound)

    def as_dict(self) -> dict[str, object]:
        """Row as JSON."""
        return asdict(self) | {"met": self.met}


def best_of(action: Callable[[], object], *, repeat: int = 5, warmup: int = 1) -> float:
    """Median seconds of ``repeat`` runs after ``warmup`` runs."""
    for _ in range(warmup):
        action()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def side_by_side(
    ours: Callable[[], object], theirs: Callable[[], object], *, repeat: int = 5, warmup: int = 1
) -> tuple[float, float]:
    """Median seconds of both, taken in turns so that a noisy machine is noisy to both."""
    for _ in range(warmup):
        ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for action, seconds in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def against_copy(name: str, action: Callable[[], object], moved: int, goal: float) -> Row:
    """Bandwidth of ``action``, which reads and writes ``moved`` bytes, over that of memmove.

    The copy reads half as many bytes and writes the other half.
    """
    import numpy as np

    source, target = np.ones((2, moved // 2), np.uint8)

    def copy() -> None:
        ctypes.memmove(target.ctypes.data, source.ctypes.data, moved // 2)

    mine, theirs = side_by_side(action, copy, repeat=7)
    detail = f"{moved / mine / 1e9:.1f} GB/s against {moved / theirs / 1e9:.1f} GB/s, one thread"
    return Row(name, f"memcpy, {moved >> 20} MiB moved", theirs / mine, f">= {goal}", detail)


def child(module: str, *arguments: str) -> dict[str, float]:
    """Run ``python -m module arguments`` alone and return the JSON object it prints last.

    Peak memory only grows within a process, so each side of a comparison gets its own.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
