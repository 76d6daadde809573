"""Tune a model on an ability or on plain text: all of it, or key neurons only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lens.errors import InputError
from lens.lsm.adapters import adapted
from lens.lsm.optimizing import Entry, Optimization, draws, only_trainable
from lens.lsm.precision import Masters
from lens.lsm.trainable import Trainable
from lens.models.blocks import locate
from lens.models.blockwise import require_whole
from lens.models.capturing import check_rows
from lens.models.chat import EncodedRow, pad_id_of
from lens.models.fingerprint import model_fingerprint
from lens.models.quantized import is_quantized
from lens.models.sites import resolve_layers
from lens.progress import progress
from lens.recipes.maec.config import Tuning
from lens.recipes.maec.corpora import Examples
from lens.recipes.maec.keys import KeyMasters, Keys, put_back


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished tuning; the model holds its weights.

    Attributes
    ----------
    model, tokenizer
        As given; the model is changed in place.
    changed : dict of str to Tensor
        Its trained parameters by name.
    log : list of dict
        One entry per step: ``loss`` in nats a token, and ``loss_replay`` where there is replay.
    settings : Tuning
    seed : int
    seconds : float
        Wall time of the steps.
    about : dict
        Base model, corpora and key neurons, as numbers and hashes.
    """

    model: Any
    tokenizer: Any
    changed: dict[str, Tensor]
    log: list[dict[str, float]]
    settings: Tuning
    seed: int
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, out: Any, *, force: bool = False) -> None:
        """Write a Hugging Face checkpoint, the log and ``reproduce.json`` to a new folder."""
        from lens.recipes.maec.saving import save

        save(self, out, force=force)


def train(
    model: Any,
    tokenizer: Any,
    corpus: Examples,
    *,
    settings: Tuning,
    replay: Examples | None = None,
    keys: Keys | None = None,
    how: Literal["mask", "revert"] = "mask",
    seed: int = 0,
) -> Tuned:
    """Tune a model in place; the loss is the mean over rows of a row's mean cross-entropy.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder in floating point and its tokenizer.
    corpus : Examples
        What is learnt.
    settings : Tuning
        Steps, rates, share of the replay.
    replay : Examples, optional
        General text, ``settings.replay`` of the rows of each batch.
    keys : Keys, optional
        Key neurons; all other elements keep their bits.
    how : {"mask", "revert"}
        Train key neurons alone, with an optimizer that holds no others; or train everything and
        put the others back at the end.
    seed : int
        Decides the order of rows.

    Returns
    -------
    Tuned

    Raises
    ------
    InputError
        If the model cannot be trained, has no such parts or is not the one the keys are of, replay
        is wanted and not given or given and not wanted, or training diverges; weights are then
        those before.

    References
    ----------
    MAEC, arXiv:2410.07825.
    """
    if (replay is not None) != (settings.replay > 0):
        raise InputError(
            "replay needs both general text and a share above 0 of the rows of each batch; got "
            f"{'no text' if replay is None else 'text'} and the share {settings.replay:g}"
        )
    named = _trainable(model, settings)
    places = None if keys is None else _among(named, keys.of(model))
    if places is not None and not places:
        raise InputError("there are no key neurons in what is trained; raise k1 or train more")
    rows = _Rows(corpus, replay, settings)
    rows.check(model)
    about = {
        "base": model_fingerprint(model),
        "corpus": corpus.about(),
        "replay": None if replay is None else replay.about(),
        "keys": None if keys is None else {"sha256": keys.sha256, "n": keys.count, "how": how},
    }
    masked = places if how == "mask" else None
    chosen = named if masked is None else {name: named[name] for name in masked}
    before = {name: p.detach().clone() for name, p in chosen.items()}
    started = time.perf_counter()
    try:
        log = _fit(model, tokenizer, chosen, rows, masked=masked, settings=settings, seed=seed)
    except BaseException:
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(before[name])
        raise
    if places is not None and how == "revert":
        put_back(chosen, before, places)
        chosen = {name: named[name] for name in places}
    changed = {name: p.detach() for name, p in chosen.items()}
    return Tuned(
        model, tokenizer, changed, log, settings, seed, time.perf_counter() - started, about
    )


class _Rows:
    """Rows of the corpus, then those of the replay, and how batches are drawn from both."""

    def __init__(self, corpus: Examples, replay: Examples | None, settings: Tuning) -> None:
        parts = [corpus] if replay is None else [corpus, replay]
        self.ids = [ids for part in parts for ids in part.ids]
        self.predicting = [at for part in parts for at in part.predicting]
        self.own, self.settings = len(corpus), settings

    def check(self, model: Any) -> None:
        """Refuse rows that the model cannot take."""
        encoded = [EncodedRow(tuple(ids), 0, len(ids)) for ids in self.ids]
        check_rows(
            encoded, locate(model), model,
            advice="cut text shorter with row_tokens (--row-tokens), or leave such prompts out",
        )  # fmt: skip
        if not all(len(at) for at in self.predicting):
            raise InputError("a row has nothing to learn; rows of text need two tokens or more")

    def drawn(self, seed: int) -> Iterator[list[int]]:
        """Batches: a shuffle of the corpus, and beside it one of the replay."""
        k = self.settings.replayed
        mine = draws(self.own, self.settings.batch_size - k, seed)
        if not k:
            yield from mine
        others = draws(len(self.ids) - self.own, k, seed + 1)
        while True:
            yield [*next(mine), *(self.own + i for i in next(others))]

    def batch(self, drawn: Sequence[int], pad: int, device: Any) -> tuple[Tensor, Tensor]:
        """Token ids padded on the right, and where they are real."""
        longest = max(len(self.ids[i]) for i in drawn)
        ids = torch.full((len(drawn), longest), pad)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(drawn):
            ids[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            mask[row, : len(self.ids[i])] = 1
        return ids.to(device), mask.to(device)


def _fit(
    model: Any,
    tokenizer: Any,
    trained: dict[str, Tensor],
    rows: _Rows,
    *,
    masked: dict[str, Tensor] | None,
    settings: Tuning,
    seed: int,
) -> list[Entry]:
    pad, device = pad_id_of(tokenizer), next(iter(trained.values())).device
    parameters = list(trained.values())

    def loss_of(drawn: list[int], _whole: list[int]) -> tuple[Tensor, Entry]:
        ids, mask = rows.batch(drawn, pad, device)
        picked = [(r, t) for r, i in enumerate(drawn) for t in rows.predicting[i]]
        at = torch.tensor(picked, device=device).T
        with _multiplying(device, settings.autocast):
            found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        each = cross_entropy(found[at[0], at[1]].float(), ids[at[0], at[1] + 1], reduction="none")
        lengths = torch.tensor([len(rows.predicting[i]) for i in drawn], device=device)
        by_row = each.new_zeros(len(drawn)).index_add(0, at[0], each) / lengths
        value = by_row.mean()
        entry = {"loss": float(value.detach())}
        replayed = [r for r, i in enumerate(drawn) if i >= rows.own]
        if settings.replay:  # its part of the loss
            entry["loss_replay"] = float(by_row.detach()[replayed].sum()) / len(drawn)
        return value, entry

    masters = (
        Masters(parameters)
        if masked is None
        else KeyMasters(parameters, [masked[name] for name in trained])
    )
    with only_trainable(model, parameters):
        steps = Optimization(
            parameters, settings.optimizer, count=len(rows.ids), seed=seed, dtype=model.dtype,
            masters=masters, order=rows.drawn(seed),
        )  # fmt: skip
        return [
            steps.step(loss_of) for _ in progress(range(settings.steps), "Training", unit="step")
        ]


def _trainable(model: Any, settings: Tuning) -> dict[str, Tensor]:
    """Trained parameters by name; refuse a model that cannot be trained itself."""
    require_whole(model)
    if adapted(model):
        raise InputError("the model carries adapters; merge them first (merge_and_unload in PEFT)")
    packed = [name for name, module in model.named_modules() if is_quantized(module)]
    if packed:
        raise InputError(
            f"the model has packed weights ({packed[0]}), which cannot be trained themselves; "
            "load it in bfloat16 or float32"
        )
    if settings.train is None:
        return {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    parts = locate(model)
    layers = resolve_layers(settings.layers, len(parts.blocks))
    return dict(Trainable(model, parts, layers, train=settings.train).activate())


def _among(named: dict[str, Tensor], places: dict[str, Tensor]) -> dict[str, Tensor]:
    """Key neurons of what is trained."""
    return {name: found for name, found in places.items() if name in named}


def _multiplying(device: torch.device, autocast: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if autocast else nullcontext()
