"""The whole road on the sample world: probe, choose, train, evaluate, compare, report.

Nothing here is special to the embedded models: they are loaded, probed, trained and evaluated by
the same functions as any other Hugging Face model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from lens.evaluate import ResultRow
from lens.evaluate.scoring import compare
from lens.lsm import PRESETS, LensTrainer
from lens.lsm.saving import versions
from lens.probing import probe
from lens.progress import say
from lens.report import Example, GridCell, LossCurve, RunRecord, Spectrum, System
from lens.space import Space
from lens.subspace import principal_angles
from lens.world import checkpoints
from lens.world.judging import Answers, Judge
from lens.world.languages import PIVOT
from lens.world.systems import (
    LAYERS,
    Tuned,
    choose_steering,
    same_budget,
    self_translation,
    train_prompts,
    tune,
)

SYSTEMS = (
    System("unchanged", "unchanged", "chat model tuned on English questions only"),
    System(
        "diffmean",
        "DiffMean steering",
        "no training; block and strength from validation; the pivot is not steered",
    ),
    System("random", "random subspace", "Lens with a random subspace of equal rank and step"),
    System("lens-v1", "Lens, published losses", "λ from validation"),
    System("lens", "Lens", "prompts only, no answers; λ from validation"),
    System(
        "self-translation",
        "self-translation",
        "prompts and 100 parallel sentences: tuned on its own answers, translated",
    ),
    System("sft-same-budget", "tuned on answers", "same blocks and steps, real answers"),
    System("possible", "mixed-language tuning", "what is possible: tuned on all languages"),
)


class _Demo:
    """State of one demo run: models, judges and what was measured so far."""

    def __init__(self, *, limit: int, seed: int) -> None:
        self.seed = seed
        self.model, self.tokenizer = checkpoints.load("chat")
        reference, _ = checkpoints.load("chat")
        common = {"reference": reference, "tokenizer": self.tokenizer, "seed": seed}
        self.validation = Judge("validation", **common)
        self.test = Judge("test", limit=limit, **common)
        self.rows: list[ResultRow] = []
        self.answers: dict[str, Answers] = {}
        self.seconds: dict[str, float] = {}
        prompts = train_prompts()
        read = partial(
            probe, self.model, self.tokenizer, prompts, pivot=PIVOT, pooling="last", seed=seed
        )
        with self.timed("probe"):
            # Where a question ends in plain text: what follows is written in its language.
            self.space = read(role="text")
            # Where the published method reads: under the chat template.
            self.prompt_space = read(role="user")

    @contextmanager
    def timed(self, label: str) -> Iterator[None]:
        """Announce a part and note how long it took."""
        say(f"{label} …")
        started = time.perf_counter()
        yield
        self.seconds[label] = round(time.perf_counter() - started, 2)

    def measure(self, system: str, model: Any, around: Any = None) -> None:
        """Answer the test questions with one system and keep its rows."""
        with self.timed(f"test {system}"):
            extra = {"around": around} if around else {}
            self.answers[system] = said = self.test.ask(model, **extra)
            self.rows += self.test.rows(system, said, self.test.drift(model, **extra))

    def lens_runs(self) -> dict[str, Tuned]:
        """Train and measure Lens, its published form and the random subspace."""
        tuned: dict[str, Tuned] = {}
        plans = (
            ("lens", "pinned", self.space, False),
            ("lens-v1", "lens-v1", self.prompt_space, False),
            ("random", "pinned", self.space, True),
        )
        for system, preset, space, random_subspace in plans:
            with self.timed(f"train {system}"):
                trainer = LensTrainer(
                    self.model, self.tokenizer, space, train_prompts(), layers=LAYERS
                )
                tuned[system] = tune(
                    trainer,
                    PRESETS[preset],
                    self.validation,
                    random_subspace=random_subspace,
                    seed=self.seed,
                )
            self.measure(system, self.model)
            trainer.restore()
        return tuned

    def controls(self) -> None:
        """Measure the unchanged model, steering, same-budget tuning and what is possible."""
        self.measure("unchanged", self.model)
        with self.timed("choose diffmean"):
            blocks = range(self.model.config.num_hidden_layers)
            steering = choose_steering(self.model, self.space, self.validation, blocks)
        self.measure("diffmean", self.model, steering.around)
        mixed, _ = checkpoints.load("mixed")
        self.measure("possible", mixed)
        with self.timed("train self-translation"):
            trainer, _ = self_translation(self.model, self.tokenizer, self.space, seed=self.seed)
        self.measure("self-translation", self.model)
        trainer.restore()
        with self.timed("train sft-same-budget"):
            same_budget(self.model, self.tokenizer, PRESETS["pinned"], seed=self.seed)
        self.measure("sft-same-budget", self.model)

    def record(self, tuned: Tuned, *, limit: int) -> RunRecord:
        """Put everything into the record the report is made from."""
        before, after = self.answers["unchanged"], self.answers["lens"]
        names = [f"loss_{term.kind}" for term in tuned.result.config.active]
        return RunRecord(
            title="From answers in English to answers in the language asked",
            rows=tuple(self.rows),
            spectra=tuple(_spectra(self.space, self.prompt_space)),
            losses=tuple(_curve(name, tuned) for name in dict.fromkeys(["loss", *names])),
            grid=tuple(_grid(tuned, len(self.validation.questions[PIVOT]))),
            examples=tuple(_examples(before, after)),
            about=_about(self, tuned, limit),
            comparisons=tuple(compare(before.outcomes, after.outcomes, pivot=PIVOT)),
            systems=SYSTEMS,
            pivot=PIVOT,
            angles_note="the subspace read under the chat template, as published",
        )


def run(*, limit: int = 500, seed: int = 0) -> RunRecord:
    """Run the demo and return its record.

    Parameters
    ----------
    limit : int
        Test questions per language, at most 1,000.
    seed : int
        Of training, the random subspace and bootstrap intervals.

    Returns
    -------
    RunRecord
        Rows, figures' data, examples and how it was made.
    """
    demo = _Demo(limit=limit, seed=seed)
    tuned = demo.lens_runs()
    demo.controls()
    return demo.record(tuned["lens"], limit=limit)


def _spectra(space: Space, other: Space) -> Iterator[Spectrum]:
    """Singular values per site, and angles between two ways of reading the directions."""
    for site in space.sites:
        fitted, prompt = space.fit(site, rank="full"), other.fit(site, rank="full")
        angles = np.degrees(principal_angles(fitted.basis, prompt.basis))
        yield Spectrum(
            site,
            tuple(map(float, fitted.singular_values)),
            tuple(map(float, angles)),
            space.fit(site).rank,
            space.fit(site).rank_reason,
        )


def _curve(name: str, tuned: Tuned) -> LossCurve:
    log = tuned.result.log
    steps = tuple(int(entry["step"]) for entry in log)
    return LossCurve(name, steps, tuple(entry[name] for entry in log))


def _grid(tuned: Tuned, n: int) -> Iterator[GridCell]:
    for trial in tuned.choice.trials:
        chosen = tuned.choice.strength[trial.language] == trial.strength
        for metric, value in (
            ("accuracy_in_language", trial.quality),
            ("fidelity", trial.fidelity),
        ):
            yield GridCell(trial.language, trial.strength, metric, value, n=n, chosen=chosen)


def _examples(before: Answers, after: Answers) -> Iterator[Example]:
    """Show the first two test questions of every language, whatever became of them."""
    seen: dict[str, int] = {}
    for question, old, new in zip(before.questions, before.answers, after.answers, strict=True):
        seen[question.language] = seen.get(question.language, 0) + 1
        if seen[question.language] <= 2:
            yield Example(question.language, question.prompt, old, new, question.answer)


def _about(demo: _Demo, tuned: Tuned, limit: int) -> dict[str, Any]:
    judge = demo.test.identifier
    return {
        "command": f"lens demo --limit {limit} --seed {demo.seed}",
        "seed": demo.seed,
        "versions": versions(),
        "language identifier": f"{judge.name} {judge.version}",
        "strength chosen": tuned.choice.strength,
        "layers trained": list(tuned.result.layers),
        "settings": tuned.result.config.model_dump(),
        "checkpoints": checkpoints.digests(),
        "seconds": demo.seconds,
    }
