"""``lens data``: verbs about text."""

from __future__ import annotations

from lens.cli._group import LazyGroup

command = LazyGroup(
    name="data",
    help="Work with parallel text.",
    verbs={
        "check": ("lens.cli.data_check", "Say what is wrong with text, and what to do about it."),
    },
    root=False,
)
