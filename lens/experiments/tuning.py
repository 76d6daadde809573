"""Choose layers, losses and λ per language on a validation split, with Optuna."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lens.errors import InputError, MissingExtraError
from lens.experiments.config import Range, SweepSetting, TuningConfig, at, changed
from lens.experiments.questions import QuestionSet, average
from lens.models.fingerprint import sha256_json
from lens.space.space import Space
from lens.training.config import RunOptions, TrainerSettings, TrainSettings
from lens.training.optimizer import DivergedError
from lens.training.result import TrainResult
from lens.training.trainer import LensTrainer
from lens.utils.config import read_as
from lens.utils.hashing import hash_of_path
from lens.utils.progress import say
from lens.utils.records import Log
from lens.utils.settings import options_of, takes, validated
from lens.utils.workdir import WorkDir


def require_optuna() -> Any:
    """Return Optuna.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune", "tuning") from None
    return optuna


def sampler(seed: int, number: int) -> Any:
    """Make the sampler of one trial, with a seed of its own.

    A search that was interrupted and resumed so proposes the same trials.
    """
    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return require_optuna().samplers.TPESampler(seed=own, multivariate=True)


@dataclass(frozen=True, slots=True)
class TunedTrial:
    """One trial: its setting and its result on validation.

    Attributes
    ----------
    number : int
        From 1.
    setting : dict
        ``layers``, ``modules``, ``lora``, ``lora_alpha``, ``dora`` and the whole ``losses``.
    strength : dict of str to float
        λ per language.
    quality, fidelity : float or None
        Means over the trained languages: of the metric, and of answers in the right language.
    drift : float or None
        Mean KL of the pivot's next-token distribution, nats.
    failed : str or None
        Why there is no result, where training diverged.
    """

    number: int
    setting: dict[str, Any]
    strength: dict[str, float]
    quality: float | None
    fidelity: float | None
    drift: float | None
    failed: str | None = None

    def __str__(self) -> str:
        """Describe the result in a line."""
        if self.quality is None or self.fidelity is None or self.drift is None:
            return str(self.failed)
        return (
            f"quality {self.quality:.3f}, fidelity {self.fidelity:.3f}, drift {self.drift:.4f} nats"
        )

    @property
    def layers(self) -> str:
        """Blocks that were trained."""
        return str(self.setting["layers"])

    @property
    def losses(self) -> dict[str, Any]:
        """Settings of losses and optimizer."""
        found: dict[str, Any] = self.setting["losses"]
        return found


@dataclass(frozen=True, slots=True)
class TuneResult:
    """The chosen setting and every trial.

    Attributes
    ----------
    best : TunedTrial
        Best quality among trials within the bound on drift; where none is, the least drift.
    within : bool
        Whether ``best`` keeps the bound.
    trials : tuple of TunedTrial
        In order.
    tuning : TuningConfig
        Search space and criterion.
    """

    best: TunedTrial
    within: bool
    trials: tuple[TunedTrial, ...]
    tuning: TuningConfig
    _search: Search | None = field(default=None, repr=False, compare=False)

    @property
    def metric(self) -> str:
        """Metric that was maximised."""
        return self.tuning.maximised

    def train(self, *, running: RunOptions | None = None) -> TrainResult:
        """Train the chosen setting from the same cache; this repeats its trial bit for bit.

        Parameters
        ----------
        running : RunOptions, optional
            Checkpoints, resuming, trackers; as given to `tune` by default.

        Returns
        -------
        TrainResult
            With every trial in ``about["tuning"]``, which `TrainResult.save` writes to
            ``trials.json``.

        Raises
        ------
        InputError
            If the result was not made by `tune` in this process.
        """
        if self._search is None:
            raise InputError("this result of a search holds no model; train with its best setting")
        result = self._search.train(self.best, running)
        result.about["tuning"] = self.to_dict()
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "metric": self.metric,
            "max_drift": self.tuning.max_drift,
            "within": self.within,
            "best": asdict(self.best),
            "search": self.tuning.model_dump(mode="json"),
            "trials": [asdict(trial) for trial in self.trials],
        }


def read_tuning(path: str | Path) -> TuningConfig:
    """Read a tuning file (YAML).

    Raises
    ------
    InputError
        With one line per key that is unknown or out of range.
    """
    return read_as(path, TuningConfig)


@takes(TrainSettings)
def tune(
    model: Any,
    tokenizer: Any,
    space: Space,
    prompts: Mapping[str, Sequence[str]],
    tuning: TuningConfig,
    *,
    work: str | Path | None = None,
    rows: Mapping[str, Any] | None = None,
    settings: TrainSettings,
) -> TuneResult:
    """Search for the setting with the best answers in the trained languages and little drift.

    The settings are those of the first trial, and of everything that is not searched. Without
    ``strength`` the first trial takes the middle of its range. ``running`` applies to
    `TuneResult.train`; trials take only its activation checkpointing. ``seed`` is that of
    ``tuning``.

    Parameters
    ----------
    model, tokenizer, space, prompts
        As in `lens.train`; the model is restored after every trial.
    tuning : TuningConfig
        Search space and criterion.
    work : str or Path, optional
        Folder that keeps the trials; a search found there is resumed, also with more trials or
        another ``max_drift``.
    rows : mapping, optional
        ``texts``, ``answers`` and ``validation``, as in `lens.train`.

    Returns
    -------
    TuneResult
        ``.train()`` trains the best setting.

    Raises
    ------
    MissingExtraError
        If Optuna is not installed.
    InputError
        If a searched key does not exist, ``work`` belongs to another search, or every trial
        diverged.

    Notes
    -----
    Tree-structured Parzen estimator with constraints (Optuna), all languages jointly. Each trial is
    proposed from a seed of its own and the trials before it, so that a search that was killed and
    resumed gives the trials of an uninterrupted one. Trials of the same blocks share a prefix
    cache, so a trial costs its training steps and answers.
    """
    search = Search(model, tokenizer, space, prompts, tuning, settings=settings, rows=rows or {})
    found = choose(search.go(None if work is None else search_folder(work)), tuning)
    return replace(found, _search=search)


def choose(trials: Sequence[TunedTrial], tuning: TuningConfig) -> TuneResult:
    """Best trial within the bound on drift; ties go to fidelity, then to less drift.

    Raises
    ------
    InputError
        If every trial diverged.
    """
    drifts = {t.number: t.drift for t in trials if t.drift is not None}
    if not drifts:
        raise InputError(
            f"all {len(trials)} trials diverged, the last one: {trials[-1].failed}; lower the "
            "learning rate or the range of strengths"
        )
    left = [t for t in trials if t.number in drifts]
    allowed = [t for t in left if drifts[t.number] <= tuning.max_drift]
    if allowed:
        best = max(allowed, key=lambda t: (t.quality or 0.0, t.fidelity or 0.0, -drifts[t.number]))
    else:
        best = min(left, key=lambda t: drifts[t.number])
    return TuneResult(best, bool(allowed), tuple(trials), tuning)


def search_folder(path: str | Path) -> WorkDir:
    """Work folder that keeps the trials of a search."""
    return WorkDir(path, "search", keeps="finished trials", always_resumes=True)


class Search:
    """Trials of one search, on one model.

    Parameters
    ----------
    model, tokenizer, space, prompts, tuning
        As in `lens.experiments.tune`.
    settings : TrainSettings
        What is trained where nothing is searched; λ of the first trial where it was given.
    rows : mapping
        ``texts``, ``answers`` and ``validation`` of `LensTrainer`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        space: Space,
        prompts: Mapping[str, Sequence[str]],
        tuning: TuningConfig,
        *,
        settings: TrainSettings,
        rows: Mapping[str, Any],
    ) -> None:
        require_optuna()  # refuse before anything is computed
        self.model, self.tokenizer, self.space = model, tokenizer, space
        self.prompts, self.tuning, self.rows = prompts, tuning, rows
        self.settings, self.running = settings, settings.running
        self.base = SweepSetting(
            layers=settings.layers,
            modules=settings.modules,
            lora=settings.lora,
            losses=settings.losses,
        )
        self.trainers: dict[tuple[Any, ...], LensTrainer] = {}
        for key, values in tuning.search.items():  # refuse a wrong key before anything is run
            for value in [values.low, values.high] if isinstance(values, Range) else values:
                changed("search", self.base, {key: value})
        self.questions = QuestionSet(
            tuning.validation, model, tokenizer, pivot=space.pivot, chat=settings.chat
        )
        first = self._trainer(self.base)
        start = settings.strength if "strength" in settings.model_fields_set else None
        self.languages = first.data.languages
        self.questions.require(self.languages)
        self.start = first.strengths(self._middle() if start is None else start)
        self.restore()

    def go(self, work: WorkDir | None) -> list[TunedTrial]:
        """Run the trials that are not done yet; return all of them, in order."""
        if work is None:
            return self._trials(None)
        with work:
            work.open(self.identity())
            return self._trials(work.log("trials.jsonl", sync=True, strict=True))

    def _trials(self, log: Log | None) -> list[TunedTrial]:
        optuna = require_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize")
        done: list[TunedTrial] = []
        for record in log.records() if log is not None else ():
            done.append(TunedTrial(**record.fields["trial"]))
            study.add_trial(self._recorded(done[-1], record.fields))
        if log is not None and 0 < len(done) < self.tuning.trials:
            say(f"resuming after {len(done)} of {self.tuning.trials} trials in {log.path.parent}")
        for number in range(len(done), self.tuning.trials):
            study.sampler = sampler(self.tuning.seed, number)
            if number == 0:
                study.enqueue_trial(self._first())
            trial = study.ask()
            done.append(self._tried(trial, number + 1))
            if log is not None:
                log.append(
                    {
                        "trial": asdict(done[-1]),
                        "params": trial.params,
                        "distributions": {
                            name: optuna.distributions.distribution_to_json(distribution)
                            for name, distribution in trial.distributions.items()
                        },
                    }
                )
            drift, quality = done[-1].drift, done[-1].quality
            if quality is not None and drift is not None:
                trial.set_constraint("drift", drift - self.tuning.max_drift)
                study.tell(trial, quality)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            say(f"trial {number + 1} of {self.tuning.trials}: {done[-1]}")
        return done[: self.tuning.trials]

    def _recorded(self, trial: TunedTrial, fields: Mapping[str, Any]) -> Any:
        """Optuna's form of a trial that was run before."""
        optuna = require_optuna()
        failed = trial.quality is None or trial.drift is None
        constraints = None
        if trial.drift is not None:
            constraints = {"drift": trial.drift - self.tuning.max_drift}
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
            value=trial.quality,
            params=dict(fields["params"]),
            distributions={
                name: optuna.distributions.json_to_distribution(text)
                for name, text in fields["distributions"].items()
            },
            constraints=constraints,
        )

    def train(self, trial: TunedTrial, running: RunOptions | None) -> TrainResult:
        """Train the setting of a trial again, to the same result."""
        setting = validated(SweepSetting, trial.setting, start=self.base)
        trainer = self._trainer(setting)
        return trainer.run(
            setting.losses,
            strength=trial.strength,
            seed=self.tuning.seed,
            running=running or self.running,
        )

    def restore(self) -> None:
        """Restore the weights of all trained blocks, and take adapters off."""
        for trainer in self.trainers.values():
            trainer.release()

    def identity(self) -> dict[str, Any]:
        """Collect what decides the trials: of ``tuning`` all but their number and the bound."""
        asked = self.tuning.validation
        files = {name: getattr(asked, name) for name in ("prompts", "references", "neutral")}
        chat = self.settings.chat
        rows = {name: value for name, value in self.rows.items() if value is not None}
        return {
            "tuning": self.tuning.model_dump(mode="json", exclude={"trials", "max_drift"}),
            "questions": {
                name: None if path is None else hash_of_path(path) for name, path in files.items()
            },
            "base": self.base.facts(),
            "start": self.start,
            "space": self.space.sha256,
            "prompts": _hashes(self.prompts),
            "chat": None if chat is None else chat.to_dict(),
            **{name: _hashes(value) for name, value in sorted(rows.items())},
        }

    def _tried(self, trial: Any, number: int) -> TunedTrial:
        """Train and judge the setting that Optuna suggests."""
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
        setting = changed("search", self.base, changes)
        tried = setting.model_dump(mode="json", include={"layers", "losses", "modules"})
        lora = setting.lora
        tried |= {
            "lora": None if lora is None else lora.rank,
            "lora_alpha": None if lora is None else lora.alpha,
            "dora": lora is not None and lora.dora,
        }
        trainer = self._trainer(setting)
        quiet = replace(
            self.running, folder=None, checkpoint_every=None, resume=False, report_to=()
        )
        try:
            result = trainer.run(
                setting.losses, strength=strength, seed=self.tuning.seed, running=quiet
            )
            found = self._judged(result)
        except DivergedError as error:
            return TunedTrial(number, tried, strength, None, None, None, failed=str(error))
        finally:
            self.restore()
        metric = self.tuning.maximised
        return TunedTrial(
            number,
            tried,
            strength,
            average(found, metric, self.languages),
            average(found, "fidelity", self.languages),
            found["kl"]["mean"],
        )

    def _judged(self, result: TrainResult) -> dict[str, Any]:
        """Judge the trained weights against the untouched ones, which the same model then holds."""

        @contextmanager
        def trained(_language: str) -> Iterator[None]:
            result.load(result.weights)
            try:
                yield
            finally:
                result.load(result.original)

        result.load(result.original)
        return self.questions.judge(self.model, trained)

    def _first(self) -> dict[str, Any]:
        """Parameters of the first trial: the given setting, as far as it is inside the search."""
        bounds = self.tuning.strength
        found: dict[str, Any] = {
            f"strength.{lang}": value
            for lang, value in self.start.items()
            if bounds.low <= value <= bounds.high
        }
        for key, values in self.tuning.search.items():
            name, _, inside = key.partition(".")
            value = options_of(SweepSetting)[name].value(self.base)
            value = at(value, inside) if inside else value
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

    def _trainer(self, setting: SweepSetting) -> LensTrainer:
        config = setting.losses
        key = (setting.layers, setting.modules, setting.lora, config.sites, config.references)
        if key not in self.trainers:
            self.restore()  # the prefix is that of the untrained model
            self.trainers[key] = LensTrainer(
                self.model,
                self.tokenizer,
                self.space,
                self.prompts,
                settings=self.settings.part(
                    TrainerSettings,
                    layers=setting.layers,
                    modules=setting.modules,
                    lora=setting.lora,
                    sites=config.sites,
                    references=config.references,
                ),
                **self.rows,
            )
        return self.trainers[key]


def _hashes(rows: Mapping[str, Sequence[str | None]] | None) -> dict[str, str]:
    """Hash rows by language, so that a difference names the language."""
    return {language: sha256_json(list(texts)) for language, texts in (rows or {}).items()}
