"""One model of a sweep with its data; settings share spaces, answers and cached prefixes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lens.data.corpora import read_parallel
from lens.data.languages import canonical
from lens.errors import InputError
from lens.experiments.config import Sweep, SweepRun, SweepSetting, fill
from lens.experiments.methods import METHODS, MethodInputs
from lens.experiments.questions import QuestionSet
from lens.models.loading import load
from lens.space.probe import probe
from lens.space.space import Space
from lens.training.config import TrainerSettings
from lens.training.finetune import finetune
from lens.training.trainer import LensTrainer
from lens.training.translation import (
    TranslationOptions,
    Translator,
    question_translation,
    self_translate,
)

T = TypeVar("T")
StudyRows = dict[str, list[str]]
StudyAnswers = Mapping[str, Sequence[str | None]]


class Study:
    """One model of a sweep with its data.

    Parameters
    ----------
    sweep : Sweep
        What is varied.
    where : mapping of str to str
        What replaces the names in paths.

    Raises
    ------
    InputError
        If data or model cannot be read.
    """

    def __init__(self, sweep: Sweep, where: Mapping[str, str]) -> None:
        self.sweep, self.where = sweep, dict(where)
        self.model, self.tokenizer = self._load(sweep.model)
        self.reference, _ = self._load(sweep.model)
        self.pivot = canonical(sweep.pivot)
        self.prompts = self._rows(sweep.prompts)
        self._cache: dict[Any, Any] = {}
        self._releases: list[Callable[[], None]] = []  # take adapters off again

    def run(self, run: SweepRun, split: str) -> dict[str, Any]:
        """Apply the run's method, judge the result, restore the model, and return the record."""
        started = time.perf_counter()
        try:
            system = METHODS[run.setting.method].prepare(self._inputs(run))
            trained = time.perf_counter()
            model = self.model if system.model is None else system.model
            record = self.questions(split).judge(model, system.around, system.respond)
        finally:
            self._restore()
        judged = time.perf_counter()
        seconds = {"training": trained - started, "judging": judged - trained}
        return record | {"seconds": seconds, "log": system.log, "strength": system.strength}

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """Return the cached value of a key, made the first time."""
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found

    def _inputs(self, run: SweepRun) -> MethodInputs:
        """Everything that the run's method may use."""
        setting, how = run.setting, self.sweep.validation
        if setting.chooses and how.references is None:
            raise InputError(
                "strength: a list of values is chosen from by accuracy, which needs references: "
                "name their file under 'validation:'"
            )
        return MethodInputs(
            model=self.model,
            tokenizer=self.tokenizer,
            pivot=self.pivot,
            layers=setting.layers,
            config=setting.losses,
            strength=setting.strength,
            chooses=setting.chooses,
            max_drift=setting.max_drift,
            seed=run.seed,
            space=lambda: self.space(setting),
            shuffled=lambda: self.shuffled(setting, run.seed),
            trainer=lambda: self.trainer(setting),
            finetuned=lambda: self.finetuned(setting, run.seed),
            translator=self.translator,
            judge=lambda around: self.questions("validation").judge(self.model, around),
            checkpoint=lambda: self._load(str(setting.checkpoint))[0],
        )

    def questions(self, split: str) -> QuestionSet:
        """Return the questions of a split."""
        return self._once(
            ("questions", split),
            lambda: QuestionSet(
                getattr(self.sweep, split),
                self.reference,
                self.tokenizer,
                pivot=self.pivot,
                languages=self.sweep.languages,
                where=self.where,
                split=split,
            ),
        )

    def space(self, setting: SweepSetting) -> Space:
        """Language space of a setting, from the untouched model."""
        reading = self.sweep.readings[setting.space]
        rows = setting.prompts if reading.data is None else None
        key = ("space", setting.space, setting.without, rows)
        return self._once(key, lambda: self._probe(setting, self._reading(setting)))

    def shuffled(self, setting: SweepSetting, seed: int) -> Space:
        """Return a space of the same rows with the languages of each row shuffled (a null)."""
        rows = self._reading(setting)
        count = min(map(len, rows.values()))
        rng = random.Random(seed)
        drawn = [rng.sample(list(rows), len(rows)) for _ in range(count)]
        mixed = {
            code: [rows[order[place]][i] for i, order in enumerate(drawn)]
            for place, code in enumerate(rows)
        }
        return self._probe(setting, mixed)

    def trainer(self, setting: SweepSetting) -> LensTrainer:
        """Return a trainer with the prefixes that a setting needs; equal settings share one."""
        rows = setting.losses.read_rows
        options = setting.part(
            TrainerSettings, sites=setting.losses.sites, references=setting.losses.references
        )
        answers = setting.answers if "answers" in rows else None
        data = (setting.space, setting.prompts, setting.without, "text" in rows, answers)

        def make() -> LensTrainer:
            prompts, given = self.training_prompts(setting), None
            if answers is not None:
                prompts, given = self.supervised(setting)
            texts = self._optional("texts") if "text" in rows else {}
            return LensTrainer(
                self.model,
                self.tokenizer,
                self.space(setting),
                prompts,
                settings=options,
                texts={k: v for k, v in texts.items() if k in prompts and k != self.pivot} or None,
                answers=given,
            )

        found = self._once(("trainer", options.model_dump_json(), data), make)
        self._releases.append(found.release)
        return found

    def finetuned(self, setting: SweepSetting, seed: int) -> dict[str, float]:
        """Tune a setting's blocks on answers; return the last entry of the log."""
        prompts, given = self.supervised(setting)
        answers = {code: [row for row in rows if row is not None] for code, rows in given.items()}
        short = [code for code in prompts if len(answers.get(code, ())) < len(prompts[code])]
        if short and setting.answers != "given":
            raise InputError(
                f"method finetune needs an answer to every prompt, and {', '.join(short)} lack "
                "some; use method lens with losses self-translation, which leaves such prompts out"
            )
        tuned = finetune(
            self.model,
            self.tokenizer,
            prompts,
            answers,
            config=setting.losses,
            seed=seed,
            settings=setting,
        )
        self._releases.append(tuned.release)
        return tuned.log[-1]

    def training_prompts(self, setting: SweepSetting) -> StudyRows:
        """Prompts of the languages that are trained."""
        left_out = {canonical(code) for code in setting.without}
        if self.pivot in left_out:
            raise InputError(f"without: the pivot {self.pivot} cannot be left out of training")
        return {k: v[: setting.prompts] for k, v in self.prompts.items() if k not in left_out}

    def supervised(self, setting: SweepSetting) -> tuple[StudyRows, StudyAnswers]:
        """Prompts and their answers: those given, or those that a recipe generates, once."""
        trained = self.training_prompts(setting)
        if setting.answers == "given":
            given = self._optional("answers")
            if any(len(rows) != len(self.prompts[code]) for code, rows in given.items()):
                raise InputError("answers: expected one line per line of prompts")
            return trained, {k: v[: setting.prompts] for k, v in given.items() if k in trained}
        recipe = setting.answers
        prompts, answers = self._once(("answers", recipe), lambda: self._generated(recipe))
        return (
            {code: prompts[code][: setting.prompts] for code in trained},
            {code: answers[code][: setting.prompts] for code in trained},
        )

    def translator(self) -> Translator:
        """Model and examples that translate."""

        def make() -> Translator:
            path = self.sweep.translator
            return Translator(
                self.model if path is None else self._load(path)[0],
                self.tokenizer,
                self._optional("texts"),
                languages=list(self.prompts),
                options=self._translation,
            )

        return self._once("translator", make)

    def _generated(self, recipe: str) -> tuple[StudyRows, StudyAnswers]:
        if recipe == "questions":
            made = question_translation(
                self.model,
                self.tokenizer,
                self.prompts,
                pivot=self.pivot,
                options=self._translation,
            )
            return made.prompts, made.answers
        by = self.translator()
        said = self_translate(
            self.model,
            self.tokenizer,
            self.prompts,
            by.pool,
            pivot=self.pivot,
            translator=by.model,
            options=replace(self._translation, neutral=self.questions("validation").neutral),
        )
        return self.prompts, said.answers

    @property
    def _translation(self) -> TranslationOptions:
        how = self.sweep.validation
        return TranslationOptions(
            max_new_tokens=how.max_new_tokens,
            batch_size=how.batch_size,
            identifier=how.identifier,
        )

    def _probe(self, setting: SweepSetting, rows: StudyRows) -> Space:
        reading = self.sweep.readings[setting.space]
        prompts = self.training_prompts(setting) if reading.role == "assistant" else None
        return probe(
            self.model,
            self.tokenizer,
            rows,
            pivot=self.pivot,
            role=reading.role,
            pooling=reading.pooling,
            prompts=prompts,
        )

    def _reading(self, setting: SweepSetting) -> StudyRows:
        """Rows from which a setting's space is read."""
        reading, rows = self.sweep.readings[setting.space], self.training_prompts(setting)
        if reading.data is not None:
            rows = {k: v for k, v in self._rows(reading.data).items() if k in rows}
        if not reading.parallel:
            rows = {k: random.Random(k).sample(v, len(v)) for k, v in rows.items()}
        return {k: v[: reading.limit] for k, v in rows.items()}

    def _restore(self) -> None:
        """Restore the weights from the untouched copy, without adapters."""
        while self._releases:
            self._releases.pop()()
        self.model.load_state_dict(self.reference.state_dict())

    def _load(self, path: str) -> tuple[Any, Any]:
        return load(fill(path, self.where), dtype=self.sweep.dtype, device=self.sweep.device)

    def _optional(self, name: str) -> StudyRows:
        path = getattr(self.sweep, name)
        if path is None:
            raise InputError(f"a setting needs {name}; name their file under '{name}:'")
        return self._rows(path)

    def _rows(self, path: str) -> StudyRows:
        return read_parallel(fill(path, self.where), languages=self.sweep.languages).rows
