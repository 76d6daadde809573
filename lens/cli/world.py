"""``lens world``: verbs about the embedded sample world."""

from __future__ import annotations

from lens.cli._group import LazyGroup

command = LazyGroup(
    name="world",
    help="Work with the embedded sample world.",
    verbs={
        "export": ("lens.cli.world_export", "Write its models and text as a user's files."),
        "train": ("lens.cli.world_train", "Make its three models again from their seed."),
        "transfer": ("lens.cli.world_transfer", "Study: an ability, carried over by weights."),
    },
    root=False,
)
