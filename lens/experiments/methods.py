"""The methods of a sweep: what each does to a model before it is asked questions.

`METHODS` is the only list of them. A method is a function of `MethodInputs` that returns
`Prepared`; a new one is a function and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lens.space.space import Space
    from lens.training.config import LensConfig
    from lens.training.losses import SiteGeometry
    from lens.training.trainer import LensTrainer
    from lens.training.translation import Translator

Around = Callable[[str], AbstractContextManager[Any]]
Respond = Callable[[str, list[str]], list[str]]
Strength = float | dict[str, float]


def unsteered(_language: str) -> AbstractContextManager[Any]:
    """Answer with the model as it is."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class MethodInputs:
    """Everything a method may use; callables compute data when it is needed, and cache it.

    Attributes
    ----------
    model, tokenizer : object
        The model, which is restored after the run.
    pivot : str
        Pivot language.
    layers : str
        Blocks to train, or to steer at.
    config : LensConfig
        Losses and optimizer.
    strength : float, dict or tuple
        λ for all languages, per language, or values to choose from.
    chooses : bool
        Whether λ is chosen per language on the validation questions.
    max_drift : float
        Largest drift of the pivot allowed to a chosen λ, nats.
    seed : int
        Of this run.
    space, shuffled : callable
        Language space of the setting, and one of rows whose languages are shuffled.
    trainer : callable
        Trainer of the setting's blocks.
    finetuned : callable
        Tunes the blocks on answers and returns the last entry of the log.
    translator : callable
        Model and examples that translate.
    judge : callable
        Judges the model on the validation questions, inside a context for each language.
    checkpoint : callable
        The model that the setting names.
    """

    model: Any
    tokenizer: Any
    pivot: str
    layers: str
    config: LensConfig
    strength: Strength | tuple[float, ...]
    chooses: bool
    max_drift: float
    seed: int
    space: Callable[[], Space]
    shuffled: Callable[[], Space]
    trainer: Callable[[], LensTrainer]
    finetuned: Callable[[], dict[str, float]]
    translator: Callable[[], Translator]
    judge: Callable[[Around], dict[str, Any]]
    checkpoint: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The system that is asked: the model as it is now, another one, or a pipeline.

    Attributes
    ----------
    around : callable
        Context in which a language is answered.
    respond : callable or None
        Answers instead of the model.
    model : PreTrainedModel or None
        Asked instead of the study's.
    log : dict of str to float
        Last entry of the training log.
    strength : float, dict or None
        λ as it was used.
    """

    around: Around = unsteered
    respond: Respond | None = None
    model: Any = None
    log: dict[str, float] = field(default_factory=dict)
    strength: Strength | None = None


def _unchanged(_given: MethodInputs) -> Prepared:
    return Prepared()


def _checkpoint(given: MethodInputs) -> Prepared:
    return Prepared(model=given.checkpoint())


def _finetune(given: MethodInputs) -> Prepared:
    return Prepared(log=given.finetuned())


def _translate_first(given: MethodInputs) -> Prepared:
    from lens.training.translation import translate_first

    translator = given.translator()

    def respond(language: str, prompts: list[str]) -> list[str]:
        return translate_first(
            given.model,
            given.tokenizer,
            prompts,
            language=language,
            translator=translator,
            pivot=given.pivot,
        )

    return Prepared(respond=respond)


def _diffmean(given: MethodInputs) -> Prepared:
    from lens.data.languages import canonical
    from lens.steering.hooks import steer
    from lens.steering.vectors import diffmean_rules

    space = given.space()

    def steering(strength: Strength) -> Around:
        by_code = (
            {canonical(code): value for code, value in strength.items()}
            if isinstance(strength, dict)
            else dict.fromkeys(space.languages, strength)
        )

        def around(language: str) -> AbstractContextManager[Any]:
            if language == given.pivot or language not in space.languages:
                return nullcontext()
            step = by_code.get(language, 0.0)
            rules = diffmean_rules(
                space, language, layers=given.layers, strength=step, tokens="prompt"
            )
            return steer(given.model, rules)

        return around

    strength = _chosen(given, lambda value: given.judge(steering(value)))
    return Prepared(around=steering(strength), strength=strength)


def _lens(given: MethodInputs, geometry: dict[str, SiteGeometry] | None = None) -> Prepared:
    """Train in the space's own subspaces, or in those of a control."""
    trainer = given.trainer()

    def judged(strength: float) -> dict[str, Any]:
        trainer.run(given.config, strength=strength, seed=given.seed, geometry=geometry)
        return given.judge(unsteered)

    strength = _chosen(given, judged)
    result = trainer.run(given.config, strength=strength, seed=given.seed, geometry=geometry)
    return Prepared(log=result.log[-1], strength=strength)


def _random(given: MethodInputs) -> Prepared:
    from lens.training.objective import geometries

    true = geometries(given.space(), given.config.subspace_sites, given.config)
    return _lens(given, {site: at.randomised(given.seed) for site, at in true.items()})


def _shuffled(given: MethodInputs) -> Prepared:
    from lens.training.objective import geometries

    sites, config = given.config.subspace_sites, given.config
    true = geometries(given.space(), sites, config)
    shuffled = geometries(given.shuffled(), sites, config)
    return _lens(given, {site: at.rescaled(true[site]) for site, at in shuffled.items()})


def _chosen(given: MethodInputs, judged: Callable[[float], dict[str, Any]]) -> Strength:
    """λ as given, or the best of the given values for each language on validation."""
    from lens.training.trainer import StrengthTrial, choose_strengths

    if not isinstance(given.strength, tuple):
        return given.strength
    if not given.chooses:
        return given.strength[0]
    languages = [code for code in given.space().languages if code != given.pivot]

    def trials(strength: float) -> list[StrengthTrial]:
        found = judged(strength)
        shares = found["languages"]
        return [
            StrengthTrial(
                code,
                strength,
                shares["accuracy_in_language"][code],
                shares["fidelity"][code],
                found["kl"]["mean"],
            )
            for code in languages
        ]

    return choose_strengths(trials, given.strength, max_drift=given.max_drift).strength


@dataclass(frozen=True, slots=True)
class SweepMethod:
    """A method, and what its results depend on.

    Attributes
    ----------
    prepare : callable
        Trains or steers the model; the caller asks, then restores the model.
    description : str
        What is asked.
    seeded : bool
        Whether the seed of a run changes its result.
    strength : "unused", "separate" or "always"
        Whether λ has an effect: never, with a `Separate` term, or always.
    """

    prepare: Callable[[MethodInputs], Prepared]
    description: str
    seeded: bool = True
    strength: Literal["unused", "separate", "always"] = "unused"


METHODS: dict[str, SweepMethod] = {
    "lens": SweepMethod(_lens, "Lens training", strength="separate"),
    "random": SweepMethod(
        _random, "Lens with a random subspace and steps of equal length", strength="separate"
    ),
    "shuffled": SweepMethod(
        _shuffled,
        "Lens with a space of rows whose language labels are shuffled within each row, steps of "
        "equal length",
        strength="separate",
    ),
    "diffmean": SweepMethod(
        _diffmean, "steering of prompt tokens at the layers", seeded=False, strength="always"
    ),
    "finetune": SweepMethod(_finetune, "the same blocks tuned on answers"),
    "translate-first": SweepMethod(
        _translate_first, "answers by way of the pivot, with the sweep's translator", seeded=False
    ),
    "checkpoint": SweepMethod(_checkpoint, "another model", seeded=False),
    "unchanged": SweepMethod(_unchanged, "the model as it is", seeded=False),
}
