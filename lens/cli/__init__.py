"""The command ``lens``: one verb per file, each calling one Python function.

This module imports click and nothing else of weight; a verb's file is imported when the verb is
used, so that ``lens --help`` answers at once.
"""

from __future__ import annotations

from lens.cli._group import LazyGroup

_VERBS = {
    "demo": ("lens.cli.demo", "Run the whole road on the embedded sample world; write a report."),
    "doctor": ("lens.cli.doctor", "Say what is installed, what is missing, and what fixes it."),
    "data": ("lens.cli.data", "Check text before anything is computed from it."),
    "probe": ("lens.cli.probe", "Read the language space of a model from parallel text."),
    "space": ("lens.cli.space", "Merge, extend, cut, show and share language spaces."),
    "inspect": ("lens.cli.inspect", "Say what a space holds, how certain that is, and what to do."),
    "plan": (
        "lens.cli.plan",
        "Say what a job will need, and what would stop it, before it starts.",
    ),
    "train": ("lens.cli.train", "Train the top blocks to answer in the language asked (Lens)."),
    "steer": ("lens.cli.steer", "Generate with a language added or projected out."),
    "eval": ("lens.cli.evaluate", "Measure fidelity and accuracy of a model's answers."),
    "merge": ("lens.cli.merge", "Merge checkpoints: MAEC, task arithmetic, TIES, DARE and others."),
    "delta": ("lens.cli.delta", "Show what models changed from their base: the delta atlas."),
    "extract": ("lens.cli.extract", "Extract an ability as the few weights that hold it (MAEC)."),
    "maec": ("lens.cli.maec", "Teach an ability in one language, carry it over by weights."),
    "verify": ("lens.cli.verify", "Make tensors of a merged checkpoint again and compare."),
    "ablate": ("lens.cli.ablate", "Run a grid of settings; put the results side by side."),
    "report": ("lens.cli.report", "Render the report of a finished run again."),
    "world": ("lens.cli.world", "Work with the embedded sample world."),
}

main = LazyGroup(
    name="lens",
    help="Find, train, steer and measure the languages inside a language model.",
    verbs=_VERBS,
)
