"""The plan of `lens.train`: what it will need, and everything that would stop it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens.planning import checks
from lens.planning.checkpoints import read_checkpoint
from lens.planning.counting import Count
from lens.planning.looking import Findings, Request
from lens.planning.memory import phases
from lens.planning.plans import Plan, ordered
from lens.planning.rates import Rates
from lens.planning.rows import Rows

if TYPE_CHECKING:
    from lens.lsm import LensConfig, Lora
    from lens.models.chat import ChatOptions
    from lens.space import Space


def plan_training(
    model: str | Path,
    prompts: Rows | str | Path,
    *,
    space: Space | str | Path | None = None,
    layers: str = "-2:",
    train: str = "full",
    lora: int | Lora | None = None,
    losses: str | LensConfig | dict[str, Any] = "pinned",
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    validation: Rows | str | Path | None = None,
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
        As in `lens.lsm.Running`.
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
    found = Findings(read_checkpoint(model), request, quick)
    found.look(prompts)
    plan_of = _counted if found.countable else _uncounted
    return plan_of(found, rates, started)


def _uncounted(found: Findings, _rates: object, started: float) -> Plan:
    """Plan of what cannot be counted: its problems."""
    seconds = time.perf_counter() - started
    return Plan("train", found.model, ordered(found.problems), seconds=seconds)


def _counted(found: Findings, rates: Rates | Literal["measure"] | None, started: float) -> Plan:
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
