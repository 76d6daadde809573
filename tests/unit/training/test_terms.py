"""The contract of a loss term: one file is enough, parts of a step add up, gradients are right."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import cosine_similarity

import lens
from lens.errors import InputError
from lens.training import LensConfig, Retain, resolve
from lens.training.objective import BatchObjective, geometries
from lens.training.processes import Processes
from lens.training.terms.base import TERMS, LossTerm, count_tokens
from lens.training.terms.contrastive import Contrastive, info_nce
from lens.training.terms.penalise import Penalise, lean
from tests.helpers.runs import config, make

WHOLE = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def trainer():
    trainer = make(layers="1:", sites=("block.1", "final"), references="all")
    with torch.no_grad():  # as if some training had happened
        for parameter in trainer.parameters.values():
            parameter.mul_(1.02)
    return trainer


def objective(trainer, term, data=None, **changes):
    settings = config(shares_every=0, **changes).model_copy(update={"terms": (term,)})
    where = geometries(trainer.space, settings.subspace_sites, settings)
    strength = dict.fromkeys(trainer.data.languages, 1.0)
    return BatchObjective(data or trainer.data, settings, where, strength)


def parts_add_up(step):
    with torch.no_grad():
        whole = float(step(WHOLE)[0])
        parts = [([0], 0.25), ([1, 2, 3], 0.75)]
        together = sum(share * float(step(part, WHOLE)[0]) for part, share in parts)
    assert whole != 0
    return together == pytest.approx(whole, rel=2e-5)


class Length(LossTerm):
    """Mean over the tokens of all prompts of the length of their state after block 1."""

    kind: Literal["length of states"] = "length of states"

    def value(self, inputs):
        states, mask = inputs.trained("block.1", "all")
        return (states.norm(dim=-1) * mask).sum() / mask.sum(), inputs.states["block.1"]

    def normaliser(self, data, prompts):
        return sum(count_tokens(rows, prompts, "all") for rows in data.tokens.values())


del TERMS["length of states"]  # of this file alone


class ByPrompt(Length):
    """The same with a normaliser that is wrong for it."""

    kind: Literal["by prompt"] = "by prompt"

    def normaliser(self, data, prompts):
        return len(prompts)


del TERMS["by prompt"]


def test_parts_of_a_new_mean_over_tokens_add_up(trainer):
    assert parts_add_up(objective(trainer, Length()))
    assert not parts_add_up(objective(trainer, ByPrompt()))  # prompts have different lengths


def test_a_term_without_a_normaliser_cannot_be_made():
    class Unweighted(LossTerm):
        kind: Literal["unweighted"] = "unweighted"

        def value(self, inputs):
            raise NotImplementedError

    del TERMS["unweighted"]
    with pytest.raises(TypeError, match="normaliser"):
        Unweighted()


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(TypeError, match="Retain and Other share kind 'retain'"):

        class Other(LossTerm):
            kind: Literal["retain"] = "retain"


TERM = """
from typing import Literal
from lens.training.terms.base import LossTerm

class Pull(LossTerm):
    kind: Literal["pull"] = "pull"
    site: str = "final"

    def value(self, inputs):
        return inputs.states[self.site].square().mean(), inputs.states[self.site]

    def normaliser(self, data, prompts):
        return len(prompts)
"""
FOUND = """
import sys
import lens.training.terms as terms
terms.__path__.append(sys.argv[1])
from lens.training.config import resolve
from tests.helpers.runs import make
config = resolve({"terms": [{"kind": "pull", "site": "block.-1"}], "steps": 2, "batch_size": 2})
log = make(sites=("block.2",)).run(config).log
assert log[0]["loss"] == log[0]["loss_pull@block.2"] > log[1]["loss"] > 0, log
"""


def test_a_module_in_the_folder_is_a_term_and_nothing_else_names_it(tmp_path):
    (tmp_path / "pull.py").write_text(TERM, encoding="utf-8")
    root = str(Path(lens.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", FOUND, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": root},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_reading_settings_does_not_load_torch():
    code = "import sys, lens.training.config; assert 'torch' not in sys.modules"
    env = os.environ | {"PYTHONPATH": str(Path(lens.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


# -- penalise


def doubles(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_penalise_by_hand():
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    states = torch.tensor([[[3.0, 5.0]], [[-2.0, 1.0]]])
    found = lean(states, torch.tensor([1.0, 1.0]), directions, torch.tensor([0, 1]))
    # less the centre: (2, 4) leans towards the second alone, (-3, 0) towards the third
    assert found.tolist() == [[2.0], [1.5]]


def test_gradients_of_penalise():
    states = doubles(4, 3, 6, seed=1).requires_grad_()
    unit = torch.nn.functional.normalize(doubles(3, 6, seed=2), dim=1)
    asked = torch.tensor([0, 1, 2, 1])
    assert gradcheck(lambda h: lean(h, doubles(6, seed=3), unit, asked), (states,))


@pytest.mark.parametrize(("site", "positions"), [("final", "last"), ("block.1", "all")])
def test_penalise_is_its_formula(trainer, site, positions):
    factors = {"spa_Latn": 0.5, "swh_Latn": 2.0}
    step = objective(trainer, Penalise(site=site, positions=positions, languages=factors))
    with torch.no_grad():
        found = float(step(WHOLE)[0])
        inputs = step.inputs(WHOLE)
    means = torch.from_numpy(trainer.space.means(site)).float()
    away = means - means.mean(0)
    names, total, count = list(trainer.space.languages), 0.0, 0.0
    for row, (lang, i) in enumerate((la, i) for la in trainer.data.rows for i in WHOLE):
        n = trainer.data.tokens[lang][i]
        for h in (
            inputs.states[site][row, :n]
            if positions == "all"
            else [inputs.states[site][row, n - 1]]
        ):
            leaning = [
                max(0.0, float((h - means.mean(0)) @ away[k] / away[k].norm()))
                for k, other in enumerate(names)
                if other != lang
            ]
            total += factors.get(lang, 1.0) * sum(leaning) / len(leaning)
            count += factors.get(lang, 1.0)
    assert found == pytest.approx(total / count, rel=1e-3) and found > 0


@pytest.mark.parametrize("positions", ["last", "all", "mean", 2])
def test_parts_of_penalise_add_up(trainer, positions):
    factors = {"spa_Latn": 0.5, "swh_Latn": 2.0}
    term = Penalise(positions=positions, languages=factors)
    assert parts_add_up(objective(trainer, term))


def test_training_lowers_penalise():
    settings = {"terms": [{"kind": "penalise"}, {"kind": "retain", "weight": 0.1}], "steps": 12}
    log = make().run(resolve({"learning_rate": 3e-3, **settings})).log
    assert log[-1]["loss_penalise"] < 0.8 * log[0]["loss_penalise"]


# -- contrastive


def test_contrastive_by_hand():
    a, b, t = doubles(4, 5, seed=1), doubles(4, 5, seed=2), 0.3
    each = torch.stack([cosine_similarity(row[None], b) for row in a]) / t
    expected = -(each.log_softmax(1).diagonal().mean() + each.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(info_nce(a, b, torch.arange(4), t), expected)
    assert float(info_nce(a[:1], b[:1], torch.arange(1), t)) == 0.0


def test_a_prompt_drawn_twice_is_not_its_own_negative():
    a, b = doubles(3, 5, seed=1)[:, None].repeat(1, 2, 1), doubles(3, 5, seed=2)
    twice, again = a[:1].reshape(2, 5), b[:1].repeat(2, 1)
    assert float(info_nce(twice, again, torch.tensor([7, 7]), 0.5)) == 0.0
    assert float(info_nce(twice, again, torch.tensor([7, 8]), 0.5)) > 0.5


def test_gradients_of_contrastive():
    a, b = (doubles(4, 5, seed=s).requires_grad_() for s in (1, 2))
    prompts = torch.tensor([3, 1, 4, 1])
    assert gradcheck(lambda x, y: info_nce(x, y, prompts, 0.2), (a, b))


def test_contrastive_is_its_formula_at_a_middle_block(trainer):
    step = objective(
        trainer, Contrastive(site="block.1", languages={"spa_Latn": 0.5}), batch_size=4
    )
    with torch.no_grad():
        found = float(step(WHOLE)[0])
        inputs = step.inputs(WHOLE)
    pooled = {
        lang: torch.stack([inputs.states["block.1"][4 * k + i, : rows[i]].mean(0) for i in WHOLE])
        for k, (lang, rows) in enumerate(trainer.data.tokens.items())
    }
    pivot, expected = pooled.pop("eng_Latn"), 0.0
    for lang, factor in (("spa_Latn", 0.5), ("swh_Latn", 1.0)):
        expected += factor * float(info_nce(pooled[lang], pivot, torch.arange(4), 0.1))
    assert found == pytest.approx(expected, rel=1e-4)


def test_contrastive_trains_and_aligns():
    trainer = make(layers="1:", sites=("block.1", "final"))
    terms = [{"kind": "contrastive", "site": "block.-2", "temperature": 0.2}, {"kind": "retain"}]
    settings = {"terms": terms, "steps": 12, "batch_size": 4, "learning_rate": 3e-3}
    log = trainer.run(resolve(settings)).log
    assert log[-1]["loss_contrastive@block.1"] < 0.8 * log[0]["loss_contrastive@block.1"]


def test_contrastive_in_parts_is_refused(trainer):
    terms = [{"kind": "contrastive", "site": "block.1"}]
    for changes in ({"batch_size": 8, "micro_batch_size": 2}, {"batch_size": 1}):
        with pytest.raises(InputError, match="batch_size of 2 or more and no micro_batch_size"):
            resolve({"terms": terms, **changes})
    term = Contrastive(site="block.1")
    whole = LensConfig(terms=(term, Retain()), batch_size=4, micro_batch_size=8)
    with pytest.raises(InputError, match="no micro_batch_size below it"):
        trainer.run(whole.model_copy(update={"micro_batch_size": 1}))
    shared = dataclasses.replace(trainer.data, processes=Processes(0, 2))
    with pytest.raises(InputError, match="2 processes would divide them"):
        objective(trainer, term, shared, batch_size=4)
    with pytest.raises(InputError, match=r"terms\.0\.site: missing"):
        resolve({"terms": [{"kind": "contrastive"}]})
    resolve({"terms": [{"kind": "contrastive", "site": "block.1", "weight": 0}], "batch_size": 1})
