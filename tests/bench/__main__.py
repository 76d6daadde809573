"""Run all benchmarks: ``python -m tests.bench [NAME…] [--out bench.json]``."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import import_module
from pathlib import Path

from lens.utils.files import write_text

BENCHMARKS = (
    "startup",
    "subspace_fit",
    "resample",
    "inspect",
    "mexa",
    "losses",
    "lape_count",
    "kernels",
    "moments",
    "weights",
    "capture",
    "merge",
    "lora",
    "lens_step",
    "plan",
)
LONG = ("lens_1b",)  # a quarter of an hour: run only when they are named


def main() -> None:
    """Run the benchmarks named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS + LONG))
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    rows = []
    print(f"{'benchmark':<46} {'rival':<44} {'ratio':>9} {'goal':>9}  met")
    for name in arguments.names or BENCHMARKS:
        for row in import_module(f"tests.bench.{name}").run():
            rows.append(row)
            met = "yes" if row.met else "NO"
            print(f"{row.name:<46} {row.rival:<44} {row.ratio:>9.3g} {row.goal:>9}  {met}")
            print(f"    {row.detail}", flush=True)
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    result = {"machine": machine, "rows": [row.as_dict() for row in rows]}
    write_text(arguments.out, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
