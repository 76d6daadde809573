"""Verify a merged checkpoint: make tensors again from their sources and compare every byte."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens.arrays import to_dict
from lens.checksums import checksum
from lens.errors import InputError, VerificationError
from lens.interrupting import stop_requests
from lens.maec import record
from lens.maec.config import parse_config
from lens.maec.journal import Checking
from lens.maec.planning import MergePlan, plan_merge
from lens.maec.shards import ShardFiles, lay_out
from lens.maec.stream import Stream
from lens.maec.targets import SLICE, Target

_KINDS = {"config": dict, "sources": dict, "facts": dict, "checksums": dict, "shard_size": int}
"""What a record holds, and as what."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared; everything was equal.

    Attributes
    ----------
    tensors, of : int
        Tensors made again, and tensors there are.
    slices : int
        Slices made again.
    """

    tensors: int
    of: int
    slices: int

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self)


def verify(
    folder: str | Path,
    *,
    sample: int | None = 8,
    seed: int = 0,
    max_memory: int | str = "1GiB",
) -> Verification:
    """Make tensors of a merged checkpoint again and compare them byte by byte.

    Parameters
    ----------
    folder : path
        What `merge` wrote; its sources must still be where they were.
    sample : int or None
        How many tensors, drawn at random; None for all of them, and for what was found out before
        the first (thresholds, cosines) as well.
    seed : int
        Of the draw.
    max_memory : int or str
        Bytes of memory for everything together.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        If it is no merge of this version, or a source is missing.
    VerificationError
        If a source is not the one that was merged, a file was changed, or a tensor comes out
        otherwise; the message names them.
    """
    folder = Path(folder)
    known = _read(folder)
    plan = plan_merge(parse_config(known["config"]), max_memory=max_memory, fetch=True)
    try:
        plan.check()
        _compare_sources(plan, known["sources"])
        shards = lay_out(plan.targets, known["shard_size"])
        try:
            files = ShardFiles(folder, shards, create=False, writable=False)
        except InputError as error:
            raise VerificationError(str(error)) from None
        with stop_requests("slice") as stop:
            try:
                return _compare(plan, Stream(plan, stop), files, known, sample, seed)
            finally:
                files.close()
    finally:
        plan.files.close()


def _read(folder: Path) -> dict[str, Any]:
    path = folder / record.REPRODUCE
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        right = known["schema"] == record.SCHEMA and known["slice_elements"] == SLICE
        kinds = {key: type(known[key]) for key in _KINDS} if right else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        kinds = {}
    if kinds != _KINDS:
        raise InputError(
            f"{path} is not there, damaged or of another version; verify takes what merge wrote"
        )
    return known


def _compare_sources(plan: MergePlan, known: Mapping[str, Any]) -> None:
    """Refuse sources with other headers or sizes; times may change when files are copied."""

    def lasting(about: Mapping[str, Any]) -> dict[str, Any]:
        return {
            file: {key: value for key, value in facts.items() if key != "modified_ns"}
            for file, facts in about.items()
        }

    changed = [
        source.reference
        for source in plan.sources
        if lasting(source.identity()) != lasting(known.get(source.reference) or {})
    ]
    if changed:
        raise VerificationError(f"{', '.join(changed)}: not the files that were merged")


def _compare(
    plan: MergePlan,
    stream: Stream,
    files: ShardFiles,
    known: Mapping[str, Any],
    sample: int | None,
    seed: int,
) -> Verification:
    chosen = list(plan.targets)
    if sample is not None and sample < len(chosen):
        drawn = set(random.Random(seed).sample(range(len(chosen)), sample))
        chosen = [target for i, target in enumerate(chosen) if i in drawn]
    facts = known["facts"]
    if sample is None:
        again = json.loads(json.dumps(plan.method.prepare(stream, plan.targets)))
        if again != facts:
            different = [key for key in facts if again.get(key) != facts[key]]
            raise VerificationError(
                f"found out anew, {', '.join(different)} differ from the record"
            )
    damaged = [
        target.name
        for target in chosen
        if _checksum(files, target) != known["checksums"].get(target.name)
    ]
    if damaged:
        raise VerificationError(f"changed since the merge: tensors {', '.join(damaged[:5])}")
    sink = Checking(files)
    for _ in stream.map(plan.method.make, chosen, whole=plan.method.whole, sink=sink, facts=facts,
                        label="Verifying"):  # fmt: skip
        pass
    if sink.differing:
        names = ", ".join(list(sink.differing)[:5])
        raise VerificationError(f"made again, {len(sink.differing)} tensors differ: {names}")
    return Verification(len(chosen), len(plan.targets), sink.slices)


def _checksum(files: ShardFiles, target: Target) -> str:
    return record.checksum_of([checksum(files.read(target, cut)) for cut in target.cuts])
