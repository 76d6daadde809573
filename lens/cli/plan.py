"""``lens plan``: what a job will need, and everything wrong with it, before it is started."""

from __future__ import annotations

from lens.cli._group import LazyGroup

command = LazyGroup(
    name="plan",
    help="Say what a job will need, and everything that would stop it, before it is started.",
    verbs={
        "train": ("lens.cli.plan_train", "Plan lens train; takes the same options."),
        "probe": ("lens.cli.plan_probe", "Plan lens probe; takes the same options."),
        "merge": ("lens.cli.plan_merge", "Plan lens merge: what it reads, writes and holds."),
    },
    root=False,
)
