"""The demonstration on the sample world: probe, choose, train, evaluate, compare, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lens.data.language_id import identifier
from lens.demo import models
from lens.demo.languages import LANGUAGES, OTHERS, PIVOT
from lens.demo.models import load
from lens.demo.questions import PEOPLE, Question, is_correct, questions, text
from lens.evaluation.accuracy import Outcomes, compare, outcomes, rows_of
from lens.evaluation.drift import pivot_kl
from lens.evaluation.results import ResultRow
from lens.models.generation import generate
from lens.report.record import Example, GridCell, LossCurve, RunRecord, SpectrumCurve, System
from lens.space.probe import probe
from lens.space.space import Space
from lens.steering.hooks import steer
from lens.steering.vectors import diffmean_rules
from lens.subspace import principal_angles
from lens.training.config import PRESETS, LensConfig
from lens.training.finetune import finetune
from lens.training.objective import geometries
from lens.training.result import TrainResult
from lens.training.trainer import LensTrainer, StrengthChoice, StrengthTrial, choose_strengths
from lens.training.translation import SelfAnswers, TranslationOptions, self_translate
from lens.utils.progress import say
from lens.utils.versions import versions

Around = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said to every question, and how it was marked."""

    questions: list[Question]
    answers: list[str]
    outcomes: Outcomes

    def share(self, metric: str, language: str) -> float:
        """Share of one language's answers that satisfy ``metric``."""
        return float(self.outcomes.by_language(metric)[language].mean())


class Judge:
    """The questions of one split, asked and marked always in the same way.

    Parameters
    ----------
    split : str
        ``"validation"`` or ``"test"``.
    limit : int, optional
        First so many questions per language.
    reference : PreTrainedModel
        The unchanged model, from which drift is measured.
    tokenizer
        Its tokenizer.
    seed : int
        Seed of bootstrap intervals, recorded in every row.
    """

    def __init__(
        self, split: str, *, reference: Any, tokenizer: Any, limit: int | None = None, seed: int = 0
    ) -> None:
        self.split, self.seed = split, seed
        self.reference, self.tokenizer = reference, tokenizer
        self.identifier = identifier("default", list(LANGUAGES), neutral=PEOPLE)
        self.questions = {lang: questions(split, lang, limit) for lang in LANGUAGES}

    def ask(
        self,
        model: Any,
        *,
        languages: Sequence[str] = LANGUAGES,
        around: Around = lambda _lang: nullcontext(),
        limit: int | None = None,
    ) -> Answers:
        """Answer and mark the questions in ``languages``, inside ``around(language)``."""
        asked: list[Question] = []
        answers: list[str] = []
        for lang in languages:
            chosen = self.questions[lang][:limit]
            with around(lang):
                answers += generate(
                    model,
                    self.tokenizer,
                    [question.prompt for question in chosen],
                    max_new_tokens=32,
                    batch_size=256,
                    label=f"Answering {lang}",
                )
            asked += chosen
        found = self.identifier.identify(answers)
        marked = outcomes(answers, asked, identified=found, is_correct=is_correct)
        return Answers(asked, answers, marked)

    def drift(self, model: Any, around: Around = lambda _lang: nullcontext()) -> ResultRow:
        """Mean KL of the pivot's next-token distributions from the unchanged model's, in nats."""
        prompts = [question.prompt for question in self.questions[PIVOT]]
        kl = pivot_kl(
            self.reference,
            model,
            self.tokenizer,
            prompts,
            batch_size=256,
            steered=lambda: around(PIVOT),
            seed=self.seed,
        )
        return ResultRow("", PIVOT, self.split, "kl", kl.mean, kl.n, kl.low, kl.high, self.seed)

    def rows(self, system: str, answers: Answers, drift: ResultRow) -> list[ResultRow]:
        """All rows of one system."""
        rows = rows_of(
            answers.outcomes, system=system, split=self.split, pivot=PIVOT, seed=self.seed
        )
        return [*rows, replace(drift, system=system)]


LAYERS = "-2:"
STEER_STRENGTHS = (1.0, 2.0, 3.0)
PAIRS = 100  # parallel sentences that show how to translate


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of the demo is computed; its parts and its measures stay the same.

    Attributes
    ----------
    grid : tuple of float
        Strengths λ that are tried on validation questions.
    validation : int or None
        Validation questions per language that choose λ; None for all.
    steering : int
        Validation questions per language that choose block and strength of steering.
    test : int
        Test questions per language.
    ability : int
        Test questions per language of the second act.
    """

    grid: tuple[float, ...]
    validation: int | None
    steering: int
    test: int
    ability: int


QUICK = Budget(grid=(1.0, 2.0, 3.0), validation=60, steering=30, test=200, ability=100)
FULL = Budget(grid=(1.0, 1.5, 2.0, 2.5, 3.0), validation=None, steering=60, test=500, ability=200)


@dataclass(frozen=True, slots=True)
class TunedSystem:
    """A Lens run at strengths chosen per language, and the grid they were chosen from."""

    result: TrainResult
    choice: StrengthChoice


@dataclass(frozen=True, slots=True)
class Steering:
    """DiffMean at the block and strength that served each language best."""

    model: Any
    space: Space
    setting: dict[str, tuple[int, float]]

    def around(self, language: str) -> AbstractContextManager[Any]:
        """Steer while answering in ``language``; the pivot is left alone."""
        if language == PIVOT:
            return nullcontext()
        block, strength = self.setting[language]
        rules = diffmean_rules(
            self.space, language, layers=block, strength=strength, tokens="prompt"
        )
        return steer(self.model, rules)


def train_prompts() -> dict[str, list[str]]:
    """Return the prompts of the train split, parallel over all languages."""
    return {lang: [q.prompt for q in questions("train", lang)] for lang in LANGUAGES}


def train_answers() -> dict[str, list[str]]:
    """Return the real answers to `train_prompts`; only supervised tuning may see them."""
    return {lang: [q.answer for q in questions("train", lang)] for lang in LANGUAGES}


def tune(
    trainer: LensTrainer,
    config: LensConfig,
    judge: Judge,
    *,
    grid: Sequence[float] = FULL.grid,
    random_subspace: bool = False,
    seed: int = 0,
) -> TunedSystem:
    """Choose λ per language on validation, then train once with the chosen values.

    Parameters
    ----------
    trainer : LensTrainer
        Holds model, space and cached prompts.
    config : LensConfig
        Loss terms and optimizer.
    judge : Judge
        Validation questions.
    grid : sequence of float
        Values of λ to try.
    random_subspace : bool
        Use a random subspace of equal rank and steps of equal length instead (control).
    seed : int
        Of the training runs and of the random subspace.
    """
    where = geometries(trainer.space, config.subspace_sites, config)
    if random_subspace:
        where = {site: geometry.randomised(seed) for site, geometry in where.items()}

    def trial(strength: float) -> list[StrengthTrial]:
        trainer.run(config, strength=strength, seed=seed, geometry=where)
        said = judge.ask(trainer.model, languages=OTHERS)
        drift = judge.drift(trainer.model).value
        return [
            StrengthTrial(
                lang,
                strength,
                said.share("accuracy_in_language", lang),
                said.share("fidelity", lang),
                drift,
            )
            for lang in OTHERS
        ]

    choice = choose_strengths(trial, grid)
    return TunedSystem(
        trainer.run(config, strength=choice.strength, seed=seed, geometry=where), choice
    )


def choose_steering(
    model: Any, space: Space, judge: Judge, blocks: Sequence[int], *, limit: int = FULL.steering
) -> Steering:
    """Choose block and strength of DiffMean steering per language on validation."""
    setting: dict[str, tuple[int, float]] = {}
    best = dict.fromkeys(OTHERS, (-1.0, -1.0))
    for block in blocks:
        for strength in STEER_STRENGTHS:
            tried = Steering(model, space, dict.fromkeys(OTHERS, (block, strength)))
            said = judge.ask(model, languages=OTHERS, around=tried.around, limit=limit)
            for lang in OTHERS:
                score = (said.share("accuracy_in_language", lang), said.share("fidelity", lang))
                if score > best[lang]:
                    best[lang], setting[lang] = score, (block, strength)
    return Steering(model, space, setting)


def self_translation(
    model: Any, tokenizer: Any, space: Space, *, seed: int
) -> tuple[LensTrainer, SelfAnswers]:
    """Tune the same blocks on the model's own English answers, translated by the base model.

    Returns the trainer, which can put the weights back, and what was translated.
    """
    prompts = train_prompts()
    made = self_translate(
        model,
        tokenizer,
        prompts,
        {lang: text(lang, PAIRS) for lang in LANGUAGES},
        pivot=PIVOT,
        translator=load("base")[0],
        options=TranslationOptions(neutral=PEOPLE, max_new_tokens=32, batch_size=256),
    )
    trainer = LensTrainer(model, tokenizer, space, prompts, layers=LAYERS, answers=made.answers)
    trainer.run("self-translation", seed=seed)
    return trainer, made


def same_budget(model: Any, tokenizer: Any, config: LensConfig, *, seed: int) -> None:
    """Tune the same blocks on real answers with Lens's steps, rows per step and schedule."""
    finetune(
        model, tokenizer, train_prompts(), train_answers(), layers=LAYERS, config=config, seed=seed
    )


SYSTEMS = (
    System("unchanged", "unchanged", "chat model tuned on English questions only"),
    System(
        "diffmean",
        "DiffMean steering",
        "no training; block and strength from validation; the pivot is not steered",
    ),
    System("random", "random subspace", "Lens with a random subspace of equal rank and step"),
    System("lens-paper", "Lens, published losses", "λ from validation"),
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

    def __init__(self, budget: Budget, *, seed: int) -> None:
        self.budget, self.seed = budget, seed
        self.model, self.tokenizer = models.load("chat")
        reference, _ = models.load("chat")
        common = {"reference": reference, "tokenizer": self.tokenizer, "seed": seed}
        self.validation = Judge("validation", limit=budget.validation, **common)
        self.test = Judge("test", limit=budget.test, **common)
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

    def lens_runs(self) -> dict[str, TunedSystem]:
        """Train and measure Lens, its published form and the random subspace."""
        tuned: dict[str, TunedSystem] = {}
        plans = (
            ("lens", "lens+kl", self.space, False),
            ("lens-paper", "lens-paper", self.prompt_space, False),
            ("random", "lens+kl", self.space, True),
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
                    grid=self.budget.grid,
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
            steering = choose_steering(
                self.model, self.space, self.validation, blocks, limit=self.budget.steering
            )
        self.measure("diffmean", self.model, steering.around)
        mixed, _ = models.load("mixed")
        self.measure("possible", mixed)
        with self.timed("train self-translation"):
            trainer, _ = self_translation(self.model, self.tokenizer, self.space, seed=self.seed)
        self.measure("self-translation", self.model)
        trainer.restore()
        with self.timed("train sft-same-budget"):
            same_budget(self.model, self.tokenizer, PRESETS["lens+kl"], seed=self.seed)
        self.measure("sft-same-budget", self.model)

    def record(self, tuned: TunedSystem) -> RunRecord:
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
            about=_about(self, tuned),
            comparisons=tuple(compare(before.outcomes, after.outcomes, pivot=PIVOT)),
            systems=SYSTEMS,
            pivot=PIVOT,
            angles_note="the subspace read under the chat template, as published",
        )


def run(*, limit: int | None = None, seed: int = 0, full: bool = False) -> RunRecord:
    """Run the demo and return its record.

    Parameters
    ----------
    limit : int, optional
        Test questions per language, at most 1,000; 200, or 500 with ``full``, by default.
    seed : int
        Of training, the random subspace and bootstrap intervals.
    full : bool
        Choose settings on all validation questions and from the finer grid (see `FULL`).

    Returns
    -------
    RunRecord
        Rows, figures' data, examples and how it was computed.
    """
    budget = FULL if full else QUICK
    demo = _Demo(replace(budget, test=limit or budget.test), seed=seed)
    tuned = demo.lens_runs()
    demo.controls()
    return demo.record(tuned["lens"])


def _spectra(space: Space, other: Space) -> Iterator[SpectrumCurve]:
    """Singular values per site, and angles between two ways of reading the directions."""
    for site in space.sites:
        fitted, prompt = space.fit(site, rank="full"), other.fit(site, rank="full")
        angles = np.degrees(principal_angles(fitted.basis, prompt.basis))
        yield SpectrumCurve(
            site,
            tuple(map(float, fitted.singular_values)),
            tuple(map(float, angles)),
            space.fit(site).rank,
            space.fit(site).rank_reason,
        )


def _curve(name: str, tuned: TunedSystem) -> LossCurve:
    log = tuned.result.log
    steps = tuple(int(entry["step"]) for entry in log)
    return LossCurve(name, steps, tuple(entry[name] for entry in log))


def _grid(tuned: TunedSystem, n: int) -> Iterator[GridCell]:
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


def _about(demo: _Demo, tuned: TunedSystem) -> dict[str, Any]:
    judge = demo.test.identifier
    return {
        "command": f"lens demo{' --full' if demo.budget.grid == FULL.grid else ''} "
        f"--limit {demo.budget.test} --seed {demo.seed}",
        "seed": demo.seed,
        "versions": versions(),
        "language identifier": f"{judge.name} {judge.version}",
        "strength chosen": tuned.choice.strength,
        "layers trained": list(tuned.result.layers),
        "settings": tuned.result.config.model_dump(),
        "checkpoints": models.digests(),
        "seconds": demo.seconds,
    }
