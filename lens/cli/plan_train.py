"""``lens plan train``: memory, disk and time of ``lens train``, and what would stop it."""

from __future__ import annotations

from typing import Any

import click

from lens.cli._options import chat_of
from lens.cli._planning import FLOPS, NO_TIME, QUICK, finish, params_of, rates_of
from lens.cli.train import command as train

# Options of lens train that a plan can do without.
_OPTIONAL = ("space", "out")
_OWN = (
    click.Option(["--tokens"], type=click.IntRange(min=1),
                 help="Length of every prompt, in place of counting."),
    click.Option(["--answer-tokens"], type=click.IntRange(min=1),
                 help="Length of answers, for losses on them; by default as long as prompts."),
    FLOPS,
    click.Option(["--bandwidth"], type=click.FloatRange(min=0, min_open=True),
                 help="Bytes a second, with --flops; a tenth of the operations by default."),
    NO_TIME,
    QUICK,
)  # fmt: skip


def _run(**given: Any) -> None:
    """Plan lens train: what it needs in memory, on disk and in time, and what would stop it.

    Reads config, index files and safetensors headers; no weight. A config.json alone is enough.
    Exit code 2 where training could not run.
    """
    from lens.planning.plan import plan_training

    plan = plan_training(
        given["model"], given["prompts"], space=given["space"], layers=given["layers"],
        train=given["what"], lora=_lora(given), losses=_losses(given), languages=given["langs"],
        limit=given["limit"], validation=given["validation"],
        chat=_chat(given), dtype=given["dtype"], low_memory=given["low_memory"],
        gradient_checkpointing=given["gradient_checkpointing"],
        checkpoint_every=given["checkpoint_every"], cache=given["cache"],
        max_memory=given["max_memory"], out=given["out"], tokens=given["tokens"],
        answer_tokens=given["answer_tokens"],
        rates=rates_of(given, second="bandwidth", share=0.1), quick=given["quick"],
        trust_remote_code=given["trust_remote_code"],
    )  # fmt: skip
    finish(plan, as_json=given["as_json"])


def _lora(given: dict[str, Any]) -> Any:
    from lens.errors import InputError

    if given["lora"] is None:
        if given["dora"] or given["lora_alpha"]:
            raise InputError("--dora and --lora-alpha are settings of adapters; give --lora RANK")
        return None
    if given["quick"] and not given["dora"]:
        return given["lora"]
    from lens.training.parameters import Lora

    return Lora(given["lora"], given["lora_alpha"], given["dora"])


def _losses(given: dict[str, Any]) -> Any:
    from lens.training.config import resolve

    names = (
        "steps", "learning_rate", "batch_size", "micro_batch_size", "max_grad_norm", "warmup_ratio",
        "weight_decay", "validate_every", "patience",
    )  # fmt: skip
    settings = {name: given[name] for name in names if given[name] is not None}
    return resolve(resolve(given["losses"]).model_dump() | settings)


def _chat(given: dict[str, Any]) -> Any:
    return chat_of(given["template"], given["system"], given["thinking"])


command = click.Command(
    "train",
    params=params_of(train, optional=_OPTIONAL, own=_OWN),
    callback=_run,
    help=_run.__doc__,
)
