"""One model of a sweep with its data; settings share spaces, answers and cached prefixes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

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
        self._made: dict[Any, Any] = {}
        self.releases: list[Callable[[], None]] = []  # take adapters off again

    def run(self, run: SweepRun, split: str) -> dict[str, Any]:
        """Do what the run says, judge it, put the model back, and return its record."""
        started = time.perf_counter()
        try:
            made = METHODS[run.setting.method].prepare(self._inputs(run))
            trained = time.perf_counter()
            model = self.model if made.model is None else made.model
            record = self.asked(split).judge(model, made.around, made.respond)
        finally:
            self._restore()
        record["seconds"] = {
            "training": trained - started, "judging": time.perf_counter() - trained
        }  # fmt: skip
        return record | {"log": made.log, "strength": made.strength}

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
            judge=lambda around: self.asked("validation").judge(self.model, around),
            checkpoint=lambda: self._load(str(setting.checkpoint))[0],
        )

    def asked(self, split: str) -> QuestionSet:
        """Return the questions of a split."""
        key = ("asked", split)
        if key not in self._made:
            self._made[key] = QuestionSet(
                getattr(self.sweep, split), self.reference, self.tokenizer, pivot=self.pivot,
                languages=self.sweep.languages, where=self.where, split=split,
            )  # fmt: skip
        found: QuestionSet = self._made[key]
        return found

    def space(self, setting: SweepSetting) -> Space:
        """Language space of a setting, from the untouched model."""
        reading = self.sweep.readings[setting.space]
        rows = setting.prompts if reading.data is None else None
        key = ("space", setting.space, setting.without, rows)
        if key not in self._made:
            self._made[key] = self._probe(setting, self._reading(setting))
        found: Space = self._made[key]
        return found

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
        """Return a trainer with the prefixes that a setting needs; settings alike share one."""
        config = setting.losses
        kinds = config.read_rows
        answers = setting.answers if "answers" in kinds else None
        key = (
            "trainer", setting.layers, setting.modules, setting.lora, config.sites,
            config.references, setting.space, setting.prompts, setting.without, "text" in kinds,
            answers,
        )  # fmt: skip
        if key not in self._made:
            asked, given = self.training_prompts(setting), None
            if answers is not None:
                asked, given = self.supervised(setting)
            texts = self._optional("texts") if "text" in kinds else {}
            self._made[key] = LensTrainer(
                self.model, self.tokenizer, self.space(setting), asked,
                settings=setting.part(
                    TrainerSettings, sites=config.sites, references=config.references
                ),
                texts={k: v for k, v in texts.items() if k in asked and k != self.pivot} or None,
                answers=given,
            )  # fmt: skip
        found: LensTrainer = self._made[key]
        self.releases.append(found.release)
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
            self.model, self.tokenizer, prompts, answers, config=setting.losses, seed=seed,
            settings=setting,
        )  # fmt: skip
        self.releases.append(tuned.release)
        return tuned.log[-1]

    def training_prompts(self, setting: SweepSetting) -> StudyRows:
        """Prompts of the languages that are trained."""
        left_out = {canonical(code) for code in setting.without}
        if self.pivot in left_out:
            raise InputError(f"without: the pivot {self.pivot} cannot be left out of training")
        return {k: v[: setting.prompts] for k, v in self.prompts.items() if k not in left_out}

    def supervised(self, setting: SweepSetting) -> tuple[StudyRows, StudyAnswers]:
        """Prompts and their answers: those given, or those that a recipe makes, once."""
        asked = self.training_prompts(setting)
        if setting.answers == "given":
            answers = self._optional("answers")
            if any(len(rows) != len(self.prompts[code]) for code, rows in answers.items()):
                raise InputError("answers: expected one line per line of prompts")
            return asked, {k: v[: setting.prompts] for k, v in answers.items() if k in asked}
        key = ("answers", setting.answers)
        if key not in self._made:
            self._made[key] = self._self_made(setting.answers)
        prompts, answers = self._made[key]
        return (
            {code: prompts[code][: setting.prompts] for code in asked},
            {code: answers[code][: setting.prompts] for code in asked},
        )

    def translator(self) -> Translator:
        """Model and examples that translate."""
        if ("translator",) not in self._made:
            path = self.sweep.translator
            model = self.model if path is None else self._load(path)[0]
            self._made[("translator",)] = Translator(
                model,
                self.tokenizer,
                self._optional("texts"),
                languages=list(self.prompts),
                options=self._translation,
            )
        found: Translator = self._made[("translator",)]
        return found

    def _self_made(self, recipe: str) -> tuple[StudyRows, StudyAnswers]:
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
            options=replace(self._translation, neutral=self.asked("validation").neutral),
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
            self.model, self.tokenizer, rows, pivot=self.pivot, role=reading.role,
            pooling=reading.pooling, prompts=prompts,
        )  # fmt: skip

    def _reading(self, setting: SweepSetting) -> StudyRows:
        """Rows from which a setting's space is read."""
        reading, rows = self.sweep.readings[setting.space], self.training_prompts(setting)
        if reading.data is not None:
            rows = {k: v for k, v in self._rows(reading.data).items() if k in rows}
        if not reading.parallel:
            rows = {k: random.Random(k).sample(v, len(v)) for k, v in rows.items()}
        return {k: v[: reading.limit] for k, v in rows.items()}

    def _restore(self) -> None:
        """Give the model the weights of the untouched copy again, without adapters."""
        while self.releases:
            self.releases.pop()()
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
