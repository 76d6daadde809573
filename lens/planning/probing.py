"""The plan of `lens.probe`: what it will need, and everything that would stop it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lens.planning import checks
from lens.planning.checkpoints import read_checkpoint
from lens.planning.plans import Plan, ordered
from lens.planning.probe_counting import ProbeCount
from lens.planning.probe_memory import probe_phases
from lens.planning.probes import ProbeFindings, ProbeRequest
from lens.planning.rates import Rates
from lens.planning.rows import Rows

if TYPE_CHECKING:
    from lens.models.chat import ChatOptions, Role
    from lens.models.pooling import Pooling
    from lens.models.sites import SiteSpec
    from lens.space.states import StatesDtype


def plan_probing(
    model: str | Path,
    rows: Rows | str | Path,
    *,
    pivot: str = "eng_Latn",
    sites: SiteSpec = "all",
    pooling: Pooling = "mean",
    role: Role = "text",
    prompts: Rows | str | Path | None = None,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    column: str | None = None,
    incomplete: Literal["refuse", "drop"] = "refuse",
    chat: ChatOptions | None = None,
    max_tokens: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    keep_states: str | Path | None = None,
    states_dtype: StatesDtype = "float16",
    choose_ranks: bool = False,
    layer_by_layer: bool = False,
    max_memory: str | int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    dtype: str = "auto",
    tokens: int | None = None,
    rates: Rates | Literal["measure"] | None = "measure",
    quick: bool = False,
    trust_remote_code: bool = False,
) -> Plan:
    """Plan a probe from config, index files and headers; no weight is used.

    Parameters
    ----------
    model : str or Path
        Folder of a checkpoint, a config file alone, or a hub id that is in the local cache.
    rows : mapping, str or Path
        Parallel text per language, or where `lens.data.read_parallel` finds it.
    pivot, sites, pooling, role, chat, max_tokens, batch_size, max_memory, choose_ranks
        As in `lens.probe`.
    prompts : mapping, str or Path, optional
        User prompts, for role ``"assistant"``.
    languages, limit, split, column, incomplete : optional
        What to take of a file, as in `lens.data.read_parallel`.
    keep_states : str or Path, optional
        Folder that will keep the pooled states of every row, stored as ``states_dtype``.
    layer_by_layer : bool
        Whether the model will be loaded so (`lens.models.load`).
    out : str or Path, optional
        File that the space will be written to, for the room on that disk and for whether it may
        be written; without it ``space.safetensors`` in the current folder. What is finished goes
        to a folder beside it while the probe runs, as ``lens probe`` has it.
    resume, force : bool
        Go on with an unfinished probe, or replace what is there.
    dtype : str
        ``"auto"`` (as the checkpoint says), ``"float32"``, ``"bfloat16"``, ``"float16"``.
    tokens : int, optional
        Length of every row, in place of counting.
    rates : Rates, "measure" or None
        Speeds to estimate times from; by default one block is run here and 32 MB are read. None
        gives no times.
    quick : bool
        From headers alone: nothing is asked of torch or transformers, and nothing is measured.
    trust_remote_code : bool
        Allow code that comes with the checkpoint to run.

    Returns
    -------
    Plan
        Memory by phase, disk, operations, time, rows a second, and every problem that was found.

    Raises
    ------
    InputError
        If there is no config, or ``dtype`` is unknown.
    MissingExtraError
        If transformers is needed, for a config alone, and not installed.

    Notes
    -----
    Memory is that of a probe on a CPU.
    """
    started = time.perf_counter()
    request = ProbeRequest(
        pivot=pivot, sites=sites, pooling=pooling, role=role, prompts=prompts, languages=languages,
        limit=limit, split=split, column=column, incomplete=incomplete, chat=chat,
        max_tokens=max_tokens, batch_size=batch_size, keep_states=keep_states,
        states_dtype=states_dtype, choose_ranks=choose_ranks, layer_by_layer=layer_by_layer,
        max_memory=max_memory, out=out, resume=resume, force=force, dtype=dtype, tokens=tokens,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    found = ProbeFindings(read_checkpoint(model), request, quick)
    found.look(rows)
    if not found.countable:
        taken = time.perf_counter() - started
        return Plan("probe", found.model, ordered(found.problems), seconds=taken)
    return _counted(found, rates, started)


def _counted(
    found: ProbeFindings, rates: Rates | Literal["measure"] | None, started: float
) -> Plan:
    count = ProbeCount.of(found)
    calibrated = 0.0
    if rates == "measure":
        began = time.perf_counter()
        rates = None if found.quick else count.measured()
        calibrated = time.perf_counter() - began
    memory, disk, free = probe_phases(count.sizes()), count.disk(), checks.free_memory()
    problems = [*found.problems, *count.problems(memory, free), *checks.of_disk(disk)]
    efforts = count.efforts(rates)
    return Plan(
        "probe", found.model, ordered(problems), memory, free, disk, efforts, rates, count.rows(),
        tuple(found.notes), time.perf_counter() - started - calibrated,
    )  # fmt: skip
