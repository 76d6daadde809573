"""Lens training of a band of blocks from cached prefix states (arXiv 2410.04407).

`LensTrainer` runs the frozen model once over all prompts; each `LensTrainer.run` then trains the
band from its original weights, so a sweep over settings shares one cache.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lens.data.languages import canonical
from lens.errors import InputError
from lens.lsm.adapters import Lora
from lens.lsm.config import LensConfig, resolve
from lens.lsm.distribution import Processes
from lens.lsm.geometry import Geometry, geometries
from lens.lsm.identity import INPUTS, identity
from lens.lsm.memory import memory_for_states
from lens.lsm.optimizing import DivergedError, Optimization, only_trainable
from lens.lsm.prompts import checked, held_out
from lens.lsm.result import State, TrainResult
from lens.lsm.rows import Rows
from lens.lsm.running import Run, Running, recomputing
from lens.lsm.step import Step
from lens.lsm.trainable import Trainable
from lens.lsm.validating import Watch
from lens.models.blocks import evaluating, locate
from lens.models.blockwise import require_whole
from lens.models.chat import ChatOptions
from lens.models.fingerprint import model_fingerprint
from lens.models.prefix import PrefixCache
from lens.models.residence import held_briefly, release
from lens.models.sites import resolve_layers, resolve_sites
from lens.models.spilling import set_aside, spill
from lens.space import Space


class LensTrainer:
    """Prompts, frozen prefix and references of one model, ready for any number of runs.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder and its tokenizer. The model is changed in place by `run`.
    space : Space
        Language space of this model.
    prompts : mapping of str to sequence of str, or of token id sequences
        Parallel user prompts: row i says the same in every language. Must hold the pivot.
    layers : str
        Blocks to train, such as ``"-2:"``, or a set of bands, ``"2:4,-2:"``; what is cached
        enters the lowest, and blocks in between run but are not trained.
    train : str
        What of these blocks: ``"full"``, ``"attention"``, ``"mlp"``, ``"bias"``, ``"norm"`` or
        a name inside them, see `lens.lsm.trainable.Trainable`.
    lora : int or Lora, optional
        Train adapters of this rank on their linear layers instead, through PEFT.
    sites : sequence of str
        Sites that any later run may read.
    texts : mapping of str to sequence of str, optional
        Plain text per language, for terms with ``rows="text"``.
    answers : mapping of str to sequence of str or None, optional
        Answers to the prompts for `LanguageModel` terms, one per prompt, in any of the languages;
        None where a prompt has none.
    references : {"last", "all"}
        Frozen states to keep of every prompt; "all" for losses that look at more than its last
        token (`LensConfig.references`). The pivot's are kept whole in any case.
    chat : ChatOptions, optional
        Chat template flags for the prompts.
    cache_batch : int
        Rows per forward pass while the prefix is cached.
    low_memory : bool
        Keep the weights that training does not need (embedding, blocks below the band, output
        head) in the checkpoint's file or a temporary one; each is in memory while it is used.
    cache : str or Path, optional
        Folder that keeps cached states; later runs over the same model and rows read them there.
    max_memory : str or int, optional
        Limit such as ``"12GB"`` for weights, optimizer and cached states together; states that
        would pass it go to temporary files.
    validation : mapping of str to sequence of str, optional
        Held-out prompts in the same languages: the run's objective is measured on them, and the
        weights that do best are kept. `LanguageModel` terms on answers do not take part.

    Raises
    ------
    InputError
        If prompts are not parallel, a language is not in the space, or the space is another
        model's.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        space: Space,
        prompts: Mapping[str, Sequence[str]],
        *,
        layers: str = "-2:",
        train: str = "full",
        lora: int | Lora | None = None,
        sites: Sequence[str] = ("final",),
        texts: Mapping[str, Sequence[str]] | None = None,
        answers: Mapping[str, Sequence[str | None]] | None = None,
        references: Literal["last", "all"] = "last",
        chat: ChatOptions | None = None,
        cache_batch: int = 32,
        low_memory: bool = False,
        cache: str | Path | None = None,
        max_memory: str | int | None = None,
        validation: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        space.check_model(model)
        self.fingerprint = model_fingerprint(model)  # now: later, weights may be in a file
        self.processes = Processes.current()
        self.model, self.tokenizer, self.space = model, tokenizer, space
        rows = checked(prompts, space)
        self.pivot = space.pivot
        self.languages = tuple(lang for lang in rows if lang != self.pivot)
        self.count = len(rows[self.pivot])
        self.references = references
        require_whole(model)
        brief = partial(held_briefly, [model], active=low_memory)
        with brief():
            self.parts = parts = locate(model)
        self.layers = resolve_layers(layers, len(parts.blocks))
        self.trainable = Trainable(model, parts, self.layers, train=train, lora=lora)
        first = min(self.layers)
        unused = (parts.embedding, *parts.blocks[:first], parts.lm_head)
        self.idle = [module for module in unused if module is not None and low_memory]
        memory = memory_for_states(
            model, trained_bytes=self.trainable.nbytes, idle=self.idle, max_memory=max_memory
        )
        places = resolve_sites(list(sites), len(parts.blocks))
        spill(self.idle)
        with brief():
            self.cache = PrefixCache(
                model, parts, first_block=first, sites=places, folder=cache, memory=memory,
                low_memory=low_memory,
            )  # fmt: skip
        given = Rows(
            self.cache, tokenizer, pivot=self.pivot, count=self.count, references=references,
            chat=chat, batch_size=cache_batch, processes=self.processes,
        )  # fmt: skip
        with evaluating(model), brief():
            self.rows, self.tokens = given.add_prompts("prompts", rows)
            watched = given.add_prompts("validation", held_out(validation, space, rows))
            for lang, plain in (texts or {}).items():
                given.add_text(canonical(lang), plain)
            for lang, said in (answers or {}).items():
                given.add_answers(canonical(lang), said, rows)
        self.validation, self.validation_tokens = watched
        self.texts, self.text_tokens = given.texts, given.text_tokens
        self.answers, self.answer_tokens = given.answers, given.answer_tokens
        self.pivot_answer_lengths = given.pivot_answer_lengths
        self.predicting, self.inputs = given.predicting, given.about
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
    def load(self, band: State) -> None:
        """Copy a band's weights, such as ``TrainResult.band``, into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(band[name])

    def run(
        self,
        losses: str | LensConfig | dict[str, Any] = "pinned",
        *,
        strength: float | Mapping[str, float] = 1.0,
        seed: int = 0,
        geometry: dict[str, Geometry] | None = None,
        running: Running | None = None,
    ) -> TrainResult:
        """Train the band from its original weights.

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
        missing = [site for site in config.sites if site not in self.cache.sites]
        if missing:
            raise InputError(
                f"the losses read {', '.join(missing)}, but the cache holds "
                f"{', '.join(self.cache.sites)}; name all sites when making the trainer"
            )
        if config.references == "all" and self.references != "all":
            raise InputError(
                "the losses look at more than the last token of a prompt, but only its state was "
                'kept; make the trainer with references="all"'
            )
        strengths, running = self.strengths(strength), running or Running()
        where = geometry or geometries(self.space, config.subspace_sites, config)
        self.parameters = self.trainable.activate()
        self.restore()
        is_run = identity(self, config, strength=strengths, seed=seed, geometry=geometry)
        started = time.perf_counter()
        try:
            log, watch = self._carried_out(
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
        band = {name: p.detach().clone() for name, p in self.parameters.items()}
        about = {
            "space": {"sha256": self.space.sha256, **self.space.to_dict()},
            "pivot": self.pivot,
            "prompts": self.count,
            "trained": self.trainable.to_dict(),
            "inputs": {name: is_run[name] for name in (*INPUTS, *self.inputs)},
        }
        if watch is not None:
            about["validation"] = {"best_step": watch.best_step, "loss": watch.best_loss}
        return TrainResult(
            self.model, self.tokenizer, band, log, config, strengths, seed, self.layers, seconds,
            about, self.trainable.adapter, original=self.original, unfinished=running.folder,
        )  # fmt: skip

    def _carried_out(
        self,
        config: LensConfig,
        where: dict[str, Geometry],
        strengths: dict[str, float],
        *,
        seed: int,
        running: Running,
        identity: dict[str, Any],
    ) -> tuple[list[dict[str, float]], Watch | None]:
        """Take the steps of a run; return its log and what validation found."""
        parameters = list(self.parameters.values())
        blocks = list(self.parts.blocks[min(self.layers) :])
        step = Step(self, config, where, strengths)
        watch = Watch(self, config, where, strengths) if self.validation else None
        was_training = self.model.training
        self.model.eval()  # no dropout: the references were made without
        try:
            with (
                only_trainable(self.model, parameters),
                held_briefly(self.idle),
                recomputing(blocks if running.gradient_checkpointing else []),
            ):
                optimization = Optimization(
                    parameters, config, count=self.count, seed=seed, dtype=self.model.dtype,
                    processes=self.processes, shard=running.shard,
                )  # fmt: skip
                run = Run(
                    optimization, self.parameters, step, running=running, identity=identity,
                    watch=watch,
                )  # fmt: skip
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
            return dict.fromkeys(self.languages, float(strength))
        given = {canonical(lang): float(value) for lang, value in strength.items()}
        missing = [lang for lang in self.languages if lang not in given]
        if missing:
            raise InputError(
                f"no strength for {', '.join(missing)}; give one number for all languages, or one "
                f"for each of {', '.join(self.languages)}"
            )
        return {lang: given[lang] for lang in self.languages}
