"""``lens world``: verbs about the embedded sample world."""

from __future__ import annotations

from lens.cli._group import LazyGroup

command = LazyGroup(
    name="world",
    help="Work with the embedded sample world.",
    verbs={
        "export": ("lens.cli.world_export", "Write its models and text as a user's files."),
    },
    root=False,
)
