"""``lens world``: verbs about the embedded sample world."""

from __future__ import annotations

from lens.cli._group import LazyGroup

command = LazyGroup(
    name="world",
    help="Work with the embedded sample world.",
    verbs={"train": ("lens.cli.world_train", "Make its three models again from their seed.")},
    root=False,
)
