"""What a merge will do, from configs, index files and headers alone: every problem at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens.errors import InputError
from lens.maec import comparing, matching
from lens.maec.checkpoint import Files
from lens.maec.config import MergeConfig, nearest, parse_config
from lens.maec.matching import Wanted
from lens.maec.methods import METHODS, Method
from lens.maec.parameters import Parameter, Value, evaluate
from lens.maec.sources import ModelSource, Source
from lens.maec.targets import Target
from lens.maec.work import Needs
from lens.sizes import said, size_in_bytes
from lens.stored import OUTPUTS

PROCESS = 112 << 20
"""Bytes that Python, NumPy and the plan itself take, of the memory that is allowed."""

_START = 0.3  # seconds until the first byte is read
_READ_RATE, _WRITE_RATE = 2e9, 1e9  # bytes a second of an ordinary disk; estimates only
_LOST = ("int8_mask",)  # parameters of others that change nothing here


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge, looked at from all sides before anything is computed.

    Attributes
    ----------
    config : MergeConfig
    method : Method
    sources : tuple of Source
        Opened, nothing but headers read.
    template : Source
        Whose configuration and tokenizer the result takes over.
    targets : tuple of Target
        Tensors of the result, in the order they are written.
    problems : tuple of str
        Why it cannot be done; empty if it can.
    notes : tuple of str
        What one should know.
    needs : Needs
        Memory of one worker.
    workers : int
        How many fit into the memory that is allowed.
    max_memory : int
        Bytes.
    files : Files
        Open files of the sources.
    """

    config: MergeConfig
    method: Method
    sources: tuple[Source, ...]
    template: Source | None
    targets: tuple[Target, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    needs: Needs
    workers: int
    max_memory: int
    files: Files = field(repr=False, compare=False)

    @property
    def bytes_written(self) -> int:
        """Size of the tensors of the result."""
        return sum(target.nbytes for target in self.targets)

    @property
    def bytes_read(self) -> int:
        """Bytes of the sources, times how often the method reads them."""
        once = sum(
            self.sources[taken.source].tensors[taken.name].nbytes
            for target in self.targets
            for taken in target.inputs
        )
        return once * self.method.passes

    @property
    def memory(self) -> int:
        """Bytes of memory at most."""
        return PROCESS + self.workers * self.needs.total

    @property
    def seconds(self) -> float:
        """Time on an ordinary disk and these cores, roughly."""
        elements = sum(target.size * len(target.inputs) for target in self.targets)
        again = self.method.passes if self.method.whole else 1  # a tensor in hand is in memory
        transfer = self.bytes_read / again / _READ_RATE + self.bytes_written / _WRITE_RATE
        return _START + max(transfer, elements / self.method.rate / max(self.workers, 1))

    def check(self) -> None:
        """Refuse a merge that cannot be done.

        Raises
        ------
        InputError
            With every problem on a line of its own.
        """
        if self.problems:
            raise InputError("this merge cannot be done:\n  " + "\n  ".join(self.problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a table or JSON."""
        return {
            "method": self.method.name,
            "sources": [source.reference for source in self.sources],
            "tensors": len(self.targets),
            "parameters": sum(target.size for target in self.targets),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "memory": self.memory,
            "workers": self.workers,
            "seconds": round(self.seconds, 1),
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def cores() -> int:
    """CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def plan_merge(
    config: MergeConfig | Mapping[str, Any],
    *,
    max_memory: int | str = "1GiB",
    out: str | Path | None = None,
    fetch: bool = False,
) -> MergePlan:
    """Look at a merge before it is done; milliseconds for checkpoints of any size.

    Parameters
    ----------
    config : MergeConfig or mapping
        What is merged, and how.
    max_memory : int or str
        Bytes, or a size such as ``"1GiB"``: everything together.
    out : path, optional
        Where the result would go, to see whether there is room.
    fetch : bool
        Download models that are named by hub id and not in its cache; else that is a problem.

    Returns
    -------
    MergePlan
        With every problem that can be seen in headers and configs; `MergePlan.check` raises them.

    Raises
    ------
    InputError
        If the config itself cannot be read.
    """
    config = parse_config(dict(config) if isinstance(config, Mapping) else config)
    name, unknown = config.merge_method, []
    if name not in METHODS:
        unknown = [f"unknown merge_method '{name}'; {nearest(name, METHODS)}"]
        close = difflib.get_close_matches(name, METHODS, n=1)
        if not close:
            raise InputError(unknown[0])
        name = close[0]  # the rest of the problems are those of what was probably meant
    return plan_for(
        METHODS[name], config, max_memory=max_memory, out=out, fetch=fetch, problems=unknown
    )


def plan_for(
    method: Method,
    config: MergeConfig,
    *,
    max_memory: int | str = "1GiB",
    out: str | Path | None = None,
    fetch: bool = False,
    problems: Sequence[str] = (),
) -> MergePlan:
    """Plan as `plan_merge` does, for a method that the config does not name.

    ``problems`` are those that were found before.
    """
    budget, files, problems = size_in_bytes(max_memory), Files(), list(problems)
    wanted, found = method.wanted(config)
    problems += found
    sources = _open(wanted, files, problems, fetch=fetch)
    notes: list[str] = []
    targets: list[Target] = []
    template = None
    run = _run_parameters(method, config, problems, notes)
    lead = config.base_model or (wanted[0].reference if wanted else None)
    if not found and lead in sources:
        template, there = sources[lead], [one for one in wanted if one.reference in sources]
        if not config.slices or len(there) == len(wanted):  # the rest shows its problems too
            targets = _targets(method, config, there, sources, run, problems)
        comparing.compare_configs(template, list(sources.values()), problems, notes, config)
    needs = _needs(method, targets, list(sources.values()))
    workers = min(cores(), (budget - PROCESS) // max(needs.total, 1))
    if workers < 1 and targets:
        problems.append(
            f"max_memory {said(budget)} is too small; this merge takes {said(PROCESS)} for the "
            f"program and {said(needs.total)} for one worker, so give "
            f"{-(-(PROCESS + needs.total) // 10**6)}MB or more"
        )
    plan = MergePlan(
        config, method, tuple(sources.values()), template, tuple(targets), (), (),
        needs, max(workers, 1), budget, files,
    )  # fmt: skip
    if out is not None:
        problems += problems_of_place(Path(out), plan.sources, plan.bytes_written)
    if _computes_in_16_bit(config):
        notes.append(f"dtype {config.dtype} is what is written; all arithmetic is in float32")
    return MergePlan(
        config, method, plan.sources, template, plan.targets, tuple(problems), tuple(notes),
        needs, plan.workers, budget, files,
    )  # fmt: skip


def _targets(
    method: Method,
    config: MergeConfig,
    wanted: Sequence[Wanted],
    sources: Mapping[str, Source],
    run: dict[str, Value],
    problems: list[str],
) -> list[Target]:
    """Tensors of the result; what does not fit is added to the problems."""
    so_far = len(problems)
    try:
        targets = matching.Matching(config, method, wanted, sources, run).targets(problems)
    except InputError as error:
        problems.append(str(error))
        return []
    if targets and len(problems) == so_far:  # else values are missing that it looks at
        problems += method.problems(config, run, targets)
    return targets


def _open(
    wanted: Iterable[Wanted], files: Files, problems: list[str], *, fetch: bool
) -> dict[str, Source]:
    opened: dict[str, Source] = {}
    for reference, extracted in dict.fromkeys((one.reference, one.extracted) for one in wanted):
        try:
            opened[reference] = (
                _extracted(reference, files)
                if extracted
                else ModelSource(reference, files, fetch=fetch)
            )
        except InputError as error:
            problems.append(str(error))
    return opened


def _extracted(reference: str, files: Files) -> Source:
    from lens.maec.extracted import ExtractedSource

    return ExtractedSource(reference, files)


def _run_parameters(
    method: Method, config: MergeConfig, problems: list[str], notes: list[str]
) -> dict[str, Value]:
    """Parameters of the whole run, defaults for wrong ones; unknown ones are problems too."""
    own = {parameter.name: parameter for parameter in method.parameters}
    known = {p.name for other in METHODS.values() for p in other.parameters} | set(_LOST)
    layers = [config.parameters, *(m.parameters for m in config.models)]
    for part in config.slices:
        layers += [part.parameters, *(source.parameters for source in part.sources)]
    for name in dict.fromkeys(name for layer in layers for name in layer):
        if name not in known:
            problems.append(
                f"unknown parameter '{name}' of {method.name}; {nearest(name, own or known)}"
            )
        elif name not in own:
            notes.append(f"parameter '{name}' is not one of {method.name} and changes nothing")
    values: dict[str, Value] = {"seed": float(config.seed)}
    for parameter in method.parameters:
        if parameter.scope == "run":
            try:
                values[parameter.name] = _run_value(parameter, config.parameters)
            except InputError as error:
                problems.append(str(error))
                if parameter.default is not None:
                    values[parameter.name] = parameter.default
    return method.run_parameters(dict(config.parameters), values)


def _run_value(parameter: Parameter, given: Mapping[str, Any]) -> Value:
    value = parameter.default
    if parameter.name in given:
        setting = given[parameter.name]
        if isinstance(setting, list | dict):
            raise InputError(
                f"parameter '{parameter.name}' is one for the whole run, got {setting}"
            )
        value = evaluate(parameter, setting, tensor="", t=0.0)
    if value is None:
        raise InputError(f"parameter '{parameter.name}' is missing")
    return value


def _needs(method: Method, targets: Sequence[Target], sources: Sequence[Source]) -> Needs:
    rooms: list[int] = []
    out = scratch = 0
    for target in targets:
        n = max((cut.size for cut in target.cuts[:2]), default=0)
        taken = [(sources[t.source], t.name) for t in target.inputs]
        sizes = [source.room_for(name, n) for source, name in taken]
        rooms += [0] * (len(sizes) - len(rooms))
        rooms[: len(sizes)] = [max(a, b) for a, b in zip(rooms, sizes, strict=False)]
        out = max(out, n * target.kind.size)
        extra = max((source.extra_memory(name, n) for source, name in taken), default=0)
        scratch = max(scratch, n * (method.scratch(len(sizes)) + target.kind.size) + extra)
    return Needs(tuple(rooms), out, scratch)


def problems_of_place(out: Path, sources: Iterable[Source], needed: int) -> list[str]:
    """Why a result of so many bytes cannot be put there; nothing if it can."""
    found = [
        f"{out} is, or holds, {reference}, which would be replaced; choose another --out"
        for reference in _replaced(out, sources)
    ]
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    about = os.statvfs(place)
    free = about.f_bavail * about.f_frsize
    if free < needed:
        found.append(
            f"{place} has {said(free)} left, the result takes {said(needed)}; make room or choose "
            "another --out"
        )
    if not os.access(place, os.W_OK):
        found.append(f"{place} cannot be written to; choose another --out")
    return found


def _replaced(out: Path, sources: Iterable[Source]) -> list[str]:
    """Find the sources of which putting ``out`` in place would remove files."""
    goal = out.resolve()
    return [
        source.reference
        for source in sources
        if any(goal in (path, *path.parents) for path in source.files)
    ]


def _computes_in_16_bit(config: MergeConfig) -> bool:
    return config.dtype in ("bfloat16", "float16") and config.dtype in OUTPUTS
