"""Plans of `lens.probe` and `lens.train`: resources and every problem, before a weight is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens.models.checkpoint import read_checkpoint
from lens.planning import checks
from lens.planning.checks import (
    DiskUse,
    PlanRows,
    ProbeFindings,
    Problem,
    TrainFindings,
)
from lens.planning.config import ProbePlanSettings, TrainPlanSettings
from lens.planning.model import TORCH_DTYPES
from lens.planning.resources import (
    CostEstimate,
    Phase,
    ProbeSizing,
    Rates,
    TrainSizing,
    measure_rates,
)
from lens.utils.settings import takes

if TYPE_CHECKING:
    from lens.space.space import Space

SCHEMA = "lens.plan/1"


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Description of the model.

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
        Where the counts come from.
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
class Plan:
    """Everything a job will need.

    Attributes
    ----------
    job : "train" or "probe"
        What is planned.
    model : ModelSummary or None
        None where the files say too little.
    problems : tuple of Problem
        Errors first.
    memory : tuple of Phase
        In the order of the run.
    memory_free : int or None
        Bytes that this machine has to spare.
    disk : tuple of DiskUse
        What is written where.
    costs : tuple of CostEstimate
        FLOPs and times.
    rates : Rates or None
        What the times were computed from.
    rows : dict
        Prompts or rows, languages, tokens: what was counted or assumed.
    notes : tuple of str
        Assumptions behind the figures.
    seconds : float
        How long planning took.
    """

    job: Literal["train", "probe"]
    model: ModelSummary | None
    problems: tuple[Problem, ...]
    memory: tuple[Phase, ...] = ()
    memory_free: int | None = None
    disk: tuple[DiskUse, ...] = ()
    costs: tuple[CostEstimate, ...] = ()
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
        """Largest memory in bytes, libraries included."""
        return max((phase.total for phase in self.memory), default=0)

    @property
    def time(self) -> float | None:
        """Seconds of all parts; None where one of them is unknown."""
        return _total(self.costs)

    @property
    def rows_per_second(self) -> float | None:
        """Rows per second of a probe once the weights are read; or None."""
        total = _total([cost for cost in self.costs if cost.name != "read"])
        if self.job != "probe" or self.rows is None or not total:
            return None
        return len(self.rows["languages"]) * int(self.rows["rows"]) / total

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


def _total(costs: Sequence[CostEstimate]) -> float | None:
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    return sum(known) if costs and len(known) == len(costs) else None


# ---------------------------------------------------------------- entries


@takes(ProbePlanSettings)
def plan_probing(
    model: str | Path,
    rows: PlanRows | str | Path,
    *,
    prompts: PlanRows | str | Path | None = None,
    rates: Rates | Literal["measure"] | None = "measure",
    refused: Sequence[tuple[str, str]] = (),
    settings: ProbePlanSettings,
) -> Plan:
    """Plan a probe from config, index files and headers; no weight is used.

    Parameters
    ----------
    model : str or Path
        Folder of a checkpoint, a config file alone, or a hub id that is in the local cache.
    rows : mapping, str or Path
        Parallel text per language, or where `lens.data.read_parallel` finds it.
    prompts : mapping, str or Path, optional
        User prompts, for role ``"assistant"``.
    rates : Rates, "measure" or None
        Speeds to estimate times from; by default one matrix product is timed. None gives no times.

    Returns
    -------
    Plan
        Memory by phase, disk, FLOPs, time, rows per second, and every problem that was found.

    Raises
    ------
    InputError
        If there is no config, or ``dtype`` is unknown.
    MissingExtraError
        If transformers is needed, for a config alone, and not installed.

    Notes
    -----
    Memory is that of a probe on a CPU. Figures are within about 30 %.
    """
    started = time.perf_counter()
    found = ProbeFindings(read_checkpoint(model), settings)
    found.problems += [Problem(name, text) for name, text in refused]
    found.check(rows, prompts)
    structure, lengths, limit = found.structure, found.lengths, found.limit
    sizing = None
    if structure is not None and lengths is not None and limit is not None and found.sites:
        sizing = ProbeSizing(found, structure, lengths, limit)
    return _planned("probe", found, sizing, rates, started)


@takes(TrainPlanSettings)
def plan_training(
    model: str | Path,
    prompts: PlanRows | str | Path,
    *,
    space: Space | str | Path | None = None,
    validation: PlanRows | str | Path | None = None,
    rates: Rates | Literal["measure"] | None = "measure",
    refused: Sequence[tuple[str, str]] = (),
    settings: TrainPlanSettings,
) -> Plan:
    """Plan a training run from config, index files and headers; no weight is read.

    Parameters
    ----------
    model : str or Path
        Folder of a checkpoint, a config file alone, or a hub id that is in the local cache.
    prompts : mapping, str or Path
        Parallel prompts per language (text, or token ids), or where `lens.data.read_parallel`
        finds them.
    space : Space, str or Path, optional
        Language space; without it nothing is checked about languages and pivot.
    validation : mapping, str or Path, optional
        Held-out prompts.
    rates
        As in `plan_probing`.

    Returns
    -------
    Plan
        Memory by phase, disk, FLOPs, time, and every problem that was found.

    Raises
    ------
    InputError
        If there is no config, or an option is not one that `lens.train` knows.
    MissingExtraError
        If transformers is needed, for a config alone, and not installed.

    Notes
    -----
    Figures are within about 30 %.
    """
    started = time.perf_counter()
    found = TrainFindings(read_checkpoint(model), settings)
    found.problems += [Problem(name, text) for name, text in refused]
    found.check(prompts, space, validation)
    sizing = None
    if found.structure is not None and found.lengths is not None and found.chosen:
        sizing = TrainSizing(found, found.structure, found.lengths)
    return _planned("train", found, sizing, rates, started)


def _planned(
    job: Literal["train", "probe"],
    found: TrainFindings | ProbeFindings,
    sizing: TrainSizing | ProbeSizing | None,
    rates: Rates | Literal["measure"] | None,
    started: float,
) -> Plan:
    """Problems alone where nothing can be counted, else the whole plan."""
    if sizing is None:
        return Plan(job, _summary(found), _ordered(found), seconds=time.perf_counter() - started)
    if rates == "measure":
        rates = None if found.settings.quick else measure_rates(sizing.structure, found.dtype)
    memory, disk, free = sizing.phases(), sizing.disk(), checks.free_memory()
    totals = {phase.name: phase.total for phase in memory}
    found.problems += checks.of_memory(totals, free, sizing.advice)
    found.problems += sizing.problems() + checks.of_disk(disk)
    return Plan(
        job,
        _summary(found),
        _ordered(found),
        memory,
        free,
        disk,
        sizing.costs(rates),
        rates,
        sizing.rows(),
        tuple(found.notes),
        time.perf_counter() - started,
    )


def _ordered(found: TrainFindings | ProbeFindings) -> tuple[Problem, ...]:
    """Errors first."""
    return tuple(sorted(found.problems, key=lambda problem: problem.level != "error"))


def _summary(found: TrainFindings | ProbeFindings) -> ModelSummary | None:
    """Describe the model, as far as it is known."""
    structure, config = found.structure, found.checkpoint.config
    if structure is None:
        return None
    each = sorted(structure.of_block)
    named = config.get("architectures")
    return ModelSummary(
        architecture=str(named[0] if named else config.get("model_type", "unknown")),
        dtype=TORCH_DTYPES[found.dtype],
        parameters=structure.parameters,
        per_block=each[len(each) // 2],
        trained=found.trained if isinstance(found, TrainFindings) else 0,
        blocks=len(each),
        width=structure.width,
        vocabulary=structure.vocabulary,
        layers=found.layers if isinstance(found, TrainFindings) else (),
        source="headers" if found.checkpoint.tensors else "config",
    )
