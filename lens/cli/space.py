"""``lens space``: verbs about space files."""

from __future__ import annotations

from lens.cli._group import LazyGroup

_MODULE = "lens.cli.space_verbs"

command = LazyGroup(
    name="space",
    help="Work with language spaces.",
    verbs={
        "show": (f"{_MODULE}:show", "Say what a space holds and where it comes from."),
        "merge": (f"{_MODULE}:merge", "Join shards: the same languages, other rows."),
        "extend": (f"{_MODULE}:extend", "Add languages read over the same rows."),
        "drop": (f"{_MODULE}:drop", "Leave out languages."),
        "push": (f"{_MODULE}:push", "Upload a space with its card to the Hugging Face Hub."),
        "pull": (f"{_MODULE}:pull", "Bring a space from the Hugging Face Hub."),
    },
    root=False,
)
