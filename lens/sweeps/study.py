"""Run settings one after the other on one model, sharing spaces and cached prefixes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lens.data import canonical, read_parallel
from lens.errors import InputError
from lens.lsm import LensTrainer
from lens.lsm.finetuning import finetune
from lens.lsm.geometry import geometries
from lens.models import load
from lens.probing import probe
from lens.space import Space
from lens.steering import diffmean_rules, steer
from lens.sweeps.config import Run, Setting, Sweep, fill
from lens.sweeps.judging import Around, Asked, unsteered


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
        name = fill(sweep.model, where)
        self.model, self.tokenizer = load(name, dtype=sweep.dtype, device=sweep.device)
        self.reference, _ = load(name, dtype=sweep.dtype, device=sweep.device)
        self.pivot = canonical(sweep.pivot)
        self.prompts = self._rows(sweep.prompts)
        self.spaces: dict[tuple[Any, ...], Space] = {}
        self.trainers: dict[tuple[Any, ...], LensTrainer] = {}
        self.asked: dict[str, Asked] = {}
        self.releases: list[Callable[[], None]] = []  # take adapters off again

    def run(self, run: Run, split: str) -> dict[str, Any]:
        """Do what the run says, judge it, put the model back, and return its record."""
        started = time.perf_counter()
        around, log = self._prepare(run)
        trained = time.perf_counter()
        try:
            record = self._asked(split).judge(self.model, around)
        finally:
            self._restore()
        record["seconds"] = {
            "training": trained - started, "judging": time.perf_counter() - trained
        }  # fmt: skip
        return record | {"log": log}

    def _prepare(self, run: Run) -> tuple[Around, dict[str, float]]:
        setting, config = run.setting, run.setting.config()
        if setting.method == "unchanged":
            return unsteered, {}
        if setting.method == "diffmean":
            return self._steering(setting), {}
        if setting.method == "finetune":
            asked = self._training_prompts(setting)
            given = {k: v[: setting.prompts] for k, v in self._answers(setting).items()}
            tuned = finetune(
                self.model, self.tokenizer, asked, {k: given.get(k, []) for k in asked},
                layers=setting.layers, train=setting.train, lora=setting.adapter, config=config,
                seed=run.seed,
            )  # fmt: skip
            self.releases.append(tuned.release)
            return unsteered, tuned.log[-1]
        trainer = self._trainer(setting)
        self.releases.append(trainer.release)
        where = None
        if setting.method == "random":
            true = geometries(trainer.space, config.subspace_sites, config)
            where = {site: geometry.randomised(run.seed) for site, geometry in true.items()}
        result = trainer.run(config, strength=setting.strength, seed=run.seed, geometry=where)
        return unsteered, result.log[-1]

    def _steering(self, setting: Setting) -> Around:
        space = self._space(setting)

        def around(language: str) -> AbstractContextManager[Any]:
            if language == self.pivot or language not in space.languages:
                return nullcontext()
            given = setting.strength
            by_code = {canonical(k): v for k, v in given.items()} if isinstance(given, dict) else {}
            strength = by_code.get(language, 0.0) if isinstance(given, dict) else given
            rules = diffmean_rules(
                space, language, layers=setting.layers, strength=strength, apply="prompt"
            )
            return steer(self.model, rules)

        return around

    def _asked(self, split: str) -> Asked:
        if split not in self.asked:
            self.asked[split] = Asked(
                getattr(self.sweep, split), self.reference, self.tokenizer, pivot=self.pivot,
                languages=self.sweep.languages, where=self.where, split=split,
            )  # fmt: skip
        return self.asked[split]

    def _restore(self) -> None:
        """Give the model the weights of the untouched copy again, without adapters."""
        while self.releases:
            self.releases.pop()()
        self.model.load_state_dict(self.reference.state_dict())

    def _training_prompts(self, setting: Setting) -> dict[str, list[str]]:
        left_out = {canonical(code) for code in setting.without}
        if self.pivot in left_out:
            raise InputError(f"without: the pivot {self.pivot} cannot be left out of training")
        return {k: v[: setting.prompts] for k, v in self.prompts.items() if k not in left_out}

    def _space(self, setting: Setting) -> Space:
        reading = self.sweep.readings[setting.space]
        key = (setting.space, setting.without, setting.prompts if reading.data is None else None)
        if key not in self.spaces:
            rows = self._training_prompts(setting)
            prompts = dict(rows)
            if reading.data is not None:
                rows = {k: v for k, v in self._rows(reading.data).items() if k in rows}
            rows = {k: v[: reading.limit] for k, v in rows.items()}
            self.spaces[key] = probe(
                self.model, self.tokenizer, rows, pivot=self.pivot, role=reading.role,
                pooling=reading.pooling, prompts=prompts if reading.role == "assistant" else None,
            )  # fmt: skip
        return self.spaces[key]

    def _trainer(self, setting: Setting) -> LensTrainer:
        config = setting.config()
        kinds = {getattr(term, "rows", None) for term in config.active}
        key = (
            setting.layers, setting.train, setting.adapter, config.sites, config.references,
            setting.space, setting.prompts, setting.without, "text" in kinds, "answers" in kinds,
        )  # fmt: skip
        if key not in self.trainers:
            asked = self._training_prompts(setting)
            texts = self._optional("texts") if "text" in kinds else {}
            answers = self._answers(setting) if "answers" in kinds else {}
            self.trainers[key] = LensTrainer(
                self.model, self.tokenizer, self._space(setting), asked,
                layers=setting.layers, train=setting.train, lora=setting.adapter,
                sites=config.sites, references=config.references,
                texts={k: v for k, v in texts.items() if k in asked and k != self.pivot} or None,
                answers={k: v[: setting.prompts] for k, v in answers.items() if k in asked} or None,
            )  # fmt: skip
        return self.trainers[key]

    def _answers(self, setting: Setting) -> dict[str, list[str]]:
        answers = self._optional("answers")
        if any(len(rows) != len(self.prompts[code]) for code, rows in answers.items()):
            raise InputError("answers: expected one line per line of prompts")
        return answers

    def _optional(self, name: str) -> dict[str, list[str]]:
        path = getattr(self.sweep, name)
        if path is None:
            raise InputError(f"a setting needs {name}; name their file under '{name}:'")
        return self._rows(path)

    def _rows(self, path: str) -> dict[str, list[str]]:
        languages = self.sweep.languages
        return read_parallel(fill(path, self.where), languages=languages).rows
