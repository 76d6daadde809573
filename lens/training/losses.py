"""The loss terms of Lens training (arXiv 2410.04407): formula, value and normaliser of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lens import losses
from lens.models.architecture import logits
from lens.models.layers import FINAL
from lens.models.prefix_cache import PrefixBatch
from lens.space.space import Space
from lens.training.config import (
    Align,
    LanguageModel,
    LensConfig,
    Norm,
    PivotKL,
    Positions,
    Retain,
    Separate,
    Term,
)

if TYPE_CHECKING:
    from lens.training.trainer import LensTrainer


@dataclass(frozen=True, slots=True)
class SiteGeometry:
    """Language subspace, agnostic direction and language steps at one site.

    Attributes
    ----------
    basis : Tensor
        M_s, shape (d, r), float32.
    agnostic : Tensor
        M_a, shape (d,), float32.
    step : dict of str to Tensor
        M_sᵀ(m_l − m_c) of every language, shape (r,), float32.
    """

    basis: Tensor
    agnostic: Tensor
    step: dict[str, Tensor]

    @classmethod
    def of(cls, space: Space, site: str, config: LensConfig) -> SiteGeometry:
        """Fit the subspace of ``space`` at ``site`` as ``config`` asks."""
        along_mean = any(isinstance(t, Align) and t.agnostic == "mean" for t in config.active)
        fitted = space.fit(site, rank=config.rank, agnostic="mean" if along_mean else "complement")
        basis = torch.from_numpy(fitted.basis).float().contiguous()
        step = {
            lang: basis.T @ torch.from_numpy(space.delta(site, lang)).float()
            for lang in space.languages
        }
        return cls(basis, torch.from_numpy(fitted.agnostic).float(), step)

    def to(self, device: torch.device) -> SiteGeometry:
        """Copy of the geometry on another device."""
        step = {lang: vector.to(device) for lang, vector in self.step.items()}
        return SiteGeometry(self.basis.to(device), self.agnostic.to(device), step)

    def rescaled(self, like: SiteGeometry) -> SiteGeometry:
        """Copy with steps in the same directions, of the lengths of another geometry's."""
        step = {
            lang: vector * (like.step[lang].norm() / vector.norm().clamp_min(1e-30))
            for lang, vector in self.step.items()
        }
        return SiteGeometry(self.basis, self.agnostic, step)

    def randomised(self, seed: int) -> SiteGeometry:
        """Draw a random subspace of equal rank, with steps of equal length in random directions."""
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(self.basis.shape, generator=generator)).Q.contiguous()
        step = {}
        for lang, true in self.step.items():
            drawn = torch.randn(true.shape, generator=generator)
            step[lang] = drawn / drawn.norm() * true.norm()
        centre = self.agnostic - basis @ (basis.T @ self.agnostic)
        return SiteGeometry(basis, centre, step)


def geometries(space: Space, sites: Sequence[str], config: LensConfig) -> dict[str, SiteGeometry]:
    """Geometry of every site."""
    return {site: SiteGeometry.of(space, site, config) for site in sites}


def gather(states: Tensor, lengths: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """States at the chosen positions of right-padded rows.

    Parameters
    ----------
    states : Tensor
        Shape (n, t, d).
    lengths : Tensor
        Real tokens of each row, shape (n,).
    positions : "last", "all", "mean" or int
        The last real token; every token, in order; the mean over tokens; or the last k, the last
        one first, so that column j is the j-th token from the end in every row.

    Returns
    -------
    values : Tensor
        Shape (n, p, d).
    mask : Tensor
        1 where a row has such a token, else 0; shape (n, p), float32.
    """
    n, t, _ = states.shape
    row = torch.arange(n, device=states.device)
    steps = torch.arange(t, device=states.device)
    if positions == "last":
        return states[row, lengths - 1][:, None], torch.ones(n, 1, device=states.device)
    if positions == "all":
        return states, (steps < lengths[:, None]).float()
    if positions == "mean":
        real = (steps < lengths[:, None]).to(states.dtype)[..., None]
        mean = (states * real).sum(1) / lengths[:, None].to(states.dtype)
        return mean[:, None], torch.ones(n, 1, device=states.device)
    at = lengths[:, None] - 1 - torch.arange(positions, device=states.device)
    return states[row[:, None], at.clamp_min(0)], (at >= 0).float()


def token_mask(lengths: Tensor, width: int, positions: Positions) -> Tensor:
    """1 at the chosen real tokens of right-padded rows of ``width``; shape (n, width), float32."""
    steps = torch.arange(width, device=lengths.device)
    real = steps < lengths[:, None]
    if positions == "all":
        return real.float()
    k = 1 if positions == "last" else int(positions)
    return (real & (steps >= lengths[:, None] - k)).float()


Form = Literal["token", "token_mean"]


class _Given(torch.autograd.Function):
    """A scalar whose gradient with respect to one or two inputs is known."""

    @staticmethod
    def forward(
        ctx: Any, value: Any, h: Tensor, grad: Any, other: Tensor | None, grad_other: Any
    ) -> Tensor:
        ctx.grad = torch.as_tensor(grad)
        ctx.grad_other = None if grad_other is None else torch.as_tensor(grad_other)
        return torch.as_tensor(value).to(h)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, None, Tensor | None, None]:
        (g,) = upstream
        other = None if ctx.grad_other is None else g * ctx.grad_other
        return None, g * ctx.grad, None, other, None


def _scalar(
    found: losses.LossResult | losses.AlignResult, h: Tensor, other: Tensor | None = None
) -> Tensor:
    grad_other = getattr(found, "grad_pivot", None)
    out: Tensor = _Given.apply(found.value, h, found.grad, other, grad_other)  # type: ignore[no-untyped-call]
    return out


def _plain(x: Tensor) -> Tensor:
    return x.detach().contiguous()


def separate(h: Tensor, h0: Tensor, basis: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Σ_b w_b ‖(h−h⁰)M_s − t‖² / d over rows; gradient into ``h``.

    Parameters
    ----------
    h, h0 : Tensor
        Trained and reference states, shape (B, d).
    basis : Tensor
        M_s, shape (d, r), orthonormal columns.
    target : Tensor
        Language step of each row in the subspace, shape (B, r).
    weights : Tensor
        Row weights, shape (B,).
    """
    h = h.float()
    return _scalar(
        losses.separate(_plain(h), _plain(h0.float()), basis, target, weights=weights), h
    )


def align(
    h: Tensor,
    pivot: Tensor,
    *,
    direction: Tensor | None = None,
    basis: Tensor | None = None,
    weights: Tensor,
) -> Tensor:
    """Σ_b w_b ‖P_a(h − h_c)‖² / d over rows; gradient into ``h``, and ``pivot`` if it wants one.

    P_a projects on ``direction`` (M_a, the published form) or on the complement of ``basis``.
    """
    h, pivot = h.float(), pivot.float()
    found = losses.align(
        _plain(h),
        _plain(pivot),
        direction=direction,
        basis=basis,
        weights=weights,
        two_sided=pivot.requires_grad,
    )
    return _scalar(found, h, pivot)


def retain(h: Tensor, h0: Tensor, mask: Tensor, *, form: Form) -> Tensor:
    """Masked squared distance of states (B, t, d) to the frozen ones; gradient into ``h``.

    ``form="token"`` compares every real token, ``"token_mean"`` the rows' token means (published).
    """
    h = h.float()
    return _scalar(losses.retain(_plain(h), _plain(h0.float()), mask != 0, form=form), h)


Value = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class LossInputs:
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
    where: dict[str, SiteGeometry]
    strength: dict[str, float]
    drawn: list[int]
    indices: list[int]
    batch: PrefixBatch
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


def separate_term(term: Separate, seen: LossInputs) -> Value:
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
    value = separate(states[n:].flatten(0, 1), reference.flatten(0, 1), at.basis, target, weights)
    return value, seen.states[term.site]


def align_term(term: Align, seen: LossInputs) -> Value:
    """Language-agnostic parts towards the pivot's."""
    at, n = seen.where[term.site], seen.n
    states, mask = seen.trained(term.site, term.positions)
    aim = states if term.pivot == "trained" else seen.frozen(term.site, term.positions)
    weights = seen.row_weights(term.languages, mask[n:] * seen.of_pivot(mask))
    what = {"direction": at.agnostic} if term.agnostic == "mean" else {"basis": at.basis}
    pivot = seen.of_pivot(aim).flatten(0, 1)
    value = align(states[n:].flatten(0, 1), pivot, weights=weights, **what)
    return value, seen.states[term.site]


def retain_term(term: Retain, seen: LossInputs) -> Value:
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
    return retain(states, frozen, mask, form=term.form), all_states


def pivot_kl_term(term: PivotKL, seen: LossInputs) -> Value:
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


def language_model_term(term: LanguageModel, seen: LossInputs) -> Value:
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


def norm_term(term: Norm, seen: LossInputs) -> Value:
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


def _text_rows(seen: LossInputs, texts: Mapping[str, range | dict[int, int]]) -> list[int]:
    return [rows[i % len(rows)] for rows in texts.values() for i in seen.drawn]


_VALUES: dict[str, Callable[[Any, LossInputs], Value]] = {
    "separate": separate_term,
    "align": align_term,
    "retain": retain_term,
    "kl": pivot_kl_term,
    "lm": language_model_term,
    "norm": norm_term,
}


def value_of(term: Term, seen: LossInputs) -> Value:
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


def weight_of_part(
    term: Term, trainer: LensTrainer, part: Sequence[int], whole: Sequence[int]
) -> float:
    """Return the factor of a term's value over ``part``, so that parts of ``whole`` add up."""
    if len(part) == len(whole):
        return 1.0
    every = _mass(term, trainer, whole)
    if every == 0:
        return 1.0
    return _mass(term, trainer, part) / every * len(whole) / len(part)


def _mass(term: Term, trainer: LensTrainer, prompts: Sequence[int]) -> float:
    """Return what the term's mean over these prompts divides by."""
    if isinstance(term, PivotKL) or (isinstance(term, Retain) and term.rows == "pivot"):
        if isinstance(term, Retain) and term.form == "token_mean":
            return len(prompts)
        answers = isinstance(term, PivotKL) and term.rows == "answers"
        rows = trainer.pivot_answer_lengths if answers else trainer.tokens[trainer.pivot]
        return _counted([rows], prompts, term.positions)
    if isinstance(term, Retain):
        if term.form == "token_mean":
            return len(prompts)
        return _counted(list(trainer.text_tokens.values()), prompts, term.positions)
    if isinstance(term, LanguageModel):
        answers = term.rows == "answers"
        source = trainer.answer_tokens if answers else trainer.text_tokens
        first = 0 if answers else len(prompts)  # nothing predicts the first token of a text
        return sum(
            term.languages.get(lang, 1.0) * (_counted([rows], prompts, "all") - first)
            for lang, rows in source.items()
            if lang != trainer.pivot or term.pivot
        )
    if isinstance(term, Norm):
        return sum(
            term.languages.get(lang, 1.0) * _counted([rows], prompts, term.positions)
            for lang, rows in trainer.tokens.items()
        )
    return len(prompts)


def _counted(rows: list[list[int]], prompts: Sequence[int], positions: Positions) -> int:
    """Tokens of the prompts' rows that stand at ``positions``."""
    lengths = [mine[i % len(mine)] for mine in rows for i in prompts]
    if positions == "all":
        return sum(lengths)
    if positions in ("last", "mean"):
        return sum(length > 0 for length in lengths)
    return sum(min(length, int(positions)) for length in lengths)
