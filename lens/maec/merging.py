"""Merge checkpoints: plan, stream, and put a complete folder in place."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lens.errors import InputError
from lens.interrupting import StoppedError, StopRequest, stop_requests
from lens.io import put_in_place, refuse_existing
from lens.maec import record
from lens.maec.config import MergeConfig
from lens.maec.journal import Unfinished, Writing
from lens.maec.planning import MergePlan, plan_merge
from lens.maec.shards import ShardFiles, lay_out
from lens.maec.stream import Stream
from lens.maec.work import NonFiniteError
from lens.sizes import size_in_bytes


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
    unfinished = Unfinished(out)
    begun = resume and unfinished.exists  # its room on the disk is taken already
    if not begun:
        refuse_existing(out, force=force)
        _refuse_unfinished(unfinished, force=force)
    plan = plan_merge(config, max_memory=max_memory, out=None if begun else out, fetch=True)
    try:
        plan.check()
        identity = record.identity(plan, size_in_bytes(shard_size))
        with stop_requests("slice") as stop, _told(unfinished):
            found = _carry_out(plan, unfinished, identity, resume=resume, force=force, stop=stop)
    finally:
        plan.files.close()
    facts, resumed = found
    return MergeResult(
        out, len(plan.targets), sum(target.size for target in plan.targets), plan.bytes_written,
        resumed, time.monotonic() - started, facts, plan.notes,
    )  # fmt: skip


def _carry_out(
    plan: MergePlan,
    unfinished: Unfinished,
    identity: dict[str, Any],
    *,
    resume: bool,
    force: bool,
    stop: StopRequest,
) -> tuple[dict[str, Any], int]:
    going_on = resume and unfinished.resume(identity)
    if going_on and unfinished.out.exists() and not unfinished.model.exists():
        facts = unfinished.facts() or {}
        unfinished.discard()  # killed between the last rename and this
        return facts, 0
    if going_on:
        refuse_existing(unfinished.out, force=force)
    else:
        unfinished.begin(identity)
    shards = lay_out(plan.targets, identity["shard_size"])
    done = unfinished.lines() if going_on else {}
    started = going_on and all(shard.is_at(unfinished.model) for shard in shards)
    unfinished.model.mkdir(exist_ok=True)  # files that were removed or cut are made anew
    try:
        files = ShardFiles(unfinished.model, shards, create=not started)
    except InputError:
        unfinished.discard()
        raise
    stream, method = Stream(plan, stop), plan.method
    try:
        known = unfinished.facts() if going_on else None
        facts = method.prepare(stream, plan.targets) if known is None else known
        if known is None:
            unfinished.keep_facts(facts)
        sink = Writing(files, unfinished, done if started else {})
        for _ in stream.map(method.make, plan.targets, whole=method.whole, sink=sink, facts=facts,
                            label="Merging"):  # fmt: skip
            pass
        files.start_to_disk()  # the last of it, while the rest is done
        _refuse_changed(plan, identity)
        record.write(unfinished.model, plan, shards, identity, facts, sink.checksums)
    finally:
        files.close()
    put_in_place(unfinished.model, unfinished.out)
    unfinished.discard()
    return facts, len(done)


def _refuse_changed(plan: MergePlan, identity: dict[str, Any]) -> None:
    known = identity["sources"]
    changed = [s.reference for s in plan.sources if s.identity() != known[s.reference]]
    if changed:
        raise InputError(f"{', '.join(changed)} changed while it was read; merge anew with --force")


def _refuse_unfinished(unfinished: Unfinished, *, force: bool) -> None:
    if unfinished.exists and not force:
        raise InputError(
            f"an interrupted merge is in {unfinished.path}; go on with it by --resume, or discard "
            "it with --force"
        )


@contextmanager
def _told(unfinished: Unfinished) -> Iterator[None]:
    """Say what is kept after an interruption, and keep nothing that cannot become a result."""
    kept = f"what is done is kept in {unfinished.path}; run the same command with --resume"
    try:
        yield
    except StoppedError as stopped:
        raise StoppedError(f"interrupted; {kept}", stopped.exit_code - 128) from None
    except KeyboardInterrupt:
        raise StoppedError(f"interrupted; {kept}", signal.SIGINT) from None
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror)
        raise InputError(f"cannot write {unfinished.out}: {what}; make room; {kept}") from None
    except NonFiniteError:
        unfinished.discard()
        raise
    finally:
        unfinished.close()
