"""The search behind `lens.sweeps.tune`: ask Optuna for a setting, train it, judge it, keep it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from lens.errors import InputError
from lens.lsm import LensTrainer, Running, TrainResult
from lens.lsm.optimizing import DivergedError
from lens.progress import say
from lens.space import Space
from lens.sweeps.config import Setting, changed
from lens.sweeps.journal import identity
from lens.sweeps.judging import Asked, average
from lens.sweeps.keys import at
from lens.sweeps.proposing import require_optuna, sampler
from lens.sweeps.tuning import Range, TunedTrial, Tuning

_STUDY = "lens"
_TRIAL = "trial"  # user attribute of an Optuna trial that holds ours


class Search:
    """Trials of one search, on one model.

    Parameters
    ----------
    model, tokenizer, space, prompts, tuning
        As in `lens.sweeps.tune`.
    base : Setting
        What is trained where nothing is searched.
    start : float or mapping or None
        λ of the first trial.
    training : mapping
        Further arguments of `LensTrainer`.
    running : Running or None
        How the training of the chosen setting is carried out.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        space: Space,
        prompts: Mapping[str, Sequence[str]],
        tuning: Tuning,
        *,
        base: Setting,
        start: float | Mapping[str, float] | None,
        training: Mapping[str, Any],
        running: Running | None,
    ) -> None:
        require_optuna()  # its absence is told before anything is computed
        self.model, self.tokenizer, self.space = model, tokenizer, space
        self.prompts, self.tuning, self.training = prompts, tuning, training
        self.base, self.plain = base, base.model_dump(mode="json")
        self.running = running or Running()
        self.trainers: dict[tuple[Any, ...], LensTrainer] = {}
        for key, values in tuning.search.items():  # a wrong key is refused before anything is run
            for value in [values.low, values.high] if isinstance(values, Range) else values:
                changed("search", self.plain, {key: value}).config()
        self.asked = Asked(
            tuning.validation, model, tokenizer, pivot=space.pivot, chat=training.get("chat")
        )
        first = self._trainer(base)
        self.languages = first.languages
        self.asked.require(self.languages)
        self.start = first.strengths(self._middle() if start is None else start)
        self.restore()

    def go(self, journal: str | Path | None) -> list[TunedTrial]:
        """Run the trials that are not done yet; return all of them, in order."""
        study = _study(journal, self.signature())
        state = require_optuna().trial.TrialState
        for trial in study.get_trials(states=[state.RUNNING]):  # a process was killed there
            study.tell(trial.number, state=state.FAIL)
        done = _done(study)
        if done and len(done) < self.tuning.trials:
            say(f"going on after {len(done)} of {self.tuning.trials} trials in {journal}")
        for number in range(len(done), self.tuning.trials):
            study.sampler = sampler(self.tuning.seed, number)
            if number == 0 and not study.get_trials(states=[state.WAITING]):
                study.enqueue_trial(self._first())
            trial = study.ask()
            record = self._tried(trial, number + 1)
            trial.set_user_attr(_TRIAL, asdict(record))
            if record.quality is not None and record.drift is not None:
                trial.set_constraint("drift", record.drift - self.tuning.max_drift)
                study.tell(trial, record.quality)
            else:
                study.tell(trial, state=state.FAIL)
            say(f"trial {record.number} of {self.tuning.trials}: {record}")
        return _done(study)[: self.tuning.trials]

    def train(self, trial: TunedTrial, running: Running | None) -> TrainResult:
        """Train the setting of a trial again, to the same result."""
        setting = Setting.model_validate({**self.plain, **trial.setting})
        trainer = self._trainer(setting)
        return trainer.run(
            setting.config(), strength=trial.strength, seed=self.tuning.seed,
            running=running or self.running,
        )  # fmt: skip

    def restore(self) -> None:
        """Put the weights of every band back, and take adapters off."""
        for trainer in self.trainers.values():
            trainer.release()

    def signature(self) -> str:
        """Hash what a journal must agree on to be continued."""
        asked = self.tuning.validation
        files = (asked.prompts, asked.references, asked.neutral)
        facts = {
            "tuning": self.tuning.model_dump(mode="json", exclude={"trials", "max_drift"}),
            "questions": [None if path is None else identity(path) for path in files],
            "base": self.base.facts(),
            "start": self.start,
            "space": self.space.sha256,
            "prompts": {k: list(v) for k, v in self.prompts.items()},
            "training": {
                name: self.training.get(name) for name in ("texts", "answers", "chat", "validation")
            },
        }
        return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _tried(self, trial: Any, number: int) -> TunedTrial:
        """Train and judge what Optuna suggests."""
        strength = {
            lang: self._number(trial, f"strength.{lang}", self.tuning.strength)
            for lang in self.languages
        }
        changes: dict[str, Any] = {}
        for key, values in self.tuning.search.items():
            if isinstance(values, Range):
                changes[key] = self._number(trial, key, values)
            else:
                changes[key] = values[trial.suggest_categorical(key, list(range(len(values))))]
        setting = changed("search", self.plain, changes)
        plain = setting.facts() | {"losses": setting.config().model_dump(mode="json")}
        what = {key: plain[key] for key in ("layers", "losses")}
        what |= setting.model_dump(include={"train", "lora", "lora_alpha", "dora"})
        trainer = self._trainer(setting)
        quiet = replace(
            self.running, folder=None, checkpoint_every=None, resume=False, report_to=()
        )
        try:
            result = trainer.run(
                setting.config(), strength=strength, seed=self.tuning.seed, running=quiet
            )
            found = self._judged(result)
        except DivergedError as error:
            return TunedTrial(number, what, strength, None, None, None, failed=str(error))
        finally:
            self.restore()
        metric = self.tuning.maximised
        return TunedTrial(
            number, what, strength, average(found, metric, self.languages),
            average(found, "fidelity", self.languages), found["kl"]["mean"],
        )  # fmt: skip

    def _judged(self, result: TrainResult) -> dict[str, Any]:
        """Judge the trained weights against the untouched ones, which the same model then holds."""

        @contextmanager
        def trained(_language: str) -> Iterator[None]:
            result.load(result.band)
            try:
                yield
            finally:
                result.load(result.original)

        result.load(result.original)
        return self.asked.judge(self.model, trained)

    def _first(self) -> dict[str, Any]:
        """Parameters of the first trial: the given setting, as far as it is inside the search."""
        bounds = self.tuning.strength
        found: dict[str, Any] = {
            f"strength.{lang}": value
            for lang, value in self.start.items()
            if bounds.low <= value <= bounds.high
        }
        for key, values in self.tuning.search.items():
            value = at(self.plain, key)
            if isinstance(values, Range):
                if isinstance(value, int | float) and values.low <= value <= values.high:
                    found[key] = float(value)
            elif value in values:
                found[key] = values.index(value)
        return found

    def _middle(self) -> float:
        return (self.tuning.strength.low + self.tuning.strength.high) / 2

    def _number(self, trial: Any, key: str, values: Range) -> float:
        return float(trial.suggest_float(key, values.low, values.high, log=values.log))

    def _trainer(self, setting: Setting) -> LensTrainer:
        config = setting.config()
        key = (setting.layers, setting.train, setting.adapter, config.sites, config.references)
        if key not in self.trainers:
            self.restore()  # the prefix is that of the untrained model
            self.trainers[key] = LensTrainer(
                self.model, self.tokenizer, self.space, self.prompts, layers=setting.layers,
                train=setting.train, lora=setting.adapter, sites=config.sites,
                references=config.references, **self.training,
            )  # fmt: skip
        return self.trainers[key]


def _done(study: Any) -> list[TunedTrial]:
    """Trials that came to an end, in order."""
    found = [
        TunedTrial(**trial.user_attrs[_TRIAL]) for trial in study.trials
        if _TRIAL in trial.user_attrs
        and (trial.values or trial.user_attrs[_TRIAL]["failed"] is not None)
    ]  # fmt: skip
    return sorted(found, key=lambda trial: trial.number)


def _study(journal: str | Path | None, signature: str) -> Any:
    optuna = require_optuna()
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = (
            None
            if journal is None
            else optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        )
        study = optuna.create_study(
            study_name=_STUDY, storage=storage, direction="maximize", load_if_exists=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the journal {journal} cannot be used: {error}; choose another file"
        ) from None
    known = study.user_attrs.get("signature")
    if known is None:
        study.set_user_attr("signature", signature)
    elif known != signature:
        raise InputError(
            f"the journal {journal} belongs to a search with other settings, prompts or space; "
            "choose another file or the settings it was begun with, or remove it to start over"
        )
    return study
