"""Choose band, losses and λ per language on a validation split, with Optuna."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lens.configs import problems, read_yaml
from lens.errors import InputError, MissingExtraError
from lens.lsm import LensConfig, LensTrainer, resolve
from lens.progress import say
from lens.space import Space
from lens.sweeps.config import Questions, Setting, changed
from lens.sweeps.judging import Asked, average

_STUDY = "lens"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Frozen):
    """Numbers from ``low`` to ``high``, evenly or by their logarithms."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"got {self.low:g} to {self.high:g}, expected low < high, and low > 0 with log"
            )
        return self


class Tuning(_Frozen):
    """What to try and how to judge it.

    Attributes
    ----------
    validation : Questions
        Questions to select on. Report on others.
    strength : Range
        λ of each language.
    search : dict of str to list or Range
        Dotted keys of a setting, such as ``layers``, ``losses.rank`` or
        ``losses.terms.1.weight``, to choices or a range.
    trials : int
        Runs in all; the first uses the given setting with λ in the middle.
    max_drift : float
        Largest mean KL of the pivot's next-token distribution, nats; trials above it never win
        against one below.
    metric : "accuracy_in_language" or "fidelity" or None
        Mean over the trained languages, maximised; by default accuracy where there are references.
    seed : int
        Of the search and of every training run.
    """

    validation: Questions
    strength: Range = Range(low=0.5, high=4.0)
    search: dict[str, Range | Annotated[list[Any], Field(min_length=1)]] = {}
    trials: int = Field(30, ge=1)
    max_drift: float = Field(0.02, gt=0)
    metric: Literal["accuracy_in_language", "fidelity"] | None = None
    seed: int = 0

    @property
    def maximised(self) -> Literal["accuracy_in_language", "fidelity"]:
        """Metric that decides."""
        if self.metric is not None:
            return self.metric
        return "fidelity" if self.validation.references is None else "accuracy_in_language"


@dataclass(frozen=True, slots=True)
class TunedTrial:
    """One trial: what was tried, what it gave on validation."""

    number: int
    layers: str
    losses: dict[str, Any]
    strength: dict[str, float]
    quality: float
    fidelity: float
    drift: float


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
    metric : str
        What was maximised.
    """

    best: TunedTrial
    within: bool
    trials: tuple[TunedTrial, ...]
    metric: str


def read_tuning(path: str | Path) -> Tuning:
    """Read a tuning file (YAML).

    Raises
    ------
    InputError
        With one line per key that is unknown or out of range.
    """
    content = read_yaml(path)
    try:
        return Tuning.model_validate(content)
    except ValidationError as error:
        found = problems(error, Tuning, content)
        raise InputError("\n".join(f"{path}: {line}" for line in found)) from None


def tune(
    model: Any,
    tokenizer: Any,
    space: Space,
    prompts: Mapping[str, Sequence[str]],
    tuning: Tuning,
    *,
    reference: Any,
    layers: str = "-2:",
    losses: str | LensConfig | dict[str, Any] = "corrected",
    journal: str | Path | None = None,
    **training: Any,
) -> TuneResult:
    """Search for the setting that serves the trained languages best and leaves the pivot alone.

    Parameters
    ----------
    model, tokenizer, space, prompts
        As in `lens.train`; the model is put back after every trial.
    tuning : Tuning
        What to try and how to judge it.
    reference : PreTrainedModel
        An untouched copy of the model, from which drift is measured.
    layers, losses
        Setting of the first trial, and of everything that is not searched.
    journal : str or Path, optional
        File that keeps the trials; a search found there is continued.
    **training
        Further arguments of `LensTrainer`, such as ``texts`` or ``chat``.

    Returns
    -------
    TuneResult

    Raises
    ------
    MissingExtraError
        If Optuna is not installed.
    InputError
        If a searched key does not exist, or the journal belongs to another search.

    Notes
    -----
    Tree-structured Parzen estimator with constraints (Optuna), all languages jointly. Prefix
    caches are shared by the trials of one band, so a trial costs its training steps and answers.
    """
    search = _Search(
        model, tokenizer, space, prompts, tuning, reference, layers, resolve(losses), training
    )
    study = _study(tuning, journal, search.signature())
    if not study.trials:
        study.enqueue_trial(search.first())
    left = tuning.trials - len([t for t in study.trials if t.state.is_finished()])
    try:
        study.optimize(search, n_trials=max(0, left))
    finally:
        search.restore()
    trials = tuple(TunedTrial(**t.user_attrs["trial"]) for t in study.trials if t.values)
    return choose(trials, tuning)


def choose(trials: Sequence[TunedTrial], tuning: Tuning) -> TuneResult:
    """Best trial within the bound on drift; ties go to fidelity, then to less drift."""
    allowed = [t for t in trials if t.drift <= tuning.max_drift]
    if allowed:
        best = max(allowed, key=lambda t: (t.quality, t.fidelity, -t.drift))
    else:
        best = min(trials, key=lambda t: t.drift)
    return TuneResult(best, bool(allowed), tuple(trials), tuning.maximised)


class _Search:
    """The objective: train and judge one trial."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        space: Space,
        prompts: Mapping[str, Sequence[str]],
        tuning: Tuning,
        reference: Any,
        layers: str,
        config: LensConfig,
        training: Mapping[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.space = model, tokenizer, space
        self.prompts, self.tuning, self.training = prompts, tuning, training
        self.base = Setting(layers=layers, losses=config.model_dump(mode="json"))
        self.trainers: dict[tuple[Any, ...], LensTrainer] = {}
        self.languages = self._trainer(self.base).languages
        self.asked = Asked(tuning.validation, reference, tokenizer, pivot=space.pivot)
        for key, values in tuning.search.items():  # a wrong key is refused before anything is run
            value = values.low if isinstance(values, Range) else values[0]
            changed("search", self.base.model_dump(mode="json"), {key: value}).config()

    def first(self) -> dict[str, Any]:
        """Parameters of the first trial."""
        middle = (self.tuning.strength.low + self.tuning.strength.high) / 2
        return {f"strength.{lang}": middle for lang in self.languages}

    def signature(self) -> str:
        """Hash what a journal must agree on to be continued."""
        facts = {
            "tuning": self.tuning.model_dump(mode="json", exclude={"trials"}),
            "base": self.base.model_dump(mode="json"),
            "space": self.space.sha256,
            "prompts": {k: list(v) for k, v in self.prompts.items()},
        }
        from hashlib import sha256

        return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def __call__(self, trial: Any) -> float:
        """Train with what Optuna suggests; return the quality."""
        strength = {
            lang: float(self._number(trial, f"strength.{lang}", self.tuning.strength))
            for lang in self.languages
        }
        changes: dict[str, Any] = {}
        for key, values in self.tuning.search.items():
            if isinstance(values, Range):
                changes[key] = self._number(trial, key, values)
            else:
                changes[key] = values[trial.suggest_categorical(key, list(range(len(values))))]
        setting = changed("search", self.base.model_dump(mode="json"), changes)
        trainer = self._trainer(setting)
        self.restore()
        trainer.run(setting.config(), strength=strength, seed=self.tuning.seed)
        found = self.asked.judge(self.model)
        quality = average(found, self.tuning.maximised, self.languages)
        record = TunedTrial(
            trial.number, setting.layers, setting.config().model_dump(mode="json"), strength,
            quality, average(found, "fidelity", self.languages), found["kl"]["mean"],
        )  # fmt: skip
        from dataclasses import asdict

        trial.set_user_attr("trial", asdict(record))
        trial.set_constraint("drift", record.drift - self.tuning.max_drift)
        say(
            f"trial {trial.number + 1}/{self.tuning.trials}: {self.tuning.maximised} "
            f"{quality:.3f}, fidelity {record.fidelity:.3f}, drift {record.drift:.4f}"
        )
        return quality

    def restore(self) -> None:
        """Put the weights of every band back."""
        for trainer in self.trainers.values():
            trainer.restore()

    def _number(self, trial: Any, key: str, values: Range) -> float:
        return float(trial.suggest_float(key, values.low, values.high, log=values.log))

    def _trainer(self, setting: Setting) -> LensTrainer:
        config = setting.config()
        key = (setting.layers, config.sites, config.references)
        if key not in self.trainers:
            self.restore()  # the prefix is that of the untrained model
            self.trainers[key] = LensTrainer(
                self.model, self.tokenizer, self.space, self.prompts, layers=setting.layers,
                sites=config.sites, references=config.references, **self.training,
            )  # fmt: skip
        return self.trainers[key]


def _study(tuning: Tuning, journal: str | Path | None, signature: str) -> Any:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise MissingExtraError("optuna", "tune", "tuning") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None if journal is None else JournalStorage(JournalFileBackend(str(journal)))
    sampler = optuna.samplers.TPESampler(seed=tuning.seed, multivariate=True)
    study = optuna.create_study(
        study_name=_STUDY, storage=storage, sampler=sampler, direction="maximize",
        load_if_exists=True,
    )  # fmt: skip
    known = study.user_attrs.get("signature")
    if known is None:
        study.set_user_attr("signature", signature)
    elif known != signature:
        raise InputError(
            f"the journal {journal} belongs to a search with other settings, prompts or space; "
            "choose another file, or the settings it was begun with"
        )
    return study
