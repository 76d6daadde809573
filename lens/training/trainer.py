"""Lens training of the last blocks from cached prefix states (arXiv 2410.04407)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lens.data.languages import canonical
from lens.errors import InputError
from lens.models.architecture import evaluating, locate
from lens.models.fingerprint import _sha256_of_parts, model_fingerprint, tokenizer_sha256
from lens.models.layers import resolve_layers, resolve_sites
from lens.models.offload import held_briefly, release, require_whole, set_aside, spill
from lens.models.prefix_cache import PrefixCache
from lens.space.space import Space
from lens.training.config import LensConfig, RunOptions, TrainerSettings, TrainSettings, resolve
from lens.training.data import (
    CacheFiller,
    TrainingData,
    checked_prompts,
    held_out,
    memory_for_states,
)
from lens.training.losses import SiteGeometry
from lens.training.objective import BatchObjective, ValidationMonitor, geometries
from lens.training.optimizer import DivergedError, Optimization, draws, only_trainable
from lens.training.parameters import Trainable
from lens.training.processes import Processes
from lens.training.result import State, TrainResult
from lens.training.run import TrainingRun, recomputing
from lens.utils.settings import takes

# What a run is given besides its settings and its rows.
INPUTS = ("model", "dtype", "tokenizer", "subspaces", "processes")


class LensTrainer:
    """Prompts, frozen prefix and references of one model, ready for any number of runs.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder and its tokenizer. The model is changed in place by `run`.
    space : Space
        Language space of this model.
    prompts : mapping of str to sequence of str, or of token id sequences
        Parallel user prompts: row i has one meaning in every language. Must hold the pivot.
    texts : mapping of str to sequence of str, optional
        Plain text per language, for terms with ``rows="text"``.
    answers : mapping of str to sequence of str or None, optional
        Answers to the prompts for `LanguageModel` terms, one per prompt, in any of the languages;
        None where a prompt has none.
    validation : mapping of str to sequence of str, optional
        Held-out prompts in the same languages: the run's objective is measured on them, and the
        weights that do best are kept. `LanguageModel` terms on answers do not take part.
    **options
        Fields of `TrainerSettings`, or one such object as ``settings``.

    Raises
    ------
    InputError
        If prompts are not parallel, a language is not in the space, or the space is another
        model's.
    """

    @takes(TrainerSettings)
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        space: Space,
        prompts: Mapping[str, Sequence[str]],
        *,
        texts: Mapping[str, Sequence[str]] | None = None,
        answers: Mapping[str, Sequence[str | None]] | None = None,
        validation: Mapping[str, Sequence[str]] | None = None,
        settings: TrainerSettings,
    ) -> None:
        space.check_model(model)
        self.fingerprint = model_fingerprint(model)  # now: later, weights may be in a file
        self.model, self.tokenizer, self.space = model, tokenizer, space
        self.processes, self.references = Processes.current(), settings.references
        low_memory = settings.low_memory
        rows = checked_prompts(prompts, space)
        require_whole(model)
        brief = partial(held_briefly, [model], active=low_memory)
        with brief():
            self.parts = parts = locate(model)
        self.layers = resolve_layers(settings.layers, len(parts.blocks))
        self.trainable = Trainable(
            model, parts, self.layers, modules=settings.modules, lora=settings.lora
        )
        first = min(self.layers)
        unused = (parts.embedding, *parts.blocks[:first], parts.lm_head)
        self.idle = [module for module in unused if module is not None and low_memory]
        memory = memory_for_states(
            model,
            trained_bytes=self.trainable.nbytes,
            idle=self.idle,
            max_memory=settings.max_memory,
        )
        places = resolve_sites(settings.sites, len(parts.blocks))
        spill(self.idle)
        with brief():
            prefix = PrefixCache(
                model,
                parts,
                first_block=first,
                sites=places,
                folder=settings.cache,
                memory=memory,
                low_memory=low_memory,
            )
        languages = tuple(lang for lang in rows if lang != space.pivot)
        filler = CacheFiller(
            TrainingData(prefix, space.pivot, languages, self.processes),
            tokenizer,
            references=settings.references,
            chat=settings.chat,
            batch_size=settings.cache_batch,
        )
        watched = held_out(validation, space, rows)
        with evaluating(model), brief():
            self.data = filler.with_prompts("prompts", rows)
            self.held_out = filler.with_prompts("validation", watched) if watched else None
            for lang, plain in (texts or {}).items():
                filler.add_text(canonical(lang), plain)
            for lang, given in (answers or {}).items():
                filler.add_answers(canonical(lang), given, rows)
        self.inputs = filler.about
        self.parameters = self.trainable.activate()
        self.original = set_aside(self.parameters, in_files=low_memory)

    def restore(self) -> None:
        """Put the original weights back."""
        self.load(self.original)
        release(self.original.values())

    def release(self) -> None:
        """Put the original weights back and take adapters off until the next `run`."""
        self.restore()
        self.trainable.release()

    @torch.no_grad()
    def load(self, weights: State) -> None:
        """Copy trained weights, such as ``TrainResult.weights``, into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def run(
        self,
        losses: str | LensConfig | dict[str, Any] = "lens+kl",
        *,
        strength: float | Mapping[str, float] = 1.0,
        seed: int = 0,
        geometry: dict[str, SiteGeometry] | None = None,
        running: RunOptions | None = None,
    ) -> TrainResult:
        """Train the blocks from their original weights.

        Parameters
        ----------
        losses : str, LensConfig or dict
            Preset name or settings.
        strength : float or mapping
            λ, the length of the language step, for all languages or per language.
        seed : int
            Decides which prompts form each step.
        geometry : dict, optional
            Subspaces to use instead of the space's own (controls).
        running : Running, optional
            Checkpoints, resuming, activation checkpointing, trackers.

        Raises
        ------
        InputError
            For settings that do not fit, another run in the working folder, or a loss that is not
            finite (the original weights are put back and the term is named).
        StoppedError
            If Ctrl-C or SIGTERM stopped a run that has a working folder; it can be resumed.
        """
        config = resolve(losses).placed(len(self.parts.blocks))
        cached = self.data.cache.sites
        missing = [site for site in config.sites if site not in cached]
        if missing:
            raise InputError(
                f"the losses read {', '.join(missing)}, but the cache holds "
                f"{', '.join(cached)}; name all sites when making the trainer"
            )
        if config.references == "all" and self.references != "all":
            raise InputError(
                "the losses read more than the last token of a prompt, but only its state was "
                'cached; make the trainer with references="all"'
            )
        strengths, running = self.strengths(strength), running or RunOptions()
        where = geometry or geometries(self.space, config.subspace_sites, config)
        self.parameters = self.trainable.activate()
        self.restore()
        is_run = self._identity(config, strength=strengths, seed=seed, geometry=geometry)
        started = time.perf_counter()
        try:
            log, watch = self._train(
                config, where, strengths, seed=seed, running=running, identity=is_run
            )
        except DivergedError as error:
            self.restore()
            message = f"{error} (the original weights were put back)"
            raise DivergedError(message, error.step) from None
        except BaseException:
            self.restore()
            raise
        seconds = time.perf_counter() - started
        weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        about = {
            "space": {"sha256": self.space.sha256, **self.space.to_dict()},
            "pivot": self.data.pivot,
            "prompts": self.data.count,
            "trained": self.trainable.to_dict(),
            "inputs": {name: is_run[name] for name in (*INPUTS, *self.inputs)},
        }
        if watch is not None:
            about["validation"] = {"best_step": watch.best_step, "loss": watch.best_loss}
        return TrainResult(
            self.model,
            self.tokenizer,
            weights,
            log,
            config,
            strengths,
            seed,
            self.layers,
            seconds,
            about,
            self.trainable.adapter,
            original=self.original,
            unfinished=running.folder,
        )

    def _identity(
        self,
        config: LensConfig,
        *,
        strength: dict[str, float],
        seed: int,
        geometry: Mapping[str, SiteGeometry] | None,
    ) -> dict[str, Any]:
        """Everything that decides a run's result; the model must hold its original weights."""
        return {
            "model": self.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "tokenizer": None if self.tokenizer is None else tokenizer_sha256(self.tokenizer),
            "space": self.space.sha256,
            **self.trainable.to_dict(),
            "parameters": _sha256_of_parts(name.encode() for name in self.parameters),
            "losses": config.model_dump(mode="json"),
            "strength": strength,
            "seed": seed,
            **self.inputs,
            "subspaces": None if geometry is None else _geometry_sha256(geometry),
            "processes": self.processes.count,
        }

    def _train(
        self,
        config: LensConfig,
        where: dict[str, SiteGeometry],
        strengths: dict[str, float],
        *,
        seed: int,
        running: RunOptions,
        identity: dict[str, Any],
    ) -> tuple[list[dict[str, float]], ValidationMonitor | None]:
        """Take the steps of a run; return its log and its validation."""
        parameters = list(self.parameters.values())
        blocks = list(self.parts.blocks[min(self.layers) :])
        step = BatchObjective(self.data, config, where, strengths)
        watch = None
        if self.held_out is not None:
            watch = ValidationMonitor(self.held_out, self.parameters, config, where, strengths)
        was_training = self.model.training
        self.model.eval()  # no dropout: the references were made without
        try:
            with (
                only_trainable(self.model, parameters),
                held_briefly(self.idle),
                recomputing(blocks if running.gradient_checkpointing else []),
            ):
                optimization = Optimization(
                    parameters,
                    config,
                    order=draws(self.data.count, config.batch_size, seed),
                    dtype=self.model.dtype,
                    processes=self.processes,
                    shard=running.shard,
                )
                run = TrainingRun(
                    optimization,
                    self.parameters,
                    step,
                    running=running,
                    identity=identity,
                    watch=watch,
                )
                return run.go(), watch
        finally:
            self.model.train(was_training)

    def strengths(self, strength: float | Mapping[str, float]) -> dict[str, float]:
        """Return λ per trained language.

        Raises
        ------
        InputError
            If a mapping lacks one.
        """
        if not isinstance(strength, Mapping):
            return dict.fromkeys(self.data.languages, float(strength))
        given = {canonical(lang): float(value) for lang, value in strength.items()}
        missing = [lang for lang in self.data.languages if lang not in given]
        if missing:
            raise InputError(
                f"no strength for {', '.join(missing)}; give one number for all languages, or one "
                f"for each of {', '.join(self.data.languages)}"
            )
        return {lang: given[lang] for lang in self.data.languages}


def _geometry_sha256(geometry: Mapping[str, SiteGeometry]) -> str:
    def parts() -> Iterator[bytes]:
        for site, at in sorted(geometry.items()):
            yield site.encode()
            for tensor in at.content:
                yield tensor.detach().cpu().contiguous().numpy().tobytes()

    return _sha256_of_parts(parts())


@takes(TrainSettings)
def train(
    model: Any,
    tokenizer: Any,
    space: Space,
    prompts: Mapping[str, Sequence[str]],
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    answers: Mapping[str, Sequence[str | None]] | None = None,
    validation: Mapping[str, Sequence[str]] | None = None,
    settings: TrainSettings,
) -> TrainResult:
    """Train blocks with Lens, from prompts alone.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder and its tokenizer; the model is trained in place.
    space : Space
        Language space of this model, from `lens.probe`.
    prompts : mapping of str to sequence of str
        Parallel prompts per language, the pivot among them; no answers.
    texts : mapping, optional
        Plain text per language, for terms with ``rows="text"``.
    answers : mapping, optional
        Answers to the prompts, for `LanguageModel` terms; None where a prompt has none.
    validation : mapping of str to sequence of str, optional
        Held-out prompts in the same languages; the weights that do best on them are kept.

    Returns
    -------
    TrainResult
        With ``.model``, ``.log`` and ``.save(folder)``.

    Raises
    ------
    InputError
        For prompts, languages, layers, losses or a space that do not fit the model.

    References
    ----------
    Lens, arXiv 2410.04407.
    """
    config = settings.losses
    trainer = LensTrainer(
        model,
        tokenizer,
        space,
        prompts,
        texts=texts,
        answers=answers,
        validation=validation,
        settings=settings.part(TrainerSettings, sites=config.sites, references=config.references),
    )
    return trainer.run(
        config, strength=settings.strength, seed=settings.seed, running=settings.running
    )


@dataclass(frozen=True, slots=True)
class StrengthTrial:
    """What one language got from one grid value, on validation.

    Attributes
    ----------
    language : str
        FLORES code.
    strength : float
        λ of the run.
    quality : float
        What is maximised: share of answers correct and in the language.
    fidelity : float
        Share of answers in the language.
    drift : float
        Mean KL of the pivot's next-token distribution from the frozen model's, nats.
    """

    language: str
    strength: float
    quality: float
    fidelity: float
    drift: float


@dataclass(frozen=True, slots=True)
class StrengthChoice:
    """The chosen strength per language, and every trial it was chosen from."""

    strength: dict[str, float]
    trials: tuple[StrengthTrial, ...]
    max_drift: float


def choose_strengths(
    trial: Callable[[float], Sequence[StrengthTrial]],
    grid: Sequence[float],
    *,
    max_drift: float = 0.02,
) -> StrengthChoice:
    """Run ``trial`` for each λ of ``grid`` and keep the best λ per language.

    Parameters
    ----------
    trial : callable
        Trains and validates at one λ for all languages; returns one `Trial` per language.
    grid : sequence of float
        Values of λ.
    max_drift : float
        Largest pivot drift allowed, nats. When no value stays below it, the one with the least
        drift is taken.

    Returns
    -------
    Choice
        Ties go to fidelity, then to the smaller λ.

    Raises
    ------
    InputError
        If the grid is empty.
    """
    if not grid:
        raise InputError("the grid of strengths is empty; give at least one value")
    trials = [one for value in grid for one in trial(value)]
    languages = dict.fromkeys(one.language for one in trials)
    strength = {}
    for language in languages:
        mine = [one for one in trials if one.language == language]
        allowed = [one for one in mine if one.drift <= max_drift]
        if not allowed:
            allowed = [min(mine, key=lambda one: (one.drift, one.strength))]
        best = max(allowed, key=lambda one: (one.quality, one.fidelity, -one.strength))
        strength[language] = best.strength
    return StrengthChoice(strength, tuple(trials), max_drift)
