"""A finished plan: what was found out, in a form for people, JSON and other code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lens.planning.cost import Rates
from lens.planning.memory import Phase

SCHEMA = "lens.plan/1"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, or worth knowing before it is too late.

    Attributes
    ----------
    about : str
        What it concerns: ``"files"``, ``"architecture"``, ``"tokenizer"``, ``"prompts"``, ...
    text : str
        What was found, what was expected, what to do.
    level : "error" or "warning"
        An error stops the job; a warning does not.
    """

    about: str
    text: str
    level: Literal["error", "warning"] = "error"


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Room that something takes on a disk.

    Attributes
    ----------
    what : str
        What is written.
    where : str
        Folder.
    nbytes, free : int
        Bytes needed, and bytes free there now.
    stays : bool
        Whether it is still there after the run.
    """

    what: str
    where: str
    nbytes: int
    free: int
    stays: bool


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What the model is.

    Attributes
    ----------
    architecture, dtype : str
        Class name from the config, and the dtype it will compute in.
    parameters, per_block, trained : int
        Numbers of parameters: all, those of an ordinary block, those that are trained.
    blocks, width, vocabulary : int
        Its sizes.
    layers : tuple of int
        Trained blocks; none of a probe.
    source : "headers" or "config"
        What the counts are from.
    """

    architecture: str
    dtype: str
    parameters: int
    per_block: int
    trained: int
    blocks: int
    width: int
    vocabulary: int
    layers: tuple[int, ...]
    source: Literal["headers", "config"]


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Work of a part of a run, and how long it takes where that could be estimated.

    Attributes
    ----------
    name : str
        ``"cache"``, ``"steps"`` or ``"validation"`` of training; ``"probe"``, ``"read"`` (the
        weights, from the disk) or ``"open"`` (the checkpoint, for one block after the other) of a
        probe.
    flops : int
        Operations of matrix products and attention.
    traffic : int
        Bytes moved by the optimizer, or read.
    seconds : float or None
        Estimate; None without rates.
    """

    name: str
    flops: int
    traffic: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job will need.

    Attributes
    ----------
    job : "train" or "probe"
        What is planned.
    model : Model or None
        None where the files say too little.
    problems : tuple of Problem
        Errors first.
    memory : tuple of Phase
        In the order of the run.
    memory_free : int or None
        Bytes that this machine has to spare.
    disk : tuple of DiskUse
        What is written where.
    efforts : tuple of Effort
        Operations and times.
    rates : Rates or None
        What the times were made from.
    rows : dict
        Prompts or rows, languages, tokens: what was counted or assumed.
    notes : tuple of str
        Assumptions behind the figures.
    seconds : float
        How long planning took, calibration apart.
    """

    job: Literal["train", "probe"]
    model: ModelSummary | None
    problems: tuple[Problem, ...]
    memory: tuple[Phase, ...] = ()
    memory_free: int | None = None
    disk: tuple[DiskUse, ...] = ()
    efforts: tuple[CostEstimate, ...] = ()
    rates: Rates | None = None
    rows: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that stop the job."""
        return tuple(problem for problem in self.problems if problem.level == "error")

    @property
    def peak(self) -> int:
        """Bytes of memory at the most, libraries included."""
        return max((phase.total for phase in self.memory), default=0)

    @property
    def time(self) -> float | None:
        """Seconds of all efforts; None where one of them is unknown."""
        each = [effort.seconds for effort in self.efforts]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if each and len(known) == len(each) else None

    @property
    def rows_per_second(self) -> float | None:
        """Rows that a probe gets through in a second once the weights are read; or None."""
        if self.job != "probe" or self.rows is None:
            return None
        each = [effort.seconds for effort in self.efforts if effort.name != "read"]
        known = [seconds for seconds in each if seconds is not None]
        if len(known) < len(each) or not sum(known):
            return None
        return len(self.rows["languages"]) * int(self.rows["rows"]) / sum(known)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        content = asdict(self)
        for phase, stated in zip(self.memory, content["memory"], strict=True):
            stated["total"] = phase.total
        return {
            "schema": SCHEMA,
            "ok": not self.errors,
            "peak_bytes": self.peak,
            "seconds_estimated": self.time,
            "rows_per_second": self.rows_per_second,
            **content,
        }


def ordered(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Errors first."""
    return tuple(sorted(problems, key=lambda problem: problem.level != "error"))
