"""Extract an ability: its key neurons and what they changed by, as one small file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lens.arrays import to_dict
from lens.errors import InputError
from lens.interrupting import stop_requests
from lens.io import refuse_existing, to_disk
from lens.maec.config import MergeConfig, parse_config
from lens.maec.extracted import SCHEMA
from lens.maec.methods.maec import Maec
from lens.maec.planning import MergePlan, plan_merge, problems_of_place
from lens.maec.record import identity
from lens.maec.shards import Shard, ShardFiles, head_of
from lens.maec.stream import Stream
from lens.maec.targets import SLICE, Cut, Target
from lens.maec.work import Work

_PARTS = {"values": "F32", "places": "I32", "starts": "I64"}


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was extracted.

    Attributes
    ----------
    out : str
        The file.
    selected, of : int
        Elements of the ability, and of the whole model.
    per_tensor : dict of str to int
        Selected elements of each tensor.
    """

    out: str
    selected: int
    of: int
    per_tensor: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self)


def extract(
    config: MergeConfig | Mapping[str, Any],
    out: str | Path,
    *,
    max_memory: int | str = "1GiB",
    force: bool = False,
) -> Extraction:
    """Write the key neurons of an ability and their changes R(A) to a sparse file.

    R(A) = α(θ_A − θ_o) − β(θ_c − θ_o) on the share k1 of units with the largest |θ' − θ_o|.

    Parameters
    ----------
    config : MergeConfig or mapping
        A merge of method ``maec`` with one ability, ``trained`` and perhaps ``located`` and
        ``pivot``, and k1 below 1; languages are not looked at.
    out : path
        File, which ``extracted`` of an ability in a later merge names.
    max_memory : int or str
        Bytes of memory for everything together.
    force : bool
        Replace ``out``.

    Returns
    -------
    Extraction

    Raises
    ------
    InputError
        If the plan has problems, or the result would not be sparse.

    References
    ----------
    MAEC, arXiv:2410.07825.
    """
    config, out = parse_config(dict(config) if isinstance(config, Mapping) else config), Path(out)
    refuse_existing(out, force=force)
    if out.is_dir():
        raise InputError(f"{out} is a folder; expected the name of a file")
    config = config.model_copy(update={"languages": ()})
    plan = plan_merge(config, max_memory=max_memory, fetch=True)
    try:
        _check(plan, out)
        with stop_requests("slice") as stop:
            return _write(plan, Stream(plan, stop), out)
    finally:
        plan.files.close()


def _check(plan: MergePlan, out: Path) -> None:
    config = plan.config
    if not isinstance(plan.method, Maec) or len(config.abilities) != 1:
        raise InputError("extract takes a config of merge_method maec with exactly one ability")
    plan.check()
    p = next(target.parameters for target in plan.targets if not target.copied)
    if config.abilities[0].extracted is not None:
        raise InputError("this ability is extracted already")
    if float(p["k1"]) >= 1:
        raise InputError("k1 is 1, which selects every weight; choose a share such as 0.05")
    if not p["mask_pivot"] and float(p["beta"]) != 0:
        raise InputError("mask_pivot is false, so the ability is not sparse; merge it directly")
    elements = sum(target.size for target in plan.targets if not target.copied)
    problems = problems_of_place(out, plan.sources, int(8 * float(p["k1"]) * elements))
    if problems:
        raise InputError("\n".join(problems))


def _write(plan: MergePlan, stream: Stream, out: Path) -> Extraction:
    method = plan.method
    if not isinstance(method, Maec):
        raise InputError("extract takes a config of merge_method maec")
    targets = [target for target in plan.targets if not target.copied]
    facts = {"located": method.locate(stream, targets)}
    counts: dict[str, list[int]] = {target.name: [] for target in targets}

    def selected(work: Work) -> int:
        mask = method.mask(work, 0, work.cuts[0])
        return 0 if mask is None else int(np.count_nonzero(mask))

    for piece, n in stream.map(selected, targets, whole=False, label="Counting", facts=facts):
        counts[piece.target.name].append(n)
    starts = {name: np.concatenate([[0], np.cumsum(found)]) for name, found in counts.items()}
    parts = {part.name: part for part in _parts(targets, starts)}
    about = {
        "schema": SCHEMA,
        "slice_elements": SLICE,
        "shapes": {target.name: list(target.shape) for target in targets},
        "made_by": {
            k: v for k, v in identity(plan, 0).items() if k not in ("schema", "shard_size")
        },
    }
    head = head_of(list(parts.values()), {"lens": json.dumps(about)})

    def write(work: Work, files: ShardFiles) -> None:
        name, cut = work.target.name, work.cuts[0]
        first, last = (int(n) for n in starts[name][cut.number : cut.number + 2])
        if first == last:
            return
        values, mask = method.one_ability(work, 0, cut)
        where = np.flatnonzero(values if mask is None else mask).astype(np.int32)
        at = Cut(0, first, last)
        files.write(parts[f"{name}.places"], at, where)
        files.write(parts[f"{name}.values"], at, values[where])

    with _beside(out) as made:
        files = ShardFiles(Path(made), [Shard(out.name, head, tuple(parts.values()))], create=True)
        try:
            for name, begin in starts.items():
                if f"{name}.starts" in parts:
                    files.write(parts[f"{name}.starts"], Cut(0, 0, begin.size), begin.astype("<i8"))
            pieces = stream.map(
                lambda work: write(work, files), targets, whole=False, label="Extracting",
                facts=facts,
            )  # fmt: skip
            for _ in pieces:
                pass
            files.to_disk()
        finally:
            files.close()
        (Path(made) / out.name).replace(out)
        to_disk(out.parent)
    per_tensor = {name: int(begin[-1]) for name, begin in starts.items()}
    total = sum(target.size for target in targets)
    return Extraction(str(out), sum(per_tensor.values()), total, per_tensor)


def _beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {out}: {error.strerror}; choose a place that can be written to"
        ) from None


def _parts(targets: Sequence[Target], starts: Mapping[str, Any]) -> Iterator[Target]:
    number = 0
    for target in targets:
        begin = starts[target.name]
        if begin[-1] == 0:
            continue
        for part, dtype in _PARTS.items():
            n = begin.size if part == "starts" else int(begin[-1])
            yield Target(number, f"{target.name}.{part}", (n,), dtype, (), None, {}, 0)
            number += 1
