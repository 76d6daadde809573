"""Run settings one after the other on one model, sharing spaces and cached prefixes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from lens.data import canonical, read_parallel
from lens.errors import InputError
from lens.evaluate import evaluate, pivot_kl
from lens.evaluate.suite import Evaluation, read_references
from lens.lsm import LensTrainer
from lens.lsm.finetuning import finetune
from lens.lsm.geometry import geometries
from lens.models import load
from lens.probing import probe
from lens.space import Space
from lens.steering import diffmean_rules, steer
from lens.sweeps.config import Questions, Run, Setting, Sweep, fill

Around = Callable[[str], AbstractContextManager[Any]]
_PER_ITEM = ("fidelity", "accuracy_in_language", "accuracy_any")


def _unsteered(_language: str) -> AbstractContextManager[Any]:
    return nullcontext()


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

    def run(self, run: Run, split: str) -> dict[str, Any]:
        """Do what the run says, judge it, put the model back, and return its record."""
        started = time.perf_counter()
        around, log = self._prepare(run)
        trained = time.perf_counter()
        try:
            questions: Questions = getattr(self.sweep, split)
            record = self._judge(questions, split, around)
        finally:
            self._restore()
        record["seconds"] = {
            "training": trained - started, "judging": time.perf_counter() - trained
        }  # fmt: skip
        return record | {"log": log}

    def _prepare(self, run: Run) -> tuple[Around, dict[str, float]]:
        setting, config = run.setting, run.setting.config()
        if setting.method == "unchanged":
            return _unsteered, {}
        if setting.method == "diffmean":
            return self._steering(setting), {}
        if setting.method == "finetune":
            asked = self._training_prompts(setting)
            given = {k: v[: setting.prompts] for k, v in self._answers(setting).items()}
            log = finetune(
                self.model, self.tokenizer, asked, {k: given.get(k, []) for k in asked},
                layers=setting.layers, config=config, seed=run.seed,
            )  # fmt: skip
            return _unsteered, log[-1]
        trainer = self._trainer(setting)
        where = None
        if setting.method == "random":
            true = geometries(trainer.space, config.subspace_sites, config)
            where = {site: geometry.randomised(run.seed) for site, geometry in true.items()}
        result = trainer.run(config, strength=setting.strength, seed=run.seed, geometry=where)
        return _unsteered, result.log[-1]

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

    def _restore(self) -> None:
        """Give the model the weights of the untouched copy again."""
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
            setting.layers, config.sites, config.references, setting.space, setting.prompts,
            setting.without, "text" in kinds, "answers" in kinds,
        )  # fmt: skip
        if key not in self.trainers:
            asked = self._training_prompts(setting)
            texts = self._optional("texts") if "text" in kinds else {}
            answers = self._answers(setting) if "answers" in kinds else {}
            self.trainers[key] = LensTrainer(
                self.model, self.tokenizer, self._space(setting), asked,
                layers=setting.layers, sites=config.sites, references=config.references,
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

    def _judge(self, questions: Questions, split: str, around: Around) -> dict[str, Any]:
        prompts = read_parallel(
            fill(questions.prompts, self.where), languages=self.sweep.languages,
            limit=questions.limit, min_rows=1,
        ).rows  # fmt: skip
        references = None
        if questions.references is not None:
            references = read_references(fill(questions.references, self.where))
        found = evaluate(
            self.model, self.tokenizer, prompts=prompts, references=references, pivot=self.pivot,
            identifier=questions.identifier, neutral=self._neutral(questions), split=split,
            batch_size=questions.batch_size, max_new_tokens=questions.max_new_tokens, around=around,
        )  # fmt: skip
        drift = pivot_kl(
            self.reference, self.model, self.tokenizer, prompts[self.pivot],
            batch_size=questions.batch_size, steered=lambda: around(self.pivot),
        )  # fmt: skip
        metrics = _PER_ITEM if references is not None else _PER_ITEM[:1]
        return {
            "items": {metric: self._items(found, metric) for metric in metrics},
            "languages": {
                metric: {k: float(v.mean()) for k, v in found.outcomes.by_language(metric).items()}
                for metric in metrics
            },
            "pivot": self.pivot,
            "kl": {"mean": drift.mean, "low": drift.low, "high": drift.high, "n": drift.n},
            "identifier": found.about["identifier"],
        }

    def _neutral(self, questions: Questions) -> list[str]:
        if questions.neutral is None:
            return []
        path = fill(questions.neutral, self.where)
        try:
            return Path(path).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"neutral: cannot read '{path}': {error}") from None

    def _items(self, found: Evaluation, metric: str) -> list[float]:
        """Share of the other languages in which each item was right."""
        by_language = found.outcomes.by_language(metric, leave_out=self.pivot)
        return [float(x) for x in np.mean(list(by_language.values()), axis=0)]
