"""``lens plan probe``: memory, disk and time of ``lens probe``, and what would stop it."""

from __future__ import annotations

from typing import Any

import click

from lens.cli._config import print_config
from lens.cli._options import chat_of
from lens.cli._planning import FLOPS, NO_TIME, QUICK, finish, params_of, rates_of
from lens.cli.probe import command as probe
from lens.cli.probe import read_batch_size, read_sites

# Options of lens probe that a plan can do without.
_OPTIONAL = ("out",)
_OWN = (
    click.Option(["--tokens"], type=click.IntRange(min=1),
                 help="Length of every row, in place of counting."),
    FLOPS,
    click.Option(["--reading"], type=click.FloatRange(min=0, min_open=True),
                 help="Bytes a second of the disk, with --flops."),
    NO_TIME,
    QUICK,
)  # fmt: skip


def _run(**given: Any) -> None:
    """Plan lens probe: what it needs in memory, on disk and in time, and what would stop it.

    Reads config, index files and safetensors headers; no weight. A config.json alone is enough.
    Exit code 2 where the probe could not run.
    """
    if given["print_config"]:
        print_config(click.get_current_context())
        return
    if given["states"] is not None:
        raise click.UsageError("with --states no model is run, so there is nothing to plan")
    if given["model"] is None or given["data"] is None:
        raise click.UsageError("give --model and --data")
    from lens.planning.plan import plan_probing

    plan = plan_probing(
        given["model"], given["data"], pivot=given["pivot"], sites=read_sites(given["sites"]),
        pooling=given["pooling"], role=given["role"], prompts=given["prompts"],
        languages=given["langs"], limit=given["limit"], split=given["split"],
        column=given["column"], incomplete=given["incomplete"],
        chat=chat_of(given["template"], given["system"], given["thinking"]),
        max_tokens=given["max_tokens"], batch_size=read_batch_size(given["batch_size"]),
        keep_states=given["keep_states"], states_dtype=given["states_dtype"],
        choose_ranks=given["choose_ranks"], layer_by_layer=given["layer_by_layer"],
        max_memory=given["max_memory"], out=given["out"], resume=given["resume"],
        force=given["force"], dtype=given["dtype"], tokens=given["tokens"],
        rates=rates_of(given, second="reading", share=None), quick=given["quick"],
        trust_remote_code=given["trust_remote_code"],
    )  # fmt: skip
    finish(plan, as_json=given["as_json"])


command = click.Command(
    "probe",
    params=params_of(probe, optional=_OPTIONAL, own=_OWN),
    callback=_run,
    help=_run.__doc__,
)
