"""The plans of `lens.probe` and `lens.train`: resources, and every problem, before any weight is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens.planning import checks
from lens.models.checkpoint import read_checkpoint
from lens.planning.cost import Rates
from lens.planning.counting import Count, ProbeCount
from lens.planning.findings import PlanRows, ProbeFindings, ProbeRequest, Request, TrainFindings
from lens.planning.memory import phases, probe_phases
from lens.planning.results import Plan, ordered

if TYPE_CHECKING:
    from lens.models.hidden_states import Pooling
    from lens.models.layers import SiteSpec
    from lens.models.tokenization import ChatOptions, Role
    from lens.space.space import Space
    from lens.space.state_store import StatesDtype
    from lens.training.config import LensConfig
    from lens.training.parameters import Lora


def plan_probing(
    model: str | Path,
    rows: PlanRows | str | Path,
    *,
    pivot: str = "eng_Latn",
    sites: SiteSpec = "all",
    pooling: Pooling = "mean",
    role: Role = "text",
    prompts: PlanRows | str | Path | None = None,
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
    return _counted_probe(found, rates, started)


def _counted_probe(
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


def plan_training(
    model: str | Path,
    prompts: PlanRows | str | Path,
    *,
    space: Space | str | Path | None = None,
    layers: str = "-2:",
    train: str = "full",
    lora: int | Lora | None = None,
    losses: str | LensConfig | dict[str, Any] = "pinned",
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    validation: PlanRows | str | Path | None = None,
    chat: ChatOptions | None = None,
    dtype: str = "auto",
    low_memory: bool = False,
    gradient_checkpointing: bool = False,
    checkpoint_every: int | None = None,
    cache: str | Path | None = None,
    max_memory: str | int | None = None,
    out: str | Path | None = None,
    tokens: int | None = None,
    answer_tokens: int | None = None,
    rates: Rates | Literal["measure"] | None = "measure",
    quick: bool = False,
    trust_remote_code: bool = False,
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
        Language space; without it, nothing is said about languages and pivot.
    layers, train, lora, losses, low_memory, cache, max_memory, chat
        As in `lens.train`.
    languages, limit : optional
        Which languages and how many rows to take of a file.
    validation : mapping, str or Path, optional
        Held-out prompts.
    dtype : str
        ``"auto"`` (as the checkpoint says), ``"float32"``, ``"bfloat16"``, ``"float16"``.
    gradient_checkpointing, checkpoint_every
        As in `lens.training.RunOptions`.
    out : str or Path, optional
        Where the result will be written, for the room on that disk; else the current folder.
    tokens, answer_tokens : int, optional
        Length of every prompt, and of every answer, in place of counting.
    rates : Rates, "measure" or None
        Speeds to estimate times from; by default one block is run here. None gives no times.
    quick : bool
        From headers alone: nothing is asked of torch or transformers, and nothing is measured.
        Missing tensors are then found by comparing blocks with each other, tokens are counted in
        bytes of text, and activations come from a formula.
    trust_remote_code : bool
        Allow code that comes with the checkpoint to run.

    Returns
    -------
    Plan
        Memory by phase, disk, operations, time, and every problem that was found.

    Raises
    ------
    InputError
        If there is no config, or a setting is none that `lens.train` knows.
    MissingExtraError
        If transformers is needed, for a config alone, and not installed.
    """
    started = time.perf_counter()
    request = Request(
        space=space, layers=layers, train=train, lora=lora, losses=losses, languages=languages,
        limit=limit, validation=validation, chat=chat, dtype=dtype, low_memory=low_memory,
        gradient_checkpointing=gradient_checkpointing, checkpoint_every=checkpoint_every,
        cache=cache, max_memory=max_memory, out=out, tokens=tokens, answer_tokens=answer_tokens,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    found = TrainFindings(read_checkpoint(model), request, quick)
    found.look(prompts)
    plan_of = _counted_training if found.countable else _uncounted
    return plan_of(found, rates, started)


def _uncounted(found: TrainFindings, _rates: object, started: float) -> Plan:
    """Plan of what cannot be counted: its problems."""
    seconds = time.perf_counter() - started
    return Plan("train", found.model, ordered(found.problems), seconds=seconds)


def _counted_training(
    found: TrainFindings, rates: Rates | Literal["measure"] | None, started: float
) -> Plan:
    count = Count.of(found)
    calibrated = 0.0
    if rates == "measure":
        began = time.perf_counter()
        rates = None if found.quick else count.measured()
        calibrated = time.perf_counter() - began
    memory, disk, free = phases(count.sizes()), count.disk(), checks.free_memory()
    problems = [*found.problems, *count.problems(memory, free), *checks.of_disk(disk)]
    return Plan(
        "train", found.model, ordered(problems), memory, free, disk, count.efforts(rates), rates,
        count.rows(), tuple(found.notes), time.perf_counter() - started - calibrated,
    )  # fmt: skip
