"""Run all benchmarks: ``python -m tests.bench [NAME…] [--out bench.json]``."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import import_module
from pathlib import Path

from lens.utils.files import write_text
from tests.bench.common import Row

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
    rows: list[Row] = []
    print(f"{'benchmark':<46} {'rival':<44} {'ratio':>9} {'goal':>9}  met")
    for name in arguments.names or BENCHMARKS:
        for row in import_module(f"tests.bench.{name}").run():
            rows.append(row)
            met = "yes" if row.met else "NO"
            print(f"{row.name:<46} {row.rival:<44} {row.ratio:>9.3g} {row.goal:>9}  {met}")
            print(f"    {row.detail}", flush=True)
    write_text(arguments.out, json.dumps({"rows": merged(arguments.out, rows)}, indent=1))


def merged(path: Path, rows: list[Row]) -> list[dict[str, object]]:
    """Rows of an earlier file, with those measured now in their place; each names its machine."""
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    found = {(row["name"], row["rival"]): row for row in earlier}
    found |= {(row.name, row.rival): row.as_dict() | {"machine": machine} for row in rows}
    return list(found.values())


if __name__ == "__main__":
    main()
