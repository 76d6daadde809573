"""Lens training of a band of blocks from cached prefix states (arXiv 2410.04407).

`LensTrainer` runs the frozen model once over all prompts; each `LensTrainer.run` then trains the
band from its original weights, so a sweep over settings shares one cache.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lens.data.languages import canonical
from lens.errors import InputError
from lens.lsm.adapters import Lora
from lens.lsm.config import LensConfig, resolve
from lens.lsm.geometry import Geometry, geometries
from lens.lsm.memory import memory_for_states
from lens.lsm.optimizing import DivergedError, only_trainable, optimize
from lens.lsm.step import Step
from lens.lsm.trainable import Trainable
from lens.models.blocks import locate
from lens.models.capturing import check_rows
from lens.models.chat import ChatOptions, Role, encode
from lens.models.prefix import PrefixCache
from lens.models.sites import resolve_layers, resolve_sites
from lens.models.spilling import spill
from lens.space import Space

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished Lens run.

    Attributes
    ----------
    model : PreTrainedModel
        The model given to training, its band now trained.
    band : dict of str to Tensor
        Trained parameters by name, as they are in ``model``.
    log : list of dict
        One entry per step: every loss, learning rate, movement along and across the language step.
    config, strength, seed, layers
        What decided the run.
    seconds : float
        Wall time of the steps, without the prefix pass.
    adapter : peft.PeftModel or None
        PEFT's view of the model when adapters were trained.
    """

    model: Any
    tokenizer: Any
    band: State
    log: list[dict[str, float]]
    config: LensConfig
    strength: dict[str, float]
    seed: int
    layers: tuple[int, ...]
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)
    adapter: Any = None

    def save(self, out: Any, *, force: bool = False) -> None:
        """Write a Hugging Face checkpoint, the log and ``reproduce.json`` to a new folder."""
        from lens.lsm.saving import save

        save(self, out, force=force)


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
        Once the prefix is cached, move the weights that training does not need (blocks below the
        band, output head) to a temporary file; they come back when they are used.
    cache : str or Path, optional
        Folder that keeps cached states; later runs over the same model and rows read them there.
    max_memory : str or int, optional
        Limit such as ``"12GB"`` for weights, optimizer and cached states together; states that
        would pass it go to temporary files.

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
    ) -> None:
        space.check_model(model)
        self.model, self.tokenizer, self.space = model, tokenizer, space
        rows = _checked(prompts, space)
        self.pivot = space.pivot
        self.languages = tuple(lang for lang in rows if lang != self.pivot)
        self.count = len(rows[self.pivot])
        self.references = references
        self.parts = parts = locate(model)
        self.layers = resolve_layers(layers, len(parts.blocks))
        self.trainable = Trainable(model, parts, self.layers, train=train, lora=lora)
        below = [*parts.blocks[: min(self.layers)], parts.lm_head] if low_memory else []
        idle = [module for module in below if module is not None]
        memory = memory_for_states(
            model, trained_bytes=self.trainable.nbytes, idle=idle, max_memory=max_memory
        )
        places = resolve_sites(list(sites), len(parts.blocks))
        self.cache = PrefixCache(
            model, parts, first_block=min(self.layers), sites=places, folder=cache, memory=memory
        )
        self.rows: dict[str, range] = {}
        self.texts: dict[str, range] = {}
        self.answers: dict[str, list[int | None]] = {}
        self.predicting: dict[int, range] = {}  # per row of the cache: positions before a target
        was_training = model.training
        model.eval()
        for lang, texts_of in rows.items():
            ids = self._encoded(texts_of, "user", chat)
            keep = "all" if lang == self.pivot else references
            self.rows[lang] = self.cache.add(
                ids, keep=keep, batch_size=cache_batch, label=f"Caching {lang}"
            )
        for lang, plain in (texts or {}).items():
            ids = self._encoded(plain, "text", chat)
            found = self.cache.add(
                ids, keep="all", batch_size=cache_batch, label=f"Caching text {lang}"
            )
            self.texts[canonical(lang)] = found
            self.predicting.update(
                (i, range(len(row) - 1)) for i, row in zip(found, ids, strict=True)
            )
        for lang, said in (answers or {}).items():
            self._add_answers(canonical(lang), said, rows, chat, cache_batch)
        model.train(was_training)
        spill(idle)
        self.parameters = self.trainable.activate()
        self.original = {name: p.detach().clone() for name, p in self.parameters.items()}

    def _add_answers(
        self,
        lang: str,
        answers: Sequence[str | None],
        prompts: Mapping[str, Sequence[str]],
        chat: ChatOptions | None,
        cache_batch: int,
    ) -> None:
        """Cache a language's answers in the assistant's turn, with the end of the turn."""
        if lang not in prompts or len(answers) != self.count:
            given = f"{len(answers)} answers for {lang}"
            known = ", ".join(prompts)
            raise InputError(
                f"answers: got {given}, expected one (or None) for each of the {self.count} "
                f"prompts, in languages that have prompts ({known})"
            )
        pairs = [(i, text) for i, text in enumerate(answers) if text is not None]
        said = [text for _, text in pairs]
        asked = [prompts[lang][i] for i, _ in pairs]
        turns = (
            encode(self.tokenizer, said, role="assistant", prompts=asked, chat=chat) if said else []
        )
        end = self.tokenizer.eos_token_id
        ids = [(*row.ids, end) if end is not None else row.ids for row in turns]
        added = self.cache.add(ids, batch_size=cache_batch, label=f"Caching answers {lang}")
        places: list[int | None] = [None] * self.count
        for (i, _), row, turn, kept in zip(pairs, added, turns, ids, strict=True):
            places[i] = row
            # positions that predict the answer, and the one that predicts the end of the turn
            self.predicting[row] = range(turn.pool_start, min(turn.pool_stop + 1, len(kept) - 1))
        self.answers[lang] = places

    def restore(self) -> None:
        """Put the original weights back."""
        self.load(self.original)

    def release(self) -> None:
        """Put the original weights back and take adapters off; the trainer is then spent."""
        self.restore()
        self.trainable.release()

    @torch.no_grad()
    def load(self, band: State) -> None:
        """Copy a band's weights, such as ``TrainResult.band``, into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(band[name])

    def run(
        self,
        losses: str | LensConfig | dict[str, Any] = "corrected",
        *,
        strength: float | Mapping[str, float] = 1.0,
        seed: int = 0,
        geometry: dict[str, Geometry] | None = None,
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

        Raises
        ------
        InputError
            For settings that do not fit, or a loss that is not finite (the original weights are
            put back and the term is named).
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
        strengths = self._strengths(strength)
        where = geometry or geometries(self.space, config.subspace_sites, config)
        self.restore()
        step = Step(self, config, where, strengths)
        started = time.perf_counter()
        parameters = list(self.parameters.values())
        was_training = self.model.training
        self.model.eval()  # no dropout: the references were made without
        try:
            with only_trainable(self.model, parameters):
                log = []
                for entry in optimize(parameters, step, config, count=self.count, seed=seed):
                    log.append(entry)
                    step.number = len(log)
        except DivergedError as error:
            self.restore()
            raise DivergedError(f"{error} (the original weights were put back)") from None
        finally:
            self.model.train(was_training)
        seconds = time.perf_counter() - started
        band = {name: p.detach().clone() for name, p in self.parameters.items()}
        about = {
            "space": {"sha256": self.space.sha256, **self.space.to_dict()},
            "pivot": self.pivot,
            "prompts": self.count,
            "trained": self.trainable.to_dict(),
        }
        return TrainResult(
            self.model, self.tokenizer, band, log, config, strengths, seed, self.layers, seconds,
            about, self.trainable.adapter,
        )  # fmt: skip

    def _encoded(
        self, rows: Sequence[Any], role: Role, chat: ChatOptions | None
    ) -> list[Sequence[int]]:
        """Token ids of rows; rows that are token ids already stay as they are."""
        if rows and not isinstance(rows[0], str):
            return list(rows)
        encoded = encode(self.tokenizer, rows, role=role, chat=chat)
        check_rows(encoded, self.cache.parts, self.model)
        return [row.ids for row in encoded]

    def _strengths(self, strength: float | Mapping[str, float]) -> dict[str, float]:
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


def _checked(prompts: Mapping[str, Sequence[str]], space: Space) -> dict[str, list[str]]:
    """Prompts by canonical language, the pivot first, or one error that lists every problem."""
    rows = {canonical(lang): list(texts) for lang, texts in prompts.items()}
    problems = []
    if space.pivot not in rows:
        problems.append(f"the pivot {space.pivot} has no prompts")
    if len(rows) < 2:
        problems.append("prompts in at least one language besides the pivot are needed")
    absent = [lang for lang in rows if lang not in space.languages]
    if absent:
        problems.append(
            f"the space has no {', '.join(absent)} (it has {', '.join(space.languages)})"
        )
    if len({len(texts) for texts in rows.values()}) > 1 or not all(rows.values()):
        counts = ", ".join(f"{lang}: {len(texts)}" for lang, texts in rows.items())
        problems.append(f"prompts are not parallel, row counts are {counts}")
    if problems:
        raise InputError("cannot train on these prompts: " + "; ".join(problems))
    pivot = space.pivot
    return {pivot: rows[pivot]} | {lang: rows[lang] for lang in rows if lang != pivot}
