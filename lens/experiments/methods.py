"""What each method of a sweep does to a model before it is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens.data.languages import canonical
from lens.errors import InputError
from lens.experiments.config import Method, SweepRun, SweepSetting, fill
from lens.experiments.questions import Around, Respond, unsteered
from lens.models.loading import load
from lens.steering.hooks import steer
from lens.steering.vectors import diffmean_rules
from lens.training.finetune import finetune
from lens.training.losses import SiteGeometry
from lens.training.objective import geometries
from lens.training.trainer import StrengthTrial, choose_strengths

if TYPE_CHECKING:
    from lens.experiments.study import Study

Strength = float | dict[str, float]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is asked: the study's model as it is now, or another, or a pipeline.

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


def prepare(study: Study, run: SweepRun) -> Prepared:
    """Train or steer as the run says; the caller asks, then puts the model back."""
    return _METHODS[run.setting.method](study, run)


def _unchanged(study: Study, run: SweepRun) -> Prepared:
    return Prepared()


def _checkpoint(study: Study, run: SweepRun) -> Prepared:
    path = fill(str(run.setting.checkpoint), run.where)
    return Prepared(model=load(path, dtype=study.sweep.dtype, device=study.sweep.device)[0])


def _translate_first(study: Study, run: SweepRun) -> Prepared:
    from lens.training.translation import translate_first

    translator, asked = study.translator(), study.sweep.validation

    def respond(language: str, prompts: list[str]) -> list[str]:
        return translate_first(
            study.model, study.tokenizer, prompts, language=language, translator=translator,
            pivot=study.pivot, max_new_tokens=asked.max_new_tokens, batch_size=asked.batch_size,
        )  # fmt: skip

    return Prepared(respond=respond)


def _finetune(study: Study, run: SweepRun) -> Prepared:
    prompts, given = study.supervised(run.setting)
    answers = {code: [row for row in rows if row is not None] for code, rows in given.items()}
    short = [code for code in prompts if len(answers.get(code, ())) < len(prompts[code])]
    if short and run.setting.answers != "given":
        raise InputError(
            f"method finetune needs an answer to every prompt, and {', '.join(short)} lack some; "
            "use method lens with losses self-translation, which leaves such prompts out"
        )
    tuned = finetune(
        study.model, study.tokenizer, prompts, answers, layers=run.setting.layers,
        train=run.setting.train, lora=run.setting.adapter, config=run.setting.config(),
        seed=run.seed,
    )  # fmt: skip
    study.releases.append(tuned.release)
    return Prepared(log=tuned.log[-1])


def _diffmean(study: Study, run: SweepRun) -> Prepared:
    setting, space = run.setting, study.space(run.setting)

    def steering(strength: Strength) -> Around:
        given = strength if isinstance(strength, dict) else {}
        by_code = {canonical(code): value for code, value in given.items()}

        def around(language: str) -> AbstractContextManager[Any]:
            if language == study.pivot or language not in space.languages:
                return nullcontext()
            step = by_code.get(language, 0.0) if isinstance(strength, dict) else strength
            rules = diffmean_rules(
                space, language, layers=setting.layers, strength=step, apply="prompt"
            )
            return steer(study.model, rules)

        return around

    def judged(strength: float) -> dict[str, Any]:
        return study.asked("validation").judge(study.model, steering(strength))

    strength = _strength(study, setting, judged)
    return Prepared(around=steering(strength), strength=strength)


def _lens(study: Study, run: SweepRun) -> Prepared:
    setting, config = run.setting, run.setting.config()
    where, trainer = _geometry(study, run), study.trainer(setting)
    study.releases.append(trainer.release)

    def judged(strength: float) -> dict[str, Any]:
        trainer.run(config, strength=strength, seed=run.seed, geometry=where)
        return study.asked("validation").judge(study.model)

    strength = _strength(study, setting, judged)
    result = trainer.run(config, strength=strength, seed=run.seed, geometry=where)
    return Prepared(log=result.log[-1], strength=strength)


def _geometry(study: Study, run: SweepRun) -> dict[str, SiteGeometry] | None:
    """Subspaces of a control, at every site; None for those of the space itself."""
    setting, config = run.setting, run.setting.config()
    if setting.method == "lens":
        return None
    true = geometries(study.space(setting), config.subspace_sites, config)
    if setting.method == "random":
        return {site: geometry.randomised(run.seed) for site, geometry in true.items()}
    shuffled = geometries(study.shuffled(setting, run.seed), config.subspace_sites, config)
    return {site: geometry.rescaled(true[site]) for site, geometry in shuffled.items()}


def _strength(
    study: Study, setting: SweepSetting, judged: Callable[[float], dict[str, Any]]
) -> Strength:
    """λ as given, or the best of the given values for each language on validation."""
    if not isinstance(setting.strength, tuple):
        return setting.strength
    if not setting.chooses:
        return setting.strength[0]
    if study.sweep.validation.references is None:
        raise InputError(
            "strength: a list of values is chosen from by accuracy, which needs references: name "
            "their file under 'validation:'"
        )
    languages = [code for code in study.space(setting).languages if code != study.pivot]

    def trials(strength: float) -> list[StrengthTrial]:
        found = judged(strength)
        shares = found["languages"]
        return [
            StrengthTrial(
                code, strength, shares["accuracy_in_language"][code], shares["fidelity"][code],
                found["kl"]["mean"],
            )
            for code in languages
        ]  # fmt: skip

    return choose_strengths(trials, setting.strength, max_drift=setting.max_drift).strength


_METHODS: dict[Method, Callable[[Study, SweepRun], Prepared]] = {
    "lens": _lens,
    "random": _lens,
    "shuffled": _lens,
    "diffmean": _diffmean,
    "finetune": _finetune,
    "translate-first": _translate_first,
    "checkpoint": _checkpoint,
    "unchanged": _unchanged,
}
