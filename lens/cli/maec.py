"""``lens maec``: train key neurons, and go from corpora to a merged model."""

from __future__ import annotations

from lens.cli._group import LazyGroup

command = LazyGroup(
    name="maec",
    help="Teach an ability in one language and carry it to others by weights (arXiv 2410.07825).",
    verbs={
        "train": ("lens.cli.maec_train", "Tune a model on an ability or a text, or key neurons."),
        "run": ("lens.cli.maec_run", "Locate, extract, train and merge: corpora to model."),
    },
    root=False,
)
