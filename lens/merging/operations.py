"""Merge, extract and verify: plan, stream, and put a complete result in place."""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lens.arrays import Result
from lens.errors import DamagedError, InputError, VerificationError
from lens.merging import output
from lens.merging.config import MergeConfig, parse_config
from lens.merging.executor import MergeExecutor
from lens.merging.methods.base import write_tensor
from lens.merging.methods.maec import Maec
from lens.merging.output import (
    ChunkComparer,
    ChunkWriter,
    OutputShard,
    ShardFiles,
    finished_slices,
    head_of,
    lay_out,
    merge_folder,
)
from lens.merging.plan import MergePlan, plan_merge, problems_of_place
from lens.merging.sources import SCHEMA
from lens.merging.tensors import SLICE, Chunk, OutputTensor
from lens.merging.worker import NonFiniteError, Sink, TensorTask
from lens.utils.files import refuse_existing, size_in_bytes, to_disk
from lens.utils.hashing import checksum
from lens.utils.signals import StoppedError, StopRequest, stop_requests
from lens.utils.workdir import WorkDir


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Summary of a finished merge.

    Attributes
    ----------
    out : Path
        The checkpoint.
    tensors, parameters, bytes_written : int
        Its size.
    resumed : int
        Chunks that an interrupted merge had already written.
    seconds : float
        Time taken.
    facts : dict
        What the method computed before the first tensor, such as cosines.
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
        Models, method and parameters; see `MergeConfig`.
    out : path
        Folder of the result: complete, or absent.
    max_memory : int or str
        Bytes of memory for everything together. The result does not depend on it.
    shard_size : int or str
        Bytes of tensors in one file at most.
    resume : bool
        Continue the same merge where it was interrupted.
    force : bool
        Replace ``out``, and discard an interrupted merge.

    Returns
    -------
    MergeResult

    Raises
    ------
    InputError
        If the plan has problems, a source holds NaN or infinity, or the disk is full.
    StoppedError
        If a signal asked for it; ``resume`` continues.

    Notes
    -----
    Arithmetic is in float32 or better and rounded once to the output dtype. The result has the
    same bytes for any number of cores, any memory, and any number of interruptions.

    References
    ----------
    MAEC, arXiv:2410.07825.
    """
    started, out = time.monotonic(), Path(out)
    work = merge_folder(out)
    work.check(resume=resume, force=force)
    begun = resume and work.begun  # its space on the disk is reserved already
    if not begun:
        refuse_existing(out, force=force)
    with plan_merge(config, max_memory=max_memory, out=None if begun else out, fetch=True) as plan:
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
    facts, resumed = found
    return MergeResult(
        out=out,
        tensors=len(plan.targets),
        parameters=sum(target.size for target in plan.targets),
        bytes_written=plan.bytes_written,
        resumed=resumed,
        seconds=time.monotonic() - started,
        facts=facts,
        notes=plan.notes,
    )


def _open(work: WorkDir, identity: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Begin or resume; a damaged folder is begun again."""
    try:
        work.open(identity, resume=resume, force=force)
    except DamagedError:
        work.open(identity, force=True)


def _carry_out(
    plan: MergePlan, work: WorkDir, identity: dict[str, Any], out: Path, stop: StopRequest
) -> tuple[dict[str, Any], int]:
    """Write the missing chunks, then the other files; the rename comes last."""
    model, facts = work.path / "model", _facts(work)
    shards = lay_out(plan.targets, identity["shard_size"])
    started = all(shard.is_at(model) for shard in shards)
    model.mkdir(exist_ok=True)  # files that were removed or cut are created again
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
        sink = ChunkWriter(files, log, done if started else {})
        _write_tensors(executor, plan, plan.targets, sink, facts, "Merging")
        files.start_to_disk()  # the last weights, while the other files are written
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
    """Read what the method computed before the merge was interrupted, if complete."""
    try:
        found = work.load("facts.json")
    except DamagedError:
        return None
    return None if found is None else found.fields


def _write_tensors(
    executor: MergeExecutor,
    plan: MergePlan,
    targets: Sequence[OutputTensor],
    sink: Sink,
    facts: Mapping[str, Any],
    label: str,
) -> None:
    method = plan.method
    write = partial(write_tensor, method)
    for _ in executor.map(write, targets, whole=method.whole, sink=sink, facts=facts, label=label):
        pass


def _refuse_changed(plan: MergePlan, identity: dict[str, Any]) -> None:
    known = identity["sources"]
    changed = [s.reference for s in plan.sources if s.identity() != known[s.reference]]
    if changed:
        raise InputError(
            f"{', '.join(changed)} changed while it was read; start again with --force"
        )


@contextmanager
def _interruptible(work: WorkDir) -> Iterator[None]:
    """Report what an interruption leaves behind."""
    kept = f"interrupted; {work.keeps} are kept in {work.path}; run the same command with --resume"
    try:
        yield
    except StoppedError as stopped:
        raise StoppedError(kept, stopped.exit_code - 128) from None
    except KeyboardInterrupt:
        raise StoppedError(kept, signal.SIGINT) from None


# === extract ======================================================================================

_PARTS = {"values": "F32", "places": "I32", "starts": "I64"}


@dataclass(frozen=True, slots=True)
class Extraction(Result):
    """Summary of an extracted ability.

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


def extract(
    config: MergeConfig | Mapping[str, Any],
    out: str | Path,
    *,
    max_memory: int | str = "1GiB",
    force: bool = False,
) -> Extraction:
    """Write the key neurons of an ability and their deltas R(A) to a sparse file.

    R(A) = α(θ_A − θ_o) − β(θ_c − θ_o) on the share k1 of units with the largest |θ' − θ_o|.

    Parameters
    ----------
    config : MergeConfig or mapping
        A merge of method ``maec`` with one ability, ``trained`` and perhaps ``located`` and
        ``pivot``, and k1 below 1; languages are ignored.
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
    config, out = parse_config(config), Path(out)
    refuse_existing(out, force=force)
    if out.is_dir():
        raise InputError(f"{out} is a folder; expected the name of a file")
    config = config.model_copy(update={"languages": ()})
    with plan_merge(config, max_memory=max_memory, fetch=True) as plan:
        method = plan.method
        if not isinstance(method, Maec) or len(config.abilities) != 1:
            raise InputError("extract takes a config of merge_method maec with exactly one ability")
        _check(plan, out)
        with stop_requests("slice") as stop:
            return _write(plan, method, MergeExecutor(plan, stop), out)


def _check(plan: MergePlan, out: Path) -> None:
    config = plan.config
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


def _write(plan: MergePlan, method: Maec, executor: MergeExecutor, out: Path) -> Extraction:
    targets = [target for target in plan.targets if not target.copied]
    facts = {"located": method.locate(executor, targets)}
    counts: dict[str, list[int]] = {target.name: [] for target in targets}

    def selected(task: TensorTask) -> int:
        mask = method.mask(task, 0, task.chunks[0])
        return 0 if mask is None else int(np.count_nonzero(mask))

    found = executor.map(selected, targets, whole=False, label="Counting", facts=facts)
    for target, n in found:
        counts[target.name].append(n)
    starts = {name: np.concatenate([[0], np.cumsum(n)]) for name, n in counts.items()}
    parts = {part.name: part for part in _parts(targets, starts)}
    made_by = output.identity(plan, 0)
    about = {
        "schema": SCHEMA,
        "slice_elements": SLICE,
        "shapes": {target.name: list(target.shape) for target in targets},
        "made_by": {k: v for k, v in made_by.items() if k not in ("schema", "shard_size")},
    }
    head = head_of(list(parts.values()), {"lens": json.dumps(about)})

    def write(task: TensorTask, files: ShardFiles) -> None:
        name, chunk = task.target.name, task.chunks[0]
        first, last = (int(n) for n in starts[name][chunk.number : chunk.number + 2])
        if first == last:
            return
        values, mask = method.one_ability(task, 0, chunk)
        where = np.flatnonzero(values if mask is None else mask).astype(np.int32)
        at = Chunk(0, first, last)
        files.write(parts[f"{name}.places"], at, where)
        files.write(parts[f"{name}.values"], at, values[where])

    with _beside(out) as folder:
        shard = OutputShard(out.name, head, tuple(parts.values()))
        files = ShardFiles(Path(folder), [shard], create=True)
        try:
            for name, begin in starts.items():
                if f"{name}.starts" in parts:
                    whole = Chunk(0, 0, begin.size)
                    files.write(parts[f"{name}.starts"], whole, begin.astype("<i8"))
            extracting = partial(write, files=files)
            for _ in executor.map(
                extracting, targets, whole=False, label="Extracting", facts=facts
            ):
                pass
            files.to_disk()
        finally:
            files.close()
        (Path(folder) / out.name).replace(out)
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


# === verify =======================================================================================

_KINDS = {"config": dict, "sources": dict, "facts": dict, "checksums": dict, "shard_size": int}
"""Types of the entries of a record."""


@dataclass(frozen=True, slots=True)
class Verification(Result):
    """Counts of what was compared and found equal.

    Attributes
    ----------
    tensors, of : int
        Tensors computed again, and all tensors.
    slices : int
        Chunks computed again.
    """

    tensors: int
    of: int
    slices: int


def verify(
    folder: str | Path,
    *,
    sample: int | None = 8,
    seed: int = 0,
    max_memory: int | str = "1GiB",
) -> Verification:
    """Compute tensors of a merged checkpoint again and compare them byte by byte.

    Parameters
    ----------
    folder : path
        Output of `merge`; its sources must still be where they were.
    sample : int or None
        How many tensors, drawn at random; None for all of them, and for the thresholds and cosines
        that the method computed before the first.
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
        If a source is not the one that was merged, a file was changed, or a tensor differs; the
        message names them.
    """
    folder = Path(folder)
    known = _read(folder)
    config = parse_config(known["config"])
    with plan_merge(config, max_memory=max_memory, fetch=True) as plan:
        plan.check()
        _compare_sources(plan, known["sources"])
        shards = lay_out(plan.targets, known["shard_size"])
        try:
            files = ShardFiles(folder, shards, create=False, writable=False)
        except InputError as error:
            raise VerificationError(str(error)) from None
        with closing(files), stop_requests("slice") as stop:
            return _compare(plan, MergeExecutor(plan, stop), files, known, sample, seed)


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
    """Refuse sources with other headers or sizes; copies may have other times."""

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
    executor: MergeExecutor,
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
        again = json.loads(json.dumps(plan.method.prepare(executor, plan.targets)))
        if again != facts:
            different = [key for key in facts if again.get(key) != facts[key]]
            raise VerificationError(
                f"computed again, {', '.join(different)} differ from the record"
            )
    damaged = [
        target.name
        for target in chosen
        if _checksum(files, target) != known["checksums"].get(target.name)
    ]
    if damaged:
        raise VerificationError(f"changed since the merge: tensors {', '.join(damaged[:5])}")
    sink = ChunkComparer(files)
    _write_tensors(executor, plan, chosen, sink, facts, "Verifying")
    if sink.differing:
        names = ", ".join(list(sink.differing)[:5])
        raise VerificationError(f"computed again, {len(sink.differing)} tensors differ: {names}")
    return Verification(len(chosen), len(plan.targets), sink.compared)


def _checksum(files: ShardFiles, target: OutputTensor) -> str:
    return output.checksum_of([checksum(files.read(target, chunk)) for chunk in target.chunks])
