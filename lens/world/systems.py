"""The systems the demo compares, each with its settings chosen on the validation split.

All of them start from the chat model, which was tuned on English questions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from lens.lsm import Choice, LensConfig, LensTrainer, TrainResult, Trial, choose_strengths
from lens.lsm.finetuning import finetune
from lens.lsm.geometry import geometries
from lens.recipes import SelfAnswers, self_translate
from lens.space import Space
from lens.steering import diffmean_rules, steer
from lens.world.checkpoints import load
from lens.world.facts import PEOPLE
from lens.world.judging import Judge
from lens.world.languages import LANGUAGES, OTHERS, PIVOT
from lens.world.questions import questions, text

LAYERS = "-2:"
GRID = (1.0, 1.5, 2.0, 2.5, 3.0)
STEER_STRENGTHS = (1.0, 2.0, 3.0)
PAIRS = 100  # parallel sentences that show how to translate
SCREENING = 60  # validation questions per language for the coarse steering grid


@dataclass(frozen=True, slots=True)
class Tuned:
    """A Lens run at strengths chosen per language, and the grid they were chosen from."""

    result: TrainResult
    choice: Choice


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
            self.space, language, layers=block, strength=strength, apply="prompt"
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
    grid: Sequence[float] = GRID,
    random_subspace: bool = False,
    seed: int = 0,
) -> Tuned:
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

    def trial(strength: float) -> list[Trial]:
        trainer.run(config, strength=strength, seed=seed, geometry=where)
        said = judge.ask(trainer.model, languages=OTHERS)
        drift = judge.drift(trainer.model).value
        return [
            Trial(
                lang,
                strength,
                said.share("accuracy_in_language", lang),
                said.share("fidelity", lang),
                drift,
            )
            for lang in OTHERS
        ]

    choice = choose_strengths(trial, grid)
    return Tuned(trainer.run(config, strength=choice.strength, seed=seed, geometry=where), choice)


def choose_steering(model: Any, space: Space, judge: Judge, blocks: Sequence[int]) -> Steering:
    """Choose block and strength of DiffMean steering per language on validation."""
    setting: dict[str, tuple[int, float]] = {}
    best = dict.fromkeys(OTHERS, (-1.0, -1.0))
    for block in blocks:
        for strength in STEER_STRENGTHS:
            tried = Steering(model, space, dict.fromkeys(OTHERS, (block, strength)))
            said = judge.ask(model, languages=OTHERS, around=tried.around, limit=SCREENING)
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
        model, tokenizer, prompts, {lang: text(lang, PAIRS) for lang in LANGUAGES}, pivot=PIVOT,
        translator=load("base")[0], neutral=PEOPLE, max_new_tokens=32, batch_size=256,
    )  # fmt: skip
    trainer = LensTrainer(model, tokenizer, space, prompts, layers=LAYERS, answers=made.answers)
    trainer.run("self-translation", seed=seed)
    return trainer, made


def same_budget(model: Any, tokenizer: Any, config: LensConfig, *, seed: int) -> None:
    """Tune the same blocks on real answers with Lens's steps, rows per step and schedule."""
    finetune(
        model, tokenizer, train_prompts(), train_answers(), layers=LAYERS, config=config, seed=seed
    )
