"""Merge, extract and verify: plan, stream, and put a complete result in place."""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lens.arrays import to_dict
from lens.errors import DamagedError, InputError, VerificationError
from lens.merging import output
from lens.merging.config import MergeConfig, parse_config
from lens.merging.executor import MergeExecutor
from lens.merging.methods.maec import Maec
from lens.merging.output import (
    Checking,
    OutputShard,
    ShardFiles,
    Writing,
    finished_slices,
    head_of,
    identity,
    lay_out,
    merge_folder,
)
from lens.merging.plan import MergePlan, plan_merge, problems_of_place
from lens.merging.sources import SCHEMA
from lens.merging.tensors import SLICE, Chunk, OutputTensor
from lens.merging.worker import NonFiniteError, TensorTask
from lens.utils.files import refuse_existing, size_in_bytes, to_disk
from lens.utils.hashing import checksum
from lens.utils.signals import StoppedError, StopRequest, stop_requests
from lens.utils.workdir import WorkDir


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did.

    Attributes
    ----------
    out : Path
        The finished checkpoint.
    tensors, parameters, bytes_written : int
        Of it.
    resumed : int
        Slices that an interrupted merge had already written.
    seconds : float
        Time taken.
    facts : dict
        What the method found out on the way, such as cosines.
    notes : tuple of str
        Of the plan.
    """

    out: Path
    tensors: int
    parameters: int
    bytes_written: int
    resumed: int
    seconds: float
    facts: dict[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self) | {"out": str(self.out), "notes": list(self.notes)}


def merge(
    config: MergeConfig | Mapping[str, Any],
    out: str | Path,
    *,
    max_memory: int | str = "1GiB",
    shard_size: int | str = "5GB",
    resume: bool = False,
    force: bool = False,
) -> MergeResult:
    """Merge checkpoints into a new one, in bounded memory.

    Parameters
    ----------
    config : MergeConfig or mapping
        What is merged, and how; see `MergeConfig`.
    out : path
        Folder of the result: complete, or not there.
    max_memory : int or str
        Bytes of memory for everything together. The result does not depend on it.
    shard_size : int or str
        Bytes of tensors in one file at most.
    resume : bool
        Go on with the same merge where it was interrupted.
    force : bool
        Replace ``out``, and discard an interrupted merge.

    Returns
    -------
    MergeResult

    Raises
    ------
    InputError
        If the plan has problems, a source holds NaN or infinity, or there is no room.
    StoppedError
        If a signal asked for it; ``resume`` goes on.

    Notes
    -----
    Arithmetic is in float32 or better and rounded once to the output dtype. The result has the
    same bytes for any number of cores and any memory, and after any number of interruptions.

    References
    ----------
    MAEC, arXiv:2410.07825.
    """
    started, out = time.monotonic(), Path(out)
    work = merge_folder(out)
    work.check(resume=resume, force=force)
    begun = resume and work.begun  # its room on the disk is taken already
    if not begun:
        refuse_existing(out, force=force)
    plan = plan_merge(config, max_memory=max_memory, out=None if begun else out, fetch=True)
    try:
        plan.check()
        identity = output.identity(plan, size_in_bytes(shard_size))
        with work, stop_requests("slice") as stop, _interruptible(work), work.writing(str(out)):
            _open(work, identity, resume=resume, force=force)
            if work.is_finished(work.path / "model", out):  # killed after the last rename
                found = _facts(work) or {}, 0
                work.discard()
            else:
                refuse_existing(out, force=force)
                found = _carry_out(plan, work, identity, out, stop)
    finally:
        plan.files.close()
    facts, resumed = found
    return MergeResult(
        out, len(plan.targets), sum(target.size for target in plan.targets), plan.bytes_written,
        resumed, time.monotonic() - started, facts, plan.notes,
    )  # fmt: skip


def _open(work: WorkDir, identity: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Begin or resume; damage to what was kept costs time alone."""
    try:
        work.open(identity, resume=resume, force=force)
    except DamagedError:
        work.open(identity, force=True)


def _carry_out(
    plan: MergePlan, work: WorkDir, identity: dict[str, Any], out: Path, stop: StopRequest
) -> tuple[dict[str, Any], int]:
    """Write the slices that are missing, then everything beside them; the rename comes last."""
    model, facts = work.path / "model", _facts(work)
    shards = lay_out(plan.targets, identity["shard_size"])
    started = all(shard.is_at(model) for shard in shards)
    model.mkdir(exist_ok=True)  # files that were removed or cut are made anew
    try:
        files = ShardFiles(model, shards, create=not started)
    except InputError:
        work.discard()
        raise
    log = work.log("slices")
    done = finished_slices(log)
    executor, method = MergeExecutor(plan, stop), plan.method
    try:
        if facts is None:
            facts = method.prepare(executor, plan.targets)
            work.save("facts.json", facts)
        sink = Writing(files, log, done if started else {})
        for _ in executor.map(method.make, plan.targets, whole=method.whole, sink=sink, facts=facts,
                            label="Merging"):  # fmt: skip
            pass
        files.start_to_disk()  # the last of it, while the rest is done
        _refuse_changed(plan, identity)
        output.write(model, plan, shards, identity, facts, sink.checksums)
    except NonFiniteError:
        work.discard()
        raise
    finally:
        files.close()
    work.finish(model, out)
    return facts, len(done)


def _facts(work: WorkDir) -> dict[str, Any] | None:
    """Read what the method found out before it was interrupted, if it had."""
    try:
        found = work.load("facts.json")
    except DamagedError:
        return None
    return None if found is None else found.fields


def _refuse_changed(plan: MergePlan, identity: dict[str, Any]) -> None:
    known = identity["sources"]
    changed = [s.reference for s in plan.sources if s.identity() != known[s.reference]]
    if changed:
        raise InputError(f"{', '.join(changed)} changed while it was read; merge anew with --force")


@contextmanager
def _interruptible(work: WorkDir) -> Iterator[None]:
    """Report what is kept after an interruption."""
    kept = f"interrupted; {work.keeps} are kept in {work.path}; run the same command with --resume"
    try:
        yield
    except StoppedError as stopped:
        raise StoppedError(kept, stopped.exit_code - 128) from None
    except KeyboardInterrupt:
        raise StoppedError(kept, signal.SIGINT) from None


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
            return _write(plan, MergeExecutor(plan, stop), out)
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


def _write(plan: MergePlan, stream: MergeExecutor, out: Path) -> Extraction:
    method = plan.method
    if not isinstance(method, Maec):
        raise InputError("extract takes a config of merge_method maec")
    targets = [target for target in plan.targets if not target.copied]
    facts = {"located": method.locate(stream, targets)}
    counts: dict[str, list[int]] = {target.name: [] for target in targets}

    def selected(work: TensorTask) -> int:
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

    def write(work: TensorTask, files: ShardFiles) -> None:
        name, cut = work.target.name, work.cuts[0]
        first, last = (int(n) for n in starts[name][cut.number : cut.number + 2])
        if first == last:
            return
        values, mask = method.one_ability(work, 0, cut)
        where = np.flatnonzero(values if mask is None else mask).astype(np.int32)
        at = Chunk(0, first, last)
        files.write(parts[f"{name}.places"], at, where)
        files.write(parts[f"{name}.values"], at, values[where])

    with _beside(out) as made:
        files = ShardFiles(
            Path(made), [OutputShard(out.name, head, tuple(parts.values()))], create=True
        )
        try:
            for name, begin in starts.items():
                if f"{name}.starts" in parts:
                    files.write(
                        parts[f"{name}.starts"], Chunk(0, 0, begin.size), begin.astype("<i8")
                    )
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


def _parts(targets: Sequence[OutputTensor], starts: Mapping[str, Any]) -> Iterator[OutputTensor]:
    number = 0
    for target in targets:
        begin = starts[target.name]
        if begin[-1] == 0:
            continue
        for part, dtype in _PARTS.items():
            n = begin.size if part == "starts" else int(begin[-1])
            yield OutputTensor(number, f"{target.name}.{part}", (n,), dtype, (), None, {}, 0)
            number += 1


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
                return _compare(plan, MergeExecutor(plan, stop), files, known, sample, seed)
            finally:
                files.close()
    finally:
        plan.files.close()


def _read(folder: Path) -> dict[str, Any]:
    path = folder / output.REPRODUCE
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        right = known["schema"] == output.SCHEMA and known["slice_elements"] == SLICE
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
    stream: MergeExecutor,
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


def _checksum(files: ShardFiles, target: OutputTensor) -> str:
    return output.checksum_of([checksum(files.read(target, cut)) for cut in target.cuts])
