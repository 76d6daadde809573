"""What each loss term computes from one batch (Lens, arXiv 2410.04407, as in ``docs/training.md``).

Every function takes the term's settings, the batch and what the run knows, and returns the value
of the term without its weight, and the states it looked at, for the log of gradient shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lens.lsm import objective
from lens.lsm.config import Align, LanguageModel, Norm, PivotKL, Positions, Retain, Separate, Term
from lens.lsm.geometry import Geometry
from lens.lsm.positions import gather, token_mask
from lens.models.heads import logits
from lens.models.prefix import Batch
from lens.models.sites import FINAL

if TYPE_CHECKING:
    from lens.lsm.training import LensTrainer

Value = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Seen:
    """One batch of parallel prompts: the pivot's rows first, then those of each language.

    Attributes
    ----------
    trainer : LensTrainer
        Cached rows, languages, model.
    where : dict of str to Geometry
        Subspace and language steps by site.
    strength : dict of str to float
        λ per language.
    drawn, indices : list of int
        Prompts of the batch, and the rows of the cache that hold them in every language.
    batch : Batch
        Those rows.
    states : dict of str to Tensor
        The trained model's states by site, shape (rows, t, d).
    """

    trainer: LensTrainer
    where: dict[str, Geometry]
    strength: dict[str, float]
    drawn: list[int]
    indices: list[int]
    batch: Batch
    states: dict[str, Tensor]

    @property
    def n(self) -> int:
        """Prompts in each language."""
        return len(self.drawn)

    def trained(self, site: str, positions: Positions) -> tuple[Tensor, Tensor]:
        """States of all rows as they are now, (rows, p, d), and their mask (rows, p)."""
        return gather(self.states[site], self.batch.lengths, positions)

    def frozen(self, site: str, positions: Positions) -> Tensor:
        """States of the same rows in the frozen model, (rows, p, d)."""
        cache = self.trainer.cache
        if positions in ("last", 1):
            return cache.last_reference(self.indices, site)[:, None]
        return gather(cache.reference(self.indices, site), self.batch.lengths, positions)[0]

    def row_weights(self, factors: dict[str, float], mask: Tensor) -> Tensor:
        """Weights of (language, prompt, position), so that each language counts as its factor."""
        factor = [factors.get(lang, 1.0) for lang in self.trainer.languages]
        each = torch.tensor([f / self.n for f in factor], device=mask.device)
        shared = mask / mask.sum(1, keepdim=True).clamp_min(1)
        return (each.repeat_interleave(self.n)[:, None] * shared).reshape(-1)

    def of_pivot(self, states: Tensor) -> Tensor:
        """Rows of the pivot, once for every other language."""
        return states[: self.n].repeat(len(self.trainer.languages), *[1] * (states.ndim - 1))


def separate(term: Separate, seen: Seen) -> Value:
    """Language parts towards the language step."""
    at, n = seen.where[term.site], seen.n
    states, mask = seen.trained(term.site, term.positions)
    frozen = seen.frozen(term.site, term.positions)
    counted = mask[n:]
    if term.target == "absolute":
        reference, counted = seen.of_pivot(frozen), counted * seen.of_pivot(mask)
    else:
        reference = frozen[n:]
    steps = [term.strength * seen.strength[lang] * at.step[lang] for lang in seen.trainer.languages]
    target = torch.stack(steps).repeat_interleave(n * mask.shape[1], dim=0)
    weights = seen.row_weights(term.languages, counted)
    value = objective.separate(
        states[n:].flatten(0, 1), reference.flatten(0, 1), at.basis, target, weights
    )
    return value, seen.states[term.site]


def align(term: Align, seen: Seen) -> Value:
    """Language-agnostic parts towards the pivot's."""
    at, n = seen.where[term.site], seen.n
    states, mask = seen.trained(term.site, term.positions)
    aim = states if term.pivot == "trained" else seen.frozen(term.site, term.positions)
    weights = seen.row_weights(term.languages, mask[n:] * seen.of_pivot(mask))
    what = {"direction": at.agnostic} if term.agnostic == "mean" else {"basis": at.basis}
    pivot = seen.of_pivot(aim).flatten(0, 1)
    value = objective.align(states[n:].flatten(0, 1), pivot, weights=weights, **what)
    return value, seen.states[term.site]


def retain(term: Retain, seen: Seen) -> Value:
    """States of the pivot's prompts, or of text, where they were."""
    cache, site = seen.trainer.cache, term.site
    if term.rows == "pivot":
        rows, all_states = seen.indices[: seen.n], seen.states[site]
        lengths, states = seen.batch.lengths[: seen.n], all_states[: seen.n]
    else:
        rows = _text_rows(seen, seen.trainer.texts)
        batch = cache.batch(rows)
        all_states = states = cache.forward(batch)[site]
        lengths = batch.lengths
    frozen = cache.reference(rows, site)
    states = states[:, : frozen.shape[1]]
    mask = token_mask(lengths, frozen.shape[1], term.positions)
    return objective.retain(states, frozen, mask, form=term.form), all_states


def pivot_kl(term: PivotKL, seen: Seen) -> Value:
    """Mean KL(p⁰‖p) of the next token after the tokens of the pivot's prompts, or answers."""
    trainer, n = seen.trainer, seen.n
    all_states, lengths, rows = seen.states[FINAL], seen.batch.lengths[:n], seen.indices[:n]
    if term.rows == "answers":
        mine = trainer.answers[trainer.pivot]
        rows = [row for i in seen.drawn if (row := mine[i]) is not None]
        if not rows:
            return all_states.sum() * 0.0, all_states
        batch = trainer.cache.batch(rows)
        all_states, lengths = trainer.cache.forward(batch)[FINAL], batch.lengths
    frozen = trainer.cache.reference(rows, FINAL)
    mask = token_mask(lengths, frozen.shape[1], term.positions) > 0
    states = all_states[: len(rows), : frozen.shape[1]]
    with torch.no_grad():
        before = log_softmax(logits(trainer.model, trainer.parts, frozen[mask]), dim=-1)
    now = log_softmax(logits(trainer.model, trainer.parts, states[mask]), dim=-1)
    return kl_div(now, before, log_target=True, reduction="batchmean"), all_states


def language_model(term: LanguageModel, seen: Seen) -> Value:
    """Cross-entropy on answers to the drawn prompts, or on text."""
    trainer = seen.trainer
    rows: list[int] = []
    factors: list[float] = []
    source = trainer.answers if term.rows == "answers" else trainer.texts
    for lang, mine in source.items():
        factor = term.languages.get(lang, 1.0)
        if lang == trainer.pivot and not term.pivot:
            factor = 0.0
        found = [mine[i % len(mine)] for i in seen.drawn] if factor > 0 else []
        rows += [row for row in found if row is not None]
        factors += [factor] * (len(rows) - len(factors))
    if not rows:  # none of these prompts has an answer
        states = seen.states[FINAL]
        return states.sum() * 0.0, states
    batch = trainer.cache.batch(rows)
    states = trainer.cache.forward(batch)[FINAL]
    picked = [(b, t) for b, row in enumerate(rows) for t in trainer.predicting[row]]
    at, step = torch.tensor(picked, device=states.device).T
    found_logits = logits(trainer.model, trainer.parts, states[at, step])
    each = cross_entropy(found_logits, batch.input_ids[at, step + 1], reduction="none")
    weights = torch.tensor(factors, device=states.device)[at]
    return (weights * each).sum() / weights.sum(), states


def norm(term: Norm, seen: Seen) -> Value:
    """Lengths of states where they were, in every language and the pivot."""
    states, mask = seen.trained(term.site, term.positions)
    lengths = seen.frozen(term.site, term.positions).float().norm(dim=-1)
    ratio = states.float().norm(dim=-1) / lengths.clamp_min(1e-30)
    change = torch.where(mask > 0, ratio - 1, torch.zeros_like(ratio))  # padding has no length
    trainer = seen.trainer
    factor = [term.languages.get(lang, 1.0) for lang in (trainer.pivot, *trainer.languages)]
    weights = torch.tensor(factor, device=mask.device).repeat_interleave(seen.n)[:, None] * mask
    value = (weights * change.square()).sum() / weights.sum().clamp_min(1e-30)
    return value, seen.states[term.site]


def _text_rows(seen: Seen, texts: Mapping[str, range | dict[int, int]]) -> list[int]:
    return [rows[i % len(rows)] for rows in texts.values() for i in seen.drawn]


_VALUES: dict[str, Callable[[Any, Seen], Value]] = {
    "separate": separate,
    "align": align,
    "retain": retain,
    "kl": pivot_kl,
    "lm": language_model,
    "norm": norm,
}


def value_of(term: Term, seen: Seen) -> Value:
    """Value of any term, and the states it looked at."""
    return _VALUES[term.kind](term, seen)


def missing_rows(terms: Sequence[Term], trainer: LensTrainer) -> str | None:
    """Say which rows the terms need and training was not given; None if nothing is missing."""
    for term in terms:
        rows = getattr(term, "rows", None)
        if rows == "text" and not trainer.texts:
            return f'a {term.kind} term with rows="text" needs texts; pass them to training'
        if rows == "answers" and isinstance(term, PivotKL) and trainer.pivot not in trainer.answers:
            return (
                'a kl term with rows="answers" needs the pivot\'s answers to its prompts; pass '
                'them to training, or use rows="prompts"'
            )
        if rows == "answers" and not trainer.answers:
            return (
                f'a {term.kind} term with rows="answers" needs answers; pass them to training, or '
                'use rows="text" with texts'
            )
    return None
