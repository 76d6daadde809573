"""Benchmarks: a row measured again takes its old place, and memory is that of the command alone."""

import json
import sys

from tests.bench import __main__ as bench
from tests.bench.common import Row, timed


def test_rows_are_merged_by_name(tmp_path):
    path = tmp_path / "bench.json"
    rows = [Row("a", "x", 2.0, ">= 1"), Row("b", "x", 3.0, ">= 1")]
    path.write_text(json.dumps({"rows": bench.merged(path, rows)}))
    again = bench.merged(path, [Row("b", "x", 5.0, ">= 1"), Row("b", "y", 1.0, ">= 1")])
    assert [(row["name"], row["rival"], row["ratio"]) for row in again] == [
        ("a", "x", 2.0), ("b", "x", 5.0), ("b", "y", 1.0)
    ]  # fmt: skip
    assert all(row["machine"]["python"] for row in again)


def test_peak_memory_leaves_out_this_process():
    held = bytearray(300 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    seconds, peak = timed([sys.executable, "-I", "-S", "-c", "pass"])
    assert peak < 100 and seconds > 0
