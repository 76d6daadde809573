"""The plain way to train with the Lens losses: two whole models, no cache, nothing shared."""

import copy
import math
import random

import torch

from lens.space.space import Space
from lens.training import losses
from lens.training.objective import geometries

LANGUAGES = ("eng_Latn", "spa_Latn", "ind_Latn", "swh_Latn")
LENGTHS = (9, 4, 6, 7)


def rows(*, equal=False, count=4):
    """Token ids of parallel prompts; lengths differ unless they shall be equal."""
    rng = random.Random(7)
    return {
        lang: [
            [rng.randrange(5, 280) for _ in range(7 if equal else LENGTHS[(i + k) % 4])]
            for i in range(count)
        ]
        for k, lang in enumerate(LANGUAGES)
    }


def space(width=32, sites=("final",)):
    """A space from random states."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).double()

    states = {
        site: {lang: (draw(20, width) + draw(width) + 2).numpy() for lang in LANGUAGES}
        for site in sites
    }
    return Space.from_states(states, pivot=LANGUAGES[0])


class PlainLoop:
    """A model that is trained, its frozen copy, and the published losses or ours."""

    def __init__(self, model, names, prompts, config, *, frozen=None, written_out=False):
        self.model, self.written_out = model, written_out
        self.frozen = copy.deepcopy(model) if frozen is None else frozen
        self.prompts, self.config = prompts, config
        self.at = geometries(space(model.config.hidden_size), ("final",), config)["final"]
        model.requires_grad_(False)
        self.trained = {name: model.get_parameter(name).requires_grad_() for name in names}

    def loss(self, drawn):
        """Sum of the losses over prompts ``drawn``, in every language."""
        n = len(drawn)
        ids = [torch.tensor(self.prompts[lang][i]) for lang in LANGUAGES for i in drawn]
        lengths = torch.tensor([len(row) for row in ids])
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        h = self.model.base_model(input_ids=batch, use_cache=False).last_hidden_state
        with torch.no_grad():
            h0 = self.frozen.base_model(input_ids=batch, use_cache=False).last_hidden_state
        last, last0 = (x[torch.arange(len(ids)), lengths - 1] for x in (h, h0))
        longest = int(lengths[:n].max())
        mask = (torch.arange(longest) < lengths[:n, None]).float()
        h, h0 = h[:n, :longest], h0[:n, :longest]
        terms = self._written_out if self.written_out else self._fused
        return sum(terms(term, n, last, last0, h, h0, mask) for term in self.config.terms)

    def _fused(self, term, n, last, last0, h, h0, mask):
        """A loss by the code that lens uses."""
        if term.kind == "retain":
            return losses.retain(h, h0, mask, form=term.form)
        weights = torch.full((3 * n,), 1 / n)
        if term.kind == "align":
            pivot = last[:n].repeat(3, 1)
            return losses.align(last[n:], pivot, direction=self.at.agnostic, weights=weights)
        start = last0[n:] if term.target == "shift" else last0[:n].repeat(3, 1)
        step = torch.stack([self.at.step[lang] for lang in LANGUAGES[1:]])
        target = step.repeat_interleave(n, dim=0)
        return losses.separate(last[n:], start, self.at.basis, target, weights)

    def _written_out(self, term, n, last, last0, h, h0, mask):
        """The same loss from its formula alone, language by language."""
        if term.kind == "retain" and term.form == "token":
            return ((h - h0)[mask > 0]).square().mean()
        if term.kind == "retain":
            means = [[x[i, mask[i] > 0].mean(0) for i in range(n)] for x in (h, h0)]
            return (torch.stack(means[0]) - torch.stack(means[1])).square().mean()
        pivot, pivot0, total = last[:n], last0[:n], 0.0
        onto = self.at.basis @ self.at.basis.T
        along = torch.outer(self.at.agnostic, self.at.agnostic) / self.at.agnostic.square().sum()
        for k, lang in enumerate(LANGUAGES[1:], start=1):
            mine, frozen = last[k * n : (k + 1) * n], last0[k * n : (k + 1) * n]
            if term.kind == "align":
                total = total + ((pivot - mine) @ along).square().mean()
                continue
            start = frozen if term.target == "shift" else pivot0
            aim = self.at.basis @ self.at.step[lang]
            total = total + ((mine - start) @ onto - aim).square().mean()
        return total

    def run(self, seed):
        """Train with AdamW, warm-up, cosine and clipping; every step sees all prompts."""
        config, parameters = self.config, list(self.trained.values())
        optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=config.weight_decay)
        rng = random.Random(seed)
        warm = max(1, round(config.warmup_ratio * config.steps))
        losses = []
        for step in range(config.steps):
            drawn = list(range(len(self.prompts[LANGUAGES[0]])))
            rng.shuffle(drawn)
            loss = self.loss(drawn)
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            share = (step - warm) / max(1, config.steps - warm)
            rising = (step + 1) / warm
            factor = rising if step < warm else 0.5 * (1 + math.cos(math.pi * share))
            optimizer.param_groups[0]["lr"] = config.learning_rate * factor
            optimizer.step()
        return losses
