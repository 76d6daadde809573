"""A sweep as data: what is varied, on which models, and how it is evaluated."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from lens.errors import InputError
from lens.experiments.methods import METHODS
from lens.training.config import Losses, ModuleSettings
from lens.training.terms.separate import Separate
from lens.utils.config import FrozenModel, read_as
from lens.utils.settings import Flat, group, option, options_of, validated


def put(values: Any, keys: list[str], value: Any, where: str) -> None:
    """Set a dotted key inside nested dicts and lists."""
    for key in keys[:-1]:
        values = _inside(values, key, where)
    last = keys[-1]
    if isinstance(values, list):
        _inside(values, last, where)
        values[int(last)] = value
    else:
        values[last] = value


def at(values: Any, key: str) -> Any:
    """Value of a dotted key inside nested dicts and lists."""
    for step in key.split("."):
        values = _inside(values, step, key)
    return values


def _inside(values: Any, key: str, where: str) -> Any:
    if isinstance(values, list) and key.isdigit() and int(key) < len(values):
        return values[int(key)]
    if isinstance(values, dict) and key in values:
        return values[key]
    known = range(len(values)) if isinstance(values, list) else values
    raise InputError(f"{where}: no '{key}' here, expected one of {', '.join(map(str, known))}")


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; expected one of {', '.join(METHODS)}")
    return method


MethodName = Annotated[str, AfterValidator(_known)]


class SpaceReading(FrozenModel):
    """Where a language space is read.

    Attributes
    ----------
    data : str or None
        Rows; the training prompts by default.
    role, pooling : str
        As in `lens.probe`.
    limit : int or None
        Rows per language.
    parallel : bool
        False draws each language's rows by itself, so that contents differ between languages.
    """

    data: str | None = None
    role: Literal["text", "user", "assistant"] = "text"
    pooling: Literal["last", "mean", "weighted"] = "last"
    limit: int | None = Field(None, ge=2)
    parallel: bool = True


class Questions(FrozenModel):
    """Questions of one split.

    Attributes
    ----------
    prompts : str
        Parallel questions.
    references : str or None
        JSONL of accepted answers, line i for question i; without it only fidelity is measured.
    neutral : str or None
        Text file of words that belong to no language, one a line, such as names.
    kinds : str or None
        Text file with the kind of question i in line i; the table then also shows each kind.
    """

    prompts: str
    references: str | None = None
    limit: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    batch_size: int = Field(64, ge=1)
    identifier: str = "default"
    neutral: str | None = None
    kinds: str | None = None


class SweepSetting(ModuleSettings, Flat):
    """One training run, or one of its controls; also takes any option of its groups.

    `lens.experiments.methods.METHODS` lists the methods and what each does.

    Answers: ``"given"``, the sweep's file; ``"self"``, the model's own, translated by the sweep's
    ``translator`` with ``texts`` as examples (`lens.training.self_translate`); ``"questions"``, the
    pivot's version of each prompt (`lens.training.translation`).
    """

    method: MethodName = option("lens", "Method: Lens training, or a control.")
    losses: Losses = group("lens+kl", "As in lens.train.", base="preset", defaults=False)
    strength: float | dict[str, float] | Annotated[tuple[float, ...], Field(min_length=1)] = option(
        1.0,
        "λ for all languages, per language, or values from which each language's is chosen on the "
        "validation questions (lens.training.choose_strengths).",
    )
    max_drift: float = option(
        0.02, "Largest drift of the pivot allowed to a chosen strength, nats.", gt=0
    )
    space: str = option("default", "Name of the reading.")
    prompts: int | None = option(None, "Training prompts per language; all by default.", ge=2)
    answers: Literal["given", "self", "questions"] = option("given", "Answers to the prompts.")
    without: tuple[str, ...] = option(
        (), "Languages that are neither in the subspace nor in training, but are asked."
    )
    checkpoint: str | None = option(
        None, 'Model of the method "checkpoint", such as one tuned on all languages.'
    )

    @model_validator(mode="after")
    def _has_checkpoint(self) -> SweepSetting:
        if (self.method == "checkpoint") != (self.checkpoint is not None):
            raise ValueError('method "checkpoint" and the key checkpoint go together')
        return self

    @property
    def chooses(self) -> bool:
        """Whether λ is chosen on validation: values are given, and the method uses them."""
        used = METHODS[self.method].strength
        separates = any(isinstance(term, Separate) for term in self.losses.active)
        matters = used == "always" or (used == "separate" and separates)
        return isinstance(self.strength, tuple) and matters

    def facts(self) -> dict[str, Any]:
        """Return what decides a run, as plain data; an alpha by default is the same as given."""
        found = self.model_dump(mode="json")
        found["lora"] = None if self.lora is None else self.lora.to_dict()
        return found


class Sweep(FrozenModel):
    """A whole ablation study.

    Attributes
    ----------
    model : str
        Folder or hub id. ``{name}`` in this and every path is replaced by the values of ``vary``.
    pivot : str
        Pivot language.
    prompts, answers, texts : str
        Parallel training prompts; their answers (for ``finetune`` and `LanguageModel` terms) and
        plain text, where a setting needs them.
    translator : str or None
        Model that translates, with the same tokenizer, such as the base model; the model itself
        by default.
    languages : tuple of str or None
        Those of the prompts by default.
    readings : dict of str to SpaceReading
        Where language spaces are read, by name; ``default`` reads the prompts as plain text.
    validation, test : Questions
        Settings are compared on validation; the test split is asked only with ``split="test"``.
    base : SweepSetting
        What every run starts from.
    grid : dict of str to list
        Dotted key, such as ``losses.rank`` or ``losses.terms.0.weight``, to its values; their
        product is run. ``base`` alone is run first.
    runs : dict of str to dict
        Further runs by name: dotted keys to values, on top of ``base``.
    against : str
        Name of the setting that the table compares the others with.
    seeds : tuple of int
        Training seeds; each run is repeated with all of them.
    vary : dict of str to list
        Names to values that replace ``{name}`` in paths: several worlds, or several models.
    """

    title: str = "Ablation"
    model: str
    dtype: str = "auto"
    device: str = "cpu"
    pivot: str = "eng_Latn"
    prompts: str
    answers: str | None = None
    texts: str | None = None
    translator: str | None = None
    languages: tuple[str, ...] | None = None
    readings: dict[str, SpaceReading] = Field({"default": SpaceReading()})
    validation: Questions
    test: Questions | None = None
    base: SweepSetting = SweepSetting()
    grid: dict[str, list[Any]] = Field({})
    runs: dict[str, dict[str, Any]] = Field({})
    against: str = "base"
    seeds: tuple[int, ...] = (0,)
    vary: dict[str, list[str]] = Field({})

    @model_validator(mode="after")
    def _complete(self) -> Sweep:
        if not self.seeds:
            raise ValueError("seeds: expected at least one")
        empty = [key for key, values in {**self.grid, **self.vary}.items() if not values]
        if empty:
            raise ValueError(f"{', '.join(empty)}: expected at least one value")
        if self.against not in self.settings():
            raise ValueError(
                f"against: '{self.against}' is not a setting, expected one of "
                f"{', '.join(self.settings())}"
            )
        for run in self.expand():
            if run.setting.space not in self.readings:
                raise ValueError(
                    f"run '{run.name}' uses the space '{run.setting.space}', expected one of "
                    f"the readings {', '.join(self.readings)}"
                )
        return self

    def settings(self) -> dict[str, SweepSetting]:
        """Every setting by name: base, the product of the grid, then the named runs."""
        found = {"base": self.base}
        keys = list(self.grid)
        for values in itertools.product(*self.grid.values()) if keys else ():
            changes = dict(zip(keys, values, strict=True))
            name = ", ".join(f"{key.rsplit('.', 1)[-1]}={_short(v)}" for key, v in changes.items())
            found[name] = changed(name, self.base, changes)
        for name, changes in self.runs.items():
            if name in found:
                raise ValueError(f"runs: the name '{name}' is taken; expected another")
            found[name] = changed(name, self.base, changes)
        return found

    def expand(self) -> tuple[SweepRun, ...]:
        """Every run: models first, then settings, then seeds."""
        keys = list(self.vary)
        combinations = [
            dict(zip(keys, values, strict=True))
            for values in itertools.product(*self.vary.values())
        ]
        settings = self.settings()
        return tuple(
            SweepRun(name, setting, seed, where)
            for where in combinations
            for name, setting in settings.items()
            for seed in self.seeds
        )


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One setting with one seed on one model.

    Attributes
    ----------
    name : str
        Of the setting.
    setting : SweepSetting
        Method and options.
    seed : int
        Training seed.
    where : dict of str to str
        What replaces the names in paths.
    """

    name: str
    setting: SweepSetting
    seed: int
    where: dict[str, str]

    def key(self, sweep: Sweep, split: str, inputs: Mapping[str, str]) -> str:
        """Hash everything that decides the result: settings, data, model, questions."""
        facts = {
            "setting": self.setting.facts(),
            "seed": self.seed if METHODS[self.setting.method].seeded else 0,
            "split": split,
            "chosen on": sweep.validation.model_dump(mode="json") if self.setting.chooses else None,
            "questions": getattr(sweep, split).model_dump(mode="json"),
            "reading": sweep.readings[self.setting.space].model_dump(mode="json"),
            "inputs": dict(inputs),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep from YAML; paths in it are relative to the working folder.

    Raises
    ------
    InputError
        If the file is missing or not YAML, or one line per key that is unknown or out of range.
    """
    return read_as(path, Sweep)


def changed(name: str, base: SweepSetting, changes: Mapping[str, Any]) -> SweepSetting:
    """Return a setting with options changed, or keys inside them; ``name`` is for messages.

    A change of ``losses`` comes first, then that of its keys, in any order.
    """
    plain = {key: value for key, value in changes.items() if "." not in key}
    try:
        values = validated(SweepSetting, plain, start=base).model_dump(mode="json")
        for key, value in changes.items():
            if "." in key:
                put(values, key.split("."), value, f"run '{name}': {key}")
        return validated(SweepSetting, values)
    except InputError as error:
        said = str(error).replace("\n", "; ")
        raise InputError(said if said.startswith("run '") else f"run '{name}': {said}") from None


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def strings(
    values: Mapping[str, str | None], where: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Pairs of key and path with every ``{name}`` replaced; None is left out."""
    for key, value in values.items():
        if value is not None:
            yield key, fill(value, where)


def fill(path: str, where: Mapping[str, str]) -> str:
    """Replace ``{name}`` by what a run varies.

    Raises
    ------
    InputError
        If a name is not varied.
    """
    try:
        return path.format_map(where)
    except (KeyError, IndexError, ValueError):
        raise InputError(
            f"'{path}' names something in braces that vary does not hold; it holds "
            f"{', '.join(where) or 'nothing'}"
        ) from None


_SEARCHED = [
    name
    for name, one in options_of(SweepSetting).items()
    if one.path[0] in ("layers", "modules", "lora", "losses")
]


class Range(FrozenModel):
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


class TuningConfig(FrozenModel):
    """Search space and criterion of a search.

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
        Number of runs; the first uses the given setting, where it lies inside the search.
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
    search: dict[str, Range | Annotated[list[Any], Field(min_length=1)]] = Field({})
    trials: int = Field(30, ge=1)
    max_drift: float = Field(0.02, gt=0)
    metric: Literal["accuracy_in_language", "fidelity"] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _searchable(self) -> TuningConfig:
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
