"""``lens plan train``: memory, disk and time of ``lens train``, and what would stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from lens.cli._options import chat_of, print_json
from lens.cli.train import command as train

if TYPE_CHECKING:
    from lens.planning import Rates, TrainPlan

# Options of lens train that a plan can do without.
_OPTIONAL = ("space", "out")
_OWN = (
    click.Option(["--tokens"], type=click.IntRange(min=1),
                 help="Length of every prompt, in place of counting."),
    click.Option(["--answer-tokens"], type=click.IntRange(min=1),
                 help="Length of answers, for losses on them; by default as long as prompts."),
    click.Option(["--flops"], type=click.FloatRange(min=0, min_open=True),
                 help="Operations a second, such as 2e11, in place of measuring."),
    click.Option(["--bandwidth"], type=click.FloatRange(min=0, min_open=True),
                 help="Bytes a second, with --flops; a tenth of the operations by default."),
    click.Option(["--no-time"], is_flag=True, help="Measure nothing and estimate no time."),
    click.Option(["--quick"], is_flag=True,
                 help="From headers alone, in milliseconds; estimates no time."),
)  # fmt: skip


def _params() -> list[click.Parameter]:
    """Options of ``lens train``, so that a command can be planned by putting plan before train."""
    found: list[click.Parameter] = []
    for param in train.params:
        if isinstance(param, click.Option) and param.name in _OPTIONAL:
            names = [*param.opts, param.name or ""]
            text = f"{param.help} Optional here."
            found.append(click.Option(names, type=param.type, help=text))
        else:
            found.append(param)
    return [*found, *_OWN]


def _run(**given: Any) -> None:
    """Plan lens train: what it needs in memory, on disk and in time, and what would stop it.

    Reads config, index files and safetensors headers; no weight. A config.json alone is enough.
    Exit code 2 where training could not run.
    """
    from lens.planning import plan_training

    plan = plan_training(
        given["model"], given["prompts"], space=given["space"], layers=given["layers"],
        train=given["what"], lora=_lora(given), losses=_losses(given), languages=given["langs"],
        limit=given["limit"], validation=given["validation"],
        chat=_chat(given), dtype=given["dtype"], low_memory=given["low_memory"],
        gradient_checkpointing=given["gradient_checkpointing"],
        checkpoint_every=given["checkpoint_every"], cache=given["cache"],
        max_memory=given["max_memory"], out=given["out"], tokens=given["tokens"],
        answer_tokens=given["answer_tokens"], rates=_rates(given), quick=given["quick"],
        trust_remote_code=given["trust_remote_code"],
    )  # fmt: skip
    if given["as_json"]:
        print_json(plan.to_dict())
    else:
        _show(plan)
    if plan.errors:
        click.get_current_context().exit(2)


def _lora(given: dict[str, Any]) -> Any:
    from lens.errors import InputError

    if given["lora"] is None:
        if given["dora"] or given["lora_alpha"]:
            raise InputError("--dora and --lora-alpha are settings of adapters; give --lora RANK")
        return None
    if given["quick"] and not given["dora"]:
        return given["lora"]
    from lens.lsm.adapters import Lora

    return Lora(given["lora"], given["lora_alpha"], given["dora"])


def _losses(given: dict[str, Any]) -> Any:
    from lens.lsm.config import resolve

    names = (
        "steps", "learning_rate", "batch_size", "micro_batch", "clip", "warmup", "weight_decay",
        "validate_every", "patience",
    )  # fmt: skip
    settings = {name: given[name] for name in names if given[name] is not None}
    return resolve(resolve(given["losses"]).model_dump() | settings)


def _chat(given: dict[str, Any]) -> Any:
    return chat_of(given["template"], given["system"], given["thinking"])


def _rates(given: dict[str, Any]) -> Rates | Literal["measure"] | None:
    from lens.errors import InputError
    from lens.planning import Rates

    flops, bandwidth = given["flops"], given["bandwidth"]
    if flops is None:
        if bandwidth is not None:
            raise InputError("--bandwidth goes with --flops; without it both are measured")
        return None if given["no_time"] else "measure"
    return Rates(flops, flops, bandwidth or flops / 10, "given", "rates from the command line")


def _show(plan: TrainPlan) -> None:
    from rich.console import Console

    from lens.planning.showing import tables

    console = Console(highlight=False)
    for item in tables(plan):
        console.print(item, soft_wrap=isinstance(item, str), markup=False)


command = click.Command("train", params=_params(), callback=_run, help=_run.__doc__)
