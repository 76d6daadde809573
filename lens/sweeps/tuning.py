"""Choose band, losses and λ per language on a validation split, with Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lens.configs import read_as
from lens.errors import InputError
from lens.lsm import LensConfig, Lora, Running, TrainResult, resolve
from lens.space import Space
from lens.sweeps.config import Questions, Setting

if TYPE_CHECKING:
    from lens.sweeps.searching import Search

_SEARCHED = ("layers", "train", "lora", "lora_alpha", "dora", "losses")


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
        Runs in all; the first uses the given setting, where it lies inside the search.
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

    @model_validator(mode="after")
    def _searchable(self) -> Tuning:
        wrong = [key for key in self.search if key.split(".")[0] not in _SEARCHED]
        if wrong:
            raise ValueError(
                f"search: {', '.join(wrong)} cannot be searched; expected one of "
                f"{', '.join(_SEARCHED)}, or a key inside losses such as losses.rank"
            )
        return self

    @property
    def maximised(self) -> Literal["accuracy_in_language", "fidelity"]:
        """Metric that decides."""
        if self.metric is not None:
            return self.metric
        return "fidelity" if self.validation.references is None else "accuracy_in_language"


@dataclass(frozen=True, slots=True)
class TunedTrial:
    """One trial: what was tried, what it gave on validation.

    Attributes
    ----------
    number : int
        From 1.
    setting : dict
        ``layers``, ``train``, ``lora``, ``lora_alpha``, ``dora`` and the whole ``losses``.
    strength : dict of str to float
        λ per language.
    quality, fidelity : float or None
        Means over the trained languages: of the metric, and of answers in the right language.
    drift : float or None
        Mean KL of the pivot's next-token distribution, nats.
    failed : str or None
        Why there is no result: training diverged.
    """

    number: int
    setting: dict[str, Any]
    strength: dict[str, float]
    quality: float | None
    fidelity: float | None
    drift: float | None
    failed: str | None = None

    def __str__(self) -> str:
        """Say what came of it."""
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
    tuning : Tuning
        What was asked for.
    """

    best: TunedTrial
    within: bool
    trials: tuple[TunedTrial, ...]
    tuning: Tuning
    _search: Search | None = field(default=None, repr=False, compare=False)

    @property
    def metric(self) -> str:
        """What was maximised."""
        return self.tuning.maximised

    def train(self, *, running: Running | None = None) -> TrainResult:
        """Train the chosen setting from the same cache; this repeats its trial bit for bit.

        Parameters
        ----------
        running : Running, optional
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


def read_tuning(path: str | Path) -> Tuning:
    """Read a tuning file (YAML).

    Raises
    ------
    InputError
        With one line per key that is unknown or out of range.
    """
    return read_as(path, Tuning)


def tune(
    model: Any,
    tokenizer: Any,
    space: Space,
    prompts: Mapping[str, Sequence[str]],
    tuning: Tuning,
    *,
    layers: str = "-2:",
    train: str = "full",
    lora: int | Lora | None = None,
    losses: str | LensConfig | dict[str, Any] = "pinned",
    strength: float | Mapping[str, float] | None = None,
    journal: str | Path | None = None,
    running: Running | None = None,
    **training: Any,
) -> TuneResult:
    """Search for the setting that serves the trained languages best and leaves the pivot alone.

    Parameters
    ----------
    model, tokenizer, space, prompts
        As in `lens.train`; the model is put back after every trial.
    tuning : Tuning
        What to try and how to judge it.
    layers, train, lora, losses
        Setting of the first trial, and of everything that is not searched.
    strength : float or mapping, optional
        λ of the first trial; the middle of the range by default, and where it lies outside.
    journal : str or Path, optional
        File that keeps the trials; a search found there is continued, also with more trials or
        another ``max_drift``.
    running : Running, optional
        How `TuneResult.train` is carried out; of the trials, activation checkpointing alone.
    **training
        Further arguments of `LensTrainer`, such as ``texts`` or ``chat``.

    Returns
    -------
    TuneResult
        ``.train()`` trains the best setting.

    Raises
    ------
    MissingExtraError
        If Optuna is not installed.
    InputError
        If a searched key does not exist, the journal belongs to another search, or every trial
        diverged.

    Notes
    -----
    Tree-structured Parzen estimator with constraints (Optuna), all languages jointly. Each trial is
    proposed from a seed of its own and the trials before it, so that a search that was killed and
    continued gives the trials of one left alone. Prefix caches are shared by the trials of one
    band, so a trial costs its training steps and answers.
    """
    from lens.sweeps.searching import Search

    adapter = Lora(lora) if isinstance(lora, int) else lora
    base = Setting(
        layers=layers,
        train=train,
        lora=None if adapter is None else adapter.rank,
        lora_alpha=None if adapter is None else adapter.alpha,
        dora=adapter is not None and adapter.dora,
        losses=resolve(losses).model_dump(mode="json"),
    )
    search = Search(
        model, tokenizer, space, prompts, tuning, base=base, start=strength, training=training,
        running=running,
    )  # fmt: skip
    found = choose(search.go(journal), tuning)
    return replace(found, _search=search)


def choose(trials: Sequence[TunedTrial], tuning: Tuning) -> TuneResult:
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
