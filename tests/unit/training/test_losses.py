"""Every loss term against its formula on whole models, where it looks, and what it refuses."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

import lens
from lens.errors import InputError
from lens.models import architecture
from lens.models.architecture import locate
from lens.training import Align, LanguageModel, LensConfig, Norm, PivotKL, Retain, Separate, resolve
from lens.training.losses import gather, token_mask
from lens.training.objective import BatchObjective, geometries
from lens.training.trainer import LensTrainer
from tests.helpers import tiny

PROMPTS = {
    "eng_Latn": ["what is red?", "who is it?", "where?", "when is tea?"],
    "spa_Latn": ["que es rojo?", "quien es?", "donde?", "cuando hay te?"],
    "ind_Latn": ["apa merah?", "siapa dia?", "di mana?", "kapan teh?"],
}
TEXTS = {"spa_Latn": ["hola que tal", "adios"], "ind_Latn": ["apa kabar", "selamat"]}
PIVOT_ANSWERS = ["red", None, "here", "now"]
ANSWERS = {
    "eng_Latn": PIVOT_ANSWERS,
    "spa_Latn": ["es rojo", None, "aqui", "hoy"],
    "ind_Latn": [None, "saya", None, None],
}
STRENGTH = {"spa_Latn": 1.5, "ind_Latn": 0.5}
DRAWN = [2, 0, 3]


@pytest.fixture(scope="module")
def made():
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    space = lens.probe(net, tokenizer, PROMPTS, pivot="eng_Latn", role="user", pooling="last")
    trainer = LensTrainer(
        net, tokenizer, space, PROMPTS, sites=("block.1", "final"), layers="1:", texts=TEXTS,
        answers=ANSWERS, references="all", cache_batch=12,
    )  # fmt: skip
    frozen = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as if some training had happened
        for p in trainer.parameters.values():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return trainer, frozen


def loss_of(trainer, term, **changes):
    config = LensConfig(terms=(term,), rank="full", **changes)
    where = geometries(trainer.space, config.subspace_sites, config)
    step = BatchObjective(trainer.data, config, where, STRENGTH)
    return step(DRAWN)


@torch.no_grad()
def states(net, ids, site):
    out = net(input_ids=torch.tensor([ids]), output_hidden_states=True)
    hidden = out.hidden_states[-1 if site == "final" else int(site[6:]) + 1]
    return hidden[0], out.logits[0]


def rows_of(trainer, lang):
    return [trainer.data.cache.rows[trainer.data.rows[lang][i]].input_ids.tolist() for i in DRAWN]


def chosen(hidden, positions):
    if positions == "mean":
        return hidden.mean(0, keepdim=True)
    if positions == "all":
        return hidden
    return hidden.flip(0)[: 1 if positions == "last" else positions]


@pytest.mark.parametrize("site", ["block.1", "final"])
@pytest.mark.parametrize(
    ("target", "positions"),
    [("absolute", "last"), ("absolute", "mean"), ("absolute", 3), ("shift", "all"), ("shift", 2)],
)
def test_separate_at_any_site_and_positions(made, site, target, positions):
    trainer, frozen = made
    term = Separate(
        site=site, target=target, positions=positions, strength=2.0, languages={"ind_Latn": 0.5}
    )
    total, entry = loss_of(trainer, term)
    at = geometries(trainer.space, (site,), LensConfig(terms=(term,), rank="full"))[site]
    expected = 0.0
    for lang, factor in (("spa_Latn", 1.0), ("ind_Latn", 0.5)):
        aim = 2.0 * STRENGTH[lang] * at.step[lang]
        for mine, pivots in zip(rows_of(trainer, lang), rows_of(trainer, "eng_Latn"), strict=True):
            h = chosen(states(trainer.model, mine, site)[0], positions)
            other = mine if target == "shift" else pivots
            h0 = chosen(states(frozen, other, site)[0], positions)
            k = min(len(h), len(h0))
            miss = (h[:k] - h0[:k]) @ at.basis - aim
            expected += factor * float(miss.square().sum(1).mean()) / h.shape[1] / len(DRAWN)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    name = "loss_separate" + ("" if site == "final" else f"@{site}")
    assert entry[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("positions", ["last", "mean", 2])
@pytest.mark.parametrize("pivot", ["frozen", "trained"])
def test_align_at_any_positions(made, positions, pivot):
    trainer, frozen = made
    term = Align(agnostic="complement", positions=positions, pivot=pivot)
    total, _ = loss_of(trainer, term)
    at = geometries(trainer.space, ("final",), LensConfig(terms=(term,), rank="full"))["final"]
    expected = 0.0
    for lang in STRENGTH:
        for mine, pivots in zip(rows_of(trainer, lang), rows_of(trainer, "eng_Latn"), strict=True):
            h = chosen(states(trainer.model, mine, "final")[0], positions)
            net = frozen if pivot == "frozen" else trainer.model
            aim = chosen(states(net, pivots, "final")[0], positions)
            k = min(len(h), len(aim))
            gap = h[:k] - aim[:k]
            gap = gap - gap @ at.basis @ at.basis.T
            expected += float(gap.square().sum(1).mean()) / h.shape[1] / len(DRAWN)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("positions", ["last", "all", 2])
def test_pivot_kl_is_that_of_the_whole_models(made, positions):
    trainer, frozen = made
    total, entry = loss_of(trainer, PivotKL(positions=positions))
    each = []
    for ids in rows_of(trainer, "eng_Latn"):
        before = log_softmax(states(frozen, ids, "final")[1], -1)
        now = log_softmax(states(trainer.model, ids, "final")[1], -1)
        each.append(chosen((before.exp() * (before - now)).sum(-1, keepdim=True), positions))
    expected = float(torch.cat(each).mean())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0 and "moved_along" not in entry


def test_language_model_counts_the_answers_and_the_end_of_the_turn(made):
    trainer, _ = made
    total, _ = loss_of(trainer, LanguageModel(languages={"ind_Latn": 0.25}))
    losses, weights = [], []
    for lang, factor in (("spa_Latn", 1.0), ("ind_Latn", 0.25)):
        for i in DRAWN:
            if (row := trainer.data.answers[lang][i]) is None:
                continue
            ids = trainer.data.cache.rows[row].input_ids.tolist()
            prompt = trainer.data.cache.rows[trainer.data.rows[lang][i]].input_ids.tolist()
            assert ids[: len(prompt)] == prompt and ids[-1] == trainer.tokenizer.eos_token_id
            logits = states(trainer.model, ids, "final")[1][len(prompt) - 1 : -1]
            found = cross_entropy(logits, torch.tensor(ids[len(prompt) :]), reduction="none")
            losses.append(found)
            weights.append(torch.full_like(found, factor))
    each, weight = torch.cat(losses), torch.cat(weights)
    assert len(losses) == 3  # prompts 2, 0 and 3 have two answers in Spanish, one and none missing
    assert float(total.detach()) == pytest.approx(
        float((each * weight).sum() / weight.sum()), rel=1e-4
    )


def test_language_model_on_text_predicts_every_token_but_the_first(made):
    trainer, _ = made
    total, _ = loss_of(trainer, LanguageModel(rows="text", languages={"ind_Latn": 0.0}))
    each = []
    for i in DRAWN:
        ids = trainer.data.cache.rows[trainer.data.texts["spa_Latn"][i % 2]].input_ids.tolist()
        logits = states(trainer.model, ids, "final")[1][:-1]
        each.append(cross_entropy(logits, torch.tensor(ids[1:]), reduction="none"))
    assert float(total.detach()) == pytest.approx(float(torch.cat(each).mean()), rel=1e-4)


def test_pivot_kl_at_the_answers(made):
    trainer, frozen = made
    total, _ = loss_of(trainer, PivotKL(rows="answers"))
    each = []
    for i in DRAWN:  # all three have an answer
        ids = trainer.data.cache.rows[trainer.data.answers["eng_Latn"][i]].input_ids.tolist()
        before = log_softmax(states(frozen, ids, "final")[1], -1)
        now = log_softmax(states(trainer.model, ids, "final")[1], -1)
        each.append((before.exp() * (before - now)).sum(-1))
    assert float(total.detach()) == pytest.approx(float(torch.cat(each).mean()), rel=1e-4)


def test_the_pivots_answers_count_as_text_only_when_asked(made):
    trainer, _ = made
    without, with_pivot = (
        float(loss_of(trainer, LanguageModel(pivot=pivot))[0].detach()) for pivot in (False, True)
    )
    assert without != with_pivot


@pytest.mark.parametrize("rows", ["prompts", "answers"])
def test_passes_over_parts_of_a_step_add_up(made, rows):
    trainer, _ = made
    for term in (PivotKL(rows=rows), LanguageModel(pivot=rows == "answers")):
        whole = float(loss_of(trainer, term)[0].detach())
        config = LensConfig(terms=(term,), rank="full")
        step = BatchObjective(trainer.data, config, {}, STRENGTH)
        parts = 0.0
        for part in ([2], [0, 3]):
            share = term.weight_of_part(trainer.data, part, DRAWN) * len(part) / len(DRAWN)
            parts += share * float(step(part)[0].detach())
        assert parts == pytest.approx(whole, rel=1e-4)


def test_a_batch_without_answers_has_no_language_model_loss(made):
    trainer, _ = made
    config = LensConfig(terms=(LanguageModel(languages={"spa_Latn": 0.0}), Retain()), rank="full")
    total, entry = BatchObjective(trainer.data, config, {}, STRENGTH)([0, 2])
    assert entry["loss_lm"] == 0.0
    total.backward()


def test_norm_compares_lengths(made):
    trainer, frozen = made
    total, _ = loss_of(trainer, Norm(site="block.1", positions="all"))
    each = []
    for lang in PROMPTS:
        for ids in rows_of(trainer, lang):
            now, before = (states(net, ids, "block.1")[0] for net in (trainer.model, frozen))
            each.append(now.norm(dim=1) / before.norm(dim=1))
    expected = float((torch.cat(each) - 1).square().mean())
    assert expected > 1e-6
    assert float(total.detach()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("positions", ["last", 2])
def test_retain_at_few_positions(made, positions):
    trainer, frozen = made
    total, _ = loss_of(trainer, Retain(positions=positions))
    each = [
        chosen(states(trainer.model, ids, "final")[0] - states(frozen, ids, "final")[0], positions)
        for ids in rows_of(trainer, "eng_Latn")
    ]
    expected = float(torch.cat(each).square().mean())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)


def test_schedules_go_from_the_first_factor_to_the_last(made):
    trainer, _ = made
    term = Retain(weight=2.0, schedule=(1.0, 0.25))
    config = LensConfig(terms=(term,), steps=4, rank="full")
    step = BatchObjective(trainer.data, config, {}, STRENGTH)
    factors = []
    for number in range(4):
        step.number = number
        total, entry = step(DRAWN)
        factors.append(float(total.detach()) / entry["loss_retain"])
    assert factors == pytest.approx([2.0, 1.5, 1.0, 0.5], rel=1e-5)


def test_shares_are_those_of_the_gradient_at_the_states(made):
    trainer, _ = made
    terms = (Separate(weight=3.0), Retain(), PivotKL(weight=0.1))
    config = LensConfig(terms=terms, rank="full", shares_every=2)
    where = geometries(trainer.space, ("final",), config)
    step = BatchObjective(trainer.data, config, where, STRENGTH)
    _, entry = step(DRAWN)
    shares = {name: entry[f"share_{name}"] for name in ("separate", "retain", "kl")}
    assert sum(shares.values()) == pytest.approx(1.0)
    pulls = {}
    for term in terms:
        seen = step.inputs(DRAWN)
        value, at = term.value(seen)
        pulls[term.kind] = float(torch.autograd.grad(term.weight * value, at)[0].norm())
    whole = sum(pulls.values())
    assert shares == pytest.approx({k: v / whole for k, v in pulls.items()}, rel=1e-4)
    step.number = 1
    assert not any(k.startswith("share_") for k in step(DRAWN)[1])


def test_training_with_every_term_lowers_the_loss():
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    space = lens.probe(net, tokenizer, PROMPTS, pivot="eng_Latn", role="user", pooling="last")
    terms = (
        Separate(positions=2), Align(agnostic="complement", weight=0.1), Retain(), Norm(weight=0.1),
        PivotKL(schedule=(0.0, 1.0)), LanguageModel(), LanguageModel(rows="text", weight=0.1),
    )  # fmt: skip
    config = LensConfig(terms=terms, rank="full", steps=40, learning_rate=3e-3)
    result = lens.train(
        net, tokenizer, space, PROMPTS, losses=config, texts=TEXTS, answers=ANSWERS, strength=1.0
    )
    assert result.log[-1]["loss_lm"] < 0.85 * result.log[0]["loss_lm"]
    assert result.log[-1]["loss_separate"] < result.log[0]["loss_separate"]


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@torch.no_grad()
def test_logits_are_the_model_s_own(family):
    net = tiny.model(family).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    hidden = net.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(
        architecture.logits(net, locate(net), hidden),
        net(input_ids=ids).logits.float(),
        rtol=0,
        atol=1e-6,
    )


def test_capped_and_scaled_logits():
    net = tiny.model("gemma2").eval()
    parts = locate(net)
    hidden = torch.randn(2, parts.width)
    plain = parts.lm_head(hidden)
    net.config.final_logit_softcapping = 0.5
    torch.testing.assert_close(
        architecture.logits(net, parts, hidden), 0.5 * torch.tanh(plain / 0.5)
    )
    net.config.final_logit_softcapping = None
    net.config.logits_scaling = 4.0
    torch.testing.assert_close(architecture.logits(net, parts, hidden), plain / 4)


def test_gather_and_masks_by_hand():
    x = torch.arange(12.0).reshape(2, 3, 2)
    lengths = torch.tensor([3, 1])
    values, mask = gather(x, lengths, 2)
    assert values[0].tolist() == [[4, 5], [2, 3]] and values[1, 0].tolist() == [6, 7]
    assert mask.tolist() == [[1, 1], [1, 0]]
    values, mask = gather(x, lengths, "mean")
    assert values[:, 0].tolist() == [[2, 3], [6, 7]] and mask.tolist() == [[1], [1]]
    assert token_mask(lengths, 3, "all").tolist() == [[1, 1, 1], [1, 0, 0]]
    assert token_mask(lengths, 3, 2).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert token_mask(lengths, 3, "last").tolist() == [[0, 0, 1], [1, 0, 0]]


def test_sites_counted_from_the_end_are_named(made):
    trainer, _ = made
    config = LensConfig(terms=(Separate(site="block.-2"), Retain(site="-1"), PivotKL()))
    assert config.placed(3).sites == ("block.1", "block.2", "final")
    assert len(trainer.parts.blocks) == 3


def test_what_does_not_fit_is_refused(made):
    trainer, _ = made
    with pytest.raises(InputError, match='needs target="shift"'):
        resolve({"terms": [{"kind": "separate", "positions": "all"}]})
    with pytest.raises(InputError, match="positions"):
        resolve({"terms": [{"kind": "align", "positions": "all"}]})
    with pytest.raises(InputError, match=r"terms\.0\.weight"):
        resolve({"terms": [{"kind": "kl", "weight": -1}]})
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    args = (net, tokenizer, trainer.space, PROMPTS)
    with pytest.raises(InputError, match="1 answers for spa_Latn, expected one"):
        LensTrainer(*args, answers={"es": ["x"]})
    with pytest.raises(InputError, match="4 answers for fra_Latn"):
        LensTrainer(*args, answers={"fr": ["x"] * 4})
    with pytest.raises(InputError, match=r"unknown site 'block\.9'"):
        trainer.run(LensConfig(terms=(Separate(site="block.9"),), rank="full"))
    plain = LensTrainer(*args)
    with pytest.raises(InputError, match="needs the pivot's answers"):
        plain.run(LensConfig(terms=(PivotKL(rows="answers"),), rank="full"))
    with pytest.raises(InputError, match="needs answers"):
        plain.run(LensConfig(terms=(LanguageModel(),), rank="full"))
    with pytest.raises(InputError, match='references="all"'):
        plain.run(LensConfig(terms=(Separate(positions="mean"),), rank="full"))
