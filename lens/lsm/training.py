"""Lens training of a band of blocks from cached prefix states (arXiv 2410.04407).

`LensTrainer` runs the frozen model once over all prompts; each `LensTrainer.run` then trains the
band from its original weights, so a sweep over settings shares one cache.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lens.data.languages import canonical
from lens.errors import InputError
from lens.lsm import objective
from lens.lsm.config import Align, LensConfig, Retain, Separate, resolve
from lens.lsm.geometry import Geometry, geometries
from lens.lsm.optimizing import DivergedError, only_trainable, optimize
from lens.models.blocks import locate
from lens.models.chat import ChatOptions, Role, encode
from lens.models.prefix import Batch, PrefixCache
from lens.models.sites import resolve_layers
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
        Blocks to train, such as ``"-2:"``.
    sites : sequence of str
        Sites that any later run may read.
    texts : mapping of str to sequence of str, optional
        Plain text per language, for `Retain` terms with ``rows="text"``.
    chat : ChatOptions, optional
        Chat template flags for the prompts.
    cache_batch : int
        Rows per forward pass while the prefix is cached.
    low_memory : bool
        Once the prefix is cached, move the weights that training does not need (blocks below the
        band, output head) to a temporary file; they come back when they are used.

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
        sites: Sequence[str] = ("final",),
        texts: Mapping[str, Sequence[str]] | None = None,
        chat: ChatOptions | None = None,
        cache_batch: int = 32,
        low_memory: bool = False,
    ) -> None:
        space.check_model(model)
        self.model, self.tokenizer, self.space = model, tokenizer, space
        rows = _checked(prompts, space)
        self.pivot = space.pivot
        self.languages = tuple(lang for lang in rows if lang != self.pivot)
        self.count = len(rows[self.pivot])
        parts = locate(model)
        self.layers = resolve_layers(layers, len(parts.blocks))
        self.parameters = {
            f"{parts.blocks_name}.{i}.{name}": p
            for i in self.layers
            for name, p in parts.blocks[i].named_parameters()
        }
        self.original = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.cache = PrefixCache(model, parts, first_block=min(self.layers), sites=sites)
        self.rows: dict[str, range] = {}
        self.texts: dict[str, range] = {}
        was_training = model.training
        model.eval()
        for lang, texts_of in rows.items():
            ids = _encoded(tokenizer, texts_of, "user", chat)
            keep = "all" if lang == self.pivot else "last"
            self.rows[lang] = self.cache.add(
                ids, keep=keep, batch_size=cache_batch, label=f"Caching {lang}"
            )
        for lang, plain in (texts or {}).items():
            ids = _encoded(tokenizer, plain, "text", chat)
            self.texts[canonical(lang)] = self.cache.add(
                ids, keep="all", batch_size=cache_batch, label=f"Caching text {lang}"
            )
        model.train(was_training)
        if low_memory:
            idle = [*parts.blocks[: min(self.layers)], parts.lm_head]
            spill(module for module in idle if module is not None)

    def restore(self) -> None:
        """Put the original weights back."""
        self.load(self.original)

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
        config = resolve(losses)
        missing = [site for site in config.sites if site not in self.cache.sites]
        if missing:
            raise InputError(
                f"the losses read {', '.join(missing)}, but the cache holds "
                f"{', '.join(self.cache.sites)}; name all sites when making the trainer"
            )
        strengths = self._strengths(strength)
        where = geometry or geometries(self.space, config.sites, config)
        self.restore()
        step = _Step(self, config, where, strengths)
        started = time.perf_counter()
        parameters = list(self.parameters.values())
        try:
            with only_trainable(self.model, parameters):
                log = list(optimize(parameters, step, config, count=self.count, seed=seed))
        except DivergedError as error:
            self.restore()
            raise DivergedError(f"{error} (the original weights were put back)") from None
        seconds = time.perf_counter() - started
        band = {name: p.detach().clone() for name, p in self.parameters.items()}
        about = {
            "space": {"sha256": self.space.sha256, **self.space.to_dict()},
            "pivot": self.pivot,
            "prompts": self.count,
        }
        return TrainResult(
            self.model, self.tokenizer, band, log, config, strengths, seed, self.layers, seconds,
            about,
        )  # fmt: skip

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


class _Step:
    """Loss of one batch of parallel prompts, all languages in one forward pass."""

    def __init__(
        self,
        trainer: LensTrainer,
        config: LensConfig,
        where: dict[str, Geometry],
        strength: dict[str, float],
    ) -> None:
        self.trainer, self.config, self.where, self.strength = trainer, config, where, strength
        self.with_text = any(isinstance(t, Retain) and t.rows == "text" for t in config.active)
        if self.with_text and not trainer.texts:
            raise InputError('a retain term with rows="text" needs texts; pass them to training')

    def __call__(self, drawn: list[int]) -> tuple[Tensor, dict[str, float]]:
        t = self.trainer
        order = (t.pivot, *t.languages)
        indices = [t.rows[lang][i] for lang in order for i in drawn]
        batch = t.cache.batch(indices)
        states = t.cache.forward(batch)
        entry: dict[str, float] = {}
        total = torch.zeros(())
        for term in self.config.active:
            value = self._term(term, states, batch, indices, drawn)
            name = f"loss_{term.kind}" + ("" if term.site == "final" else f"@{term.site}")
            entry[name] = entry.get(name, 0.0) + float(value.detach())
            total = total + term.weight * value
        entry["loss"] = float(total.detach())
        entry.update(self._movement(states, batch, indices, len(drawn)))
        return total, entry

    def _term(
        self,
        term: Separate | Align | Retain,
        states: State,
        batch: Batch,
        indices: list[int],
        drawn: list[int],
    ) -> Tensor:
        n = len(drawn)
        if isinstance(term, Retain):
            return self._retain(term, states, batch, indices, drawn)
        at = self.where[term.site]
        last = batch.last(states[term.site])
        frozen = self.trainer.cache.last_reference(indices, term.site)
        others = len(self.trainer.languages)
        weights = torch.full((others * n,), 1.0 / n)
        if isinstance(term, Align):
            pivot = (last if term.pivot == "trained" else frozen)[:n].repeat(others, 1)
            one = {"direction": at.agnostic} if term.agnostic == "mean" else {"basis": at.basis}
            return objective.align(last[n:], pivot, weights=weights, **one)
        reference = frozen[n:] if term.target == "shift" else frozen[:n].repeat(others, 1)
        steps = [self.strength[lang] * at.step[lang] for lang in self.trainer.languages]
        target = torch.stack(steps).repeat_interleave(n, dim=0)
        return objective.separate(last[n:], reference, at.basis, target, weights)

    def _retain(
        self, term: Retain, states: State, batch: Batch, indices: list[int], drawn: list[int]
    ) -> Tensor:
        cache, n = self.trainer.cache, len(drawn)
        if term.rows == "pivot":
            frozen = cache.reference(indices[:n], term.site)
            h = states[term.site][:n, : frozen.shape[1]]
            return objective.retain(h, frozen, batch.mask[:n, : h.shape[1]], form=term.form)
        texts = self.trainer.texts
        chosen = [rows[i % len(rows)] for rows in texts.values() for i in drawn]
        text = cache.batch(chosen)
        h = cache.forward(text)[term.site]
        return objective.retain(h, cache.reference(chosen, term.site), text.mask, form=term.form)

    @torch.no_grad()
    def _movement(
        self, states: State, batch: Batch, indices: list[int], n: int
    ) -> dict[str, float]:
        """How far the last states moved along and across the language step, and the pivot's."""
        site = self.config.sites[-1]
        at = self.where[site]
        moved = (
            batch.last(states[site]) - self.trainer.cache.last_reference(indices, site)
        ).float()
        along, across, cosine = [], [], []
        for k, lang in enumerate(self.trainer.languages, start=1):
            rows = moved[k * n : (k + 1) * n]
            step = at.basis @ at.step[lang]
            unit = step / step.norm().clamp_min(1e-30)
            part = rows @ unit
            along.append(part.abs().mean())
            across.append((rows - part[:, None] * unit).norm(dim=1).mean())
            cosine.append((part / rows.norm(dim=1).clamp_min(1e-30)).mean())
        means = [float(torch.stack(x).mean()) for x in (along, across, cosine)]
        names = ("moved_along", "moved_across", "moved_cosine")
        return {
            **dict(zip(names, means, strict=True)),
            "pivot_moved": float(moved[:n].norm(dim=1).mean()),
        }


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


def _encoded(
    tokenizer: Any, rows: Sequence[Any], role: Role, chat: ChatOptions | None
) -> list[Sequence[int]]:
    """Token ids of rows; rows that are token ids already stay as they are."""
    if rows and not isinstance(rows[0], str):
        return list(rows)
    return [row.ids for row in encode(tokenizer, rows, role=role, chat=chat)]
