"""Time to ``import lens`` and to ``lens --help``, against their limits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tests.bench.common import Row, best_of

_IMPORT = "import time; t = time.perf_counter(); import lens; print(time.perf_counter() - t)"
_HELP = "import sys; sys.argv = ['lens', '--help']; from lens.cli.app import main; main()"


def _import_seconds() -> float:
    def once() -> float:
        out = subprocess.run(
            [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True
        )
        return float(out.stdout)

    return sorted(once() for _ in range(7))[3]


def run() -> Iterator[Row]:
    """Yield the two rows; ratio is time over limit."""
    seconds = _import_seconds()
    yield Row("import lens", "150 ms", seconds / 0.150, "<= 1", f"{seconds * 1e3:.1f} ms")

    def show_help() -> None:
        subprocess.run([sys.executable, "-c", _HELP], capture_output=True, check=True)

    seconds = best_of(show_help, repeat=7)
    detail = f"{seconds * 1e3:.0f} ms, interpreter start included"
    yield Row("lens --help", "300 ms", seconds / 0.300, "<= 1", detail)
