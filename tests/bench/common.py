"""What every benchmark shares: a row of the table, a timer, and a measured child process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np


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
    *actions: Callable[[], object], turns: int = 5, each: int = 3, settle: float = 0.15
) -> list[float]:
    """Median seconds of each action, taken in turns so that a busy machine slows all alike.

    A turn starts with ``settle`` seconds that are not counted: the threads of the action before,
    which OpenBLAS and OpenMP let spin for a while, would hold a core.
    """
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(turns):
        for action, seconds in zip(actions, times, strict=True):
            started = now = time.perf_counter()
            done = 0
            while done < 1 or now - started < settle:
                action()
                done, now = done + 1, time.perf_counter()
            for _ in range(each):
                started = time.perf_counter()
                action()
                seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in times]


def memcpy_of(moved: int) -> Callable[[], None]:
    """Return an action that copies half of ``moved`` bytes: as many are read as written."""
    source = np.ones(moved // 2, np.uint8)
    target = np.zeros_like(source)
    return lambda: np.copyto(target, source)


def against_copy(name: str, action: Callable[[], object], moved: int, goal: float) -> Row:
    """Bandwidth of ``action``, which reads and writes ``moved`` bytes, over that of a copy."""
    mine, theirs = side_by_side(action, memcpy_of(moved), turns=7, each=1, settle=0)
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


# Starts a command from a small process: the peak memory of a child, as the kernel counts it,
# includes the pages of the process that forked it.
_LAUNCH = """
import json, os, subprocess, sys, time
started = time.perf_counter()
run = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(run.pid, 0)
seconds = time.perf_counter() - started
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, used.ru_maxrss / 1024]))
"""


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MB (2**20 bytes) of a command, started from a small process."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, *command], stdout=subprocess.PIPE, check=True
    )
    code, seconds, peak = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {code}")
    return seconds, peak
