"""Steering: what hooks do to states, that they go away, phases of generation, controls."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from lens.errors import InputError
from lens.models.architecture import locate
from lens.models.loading import load
from lens.space.probe import probe
from lens.space.space import Space
from lens.steering.hooks import steer
from lens.steering.policy import Policy, PolicyRule, Rule
from lens.steering.vectors import (
    carry,
    diffmean_rules,
    project_rules,
    random_basis,
    random_rules,
    random_subspace,
)
from tests.helpers import tiny

ROWS = {
    "en": ["the house is red", "a bird sings", "we eat bread", "rain falls"],
    "es": ["la casa es roja", "un ave canta", "comemos pan", "cae lluvia"],
    "sw": ["nyumba ni nyekundu", "ndege anaimba", "tunakula mkate", "mvua inanyesha"],
    "tr": ["ev kirmizi", "kus otuyor", "ekmek yeriz", "yagmur yagiyor"],
}
IDS = torch.arange(10, 22).reshape(2, 6)


@pytest.fixture(scope="module")
def llama():
    model = tiny.model("llama")
    locate(model)  # its check runs a forward pass, which tests that count passes must not see
    return model


@pytest.fixture(scope="module")
def space(llama):
    return probe(llama, tiny.tokenizer(), ROWS, pivot="en")


@pytest.fixture
def vector():
    return np.random.default_rng(0).standard_normal(32)


def stack(model):
    """Return the block list of any of the tiny families."""
    inner = model.transformer if hasattr(model, "transformer") else model.model
    return inner.h if hasattr(inner, "h") else inner.layers


def outputs(model, rules=(), ids=IDS):
    """Logits, and what each block returned."""
    found = []
    with steer(model, rules):
        hooks = [
            block.register_forward_hook(
                lambda _m, _a, out: found.append(out[0] if isinstance(out, tuple) else out)
            )
            for block in stack(model)
        ]
        with torch.no_grad():
            logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return logits, found


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_add_moves_the_state_by_strength_times_vector(family, vector):
    model = tiny.model(family)
    plain, before = outputs(model)
    logits, after = outputs(model, Rule("add", 1, strength=2.0, vector=vector))
    expected = before[1] + torch.from_numpy(2.0 * vector).float()
    torch.testing.assert_close(after[1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert not torch.allclose(logits, plain)


def test_project_removes_the_subspace_and_twice_is_once(llama):
    basis = random_basis(32, 3, seed=0)
    _, before = outputs(llama)
    rule = Rule("project", -1, basis=basis)
    _, once = outputs(llama, rule)
    _, twice = outputs(llama, [rule, rule])
    matrix = torch.from_numpy(basis).float()
    torch.testing.assert_close(once[2], before[2] - before[2] @ matrix @ matrix.T)
    assert (once[2] @ matrix).abs().max() < 1e-5 * before[2].abs().max()
    torch.testing.assert_close(twice[2], once[2], rtol=0, atol=1e-5)


def test_a_negative_projection_strengthens(llama):
    basis = random_basis(32, 2, seed=1)
    matrix = torch.from_numpy(basis).float()
    _, before = outputs(llama)
    _, after = outputs(llama, Rule("project", 0, strength=-0.5, basis=basis))
    torch.testing.assert_close(after[0] @ matrix, 1.5 * (before[0] @ matrix))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_the_identity_to_the_bit(vector, dtype, keep):
    model = tiny.model("llama").to(dtype)
    plain, _ = outputs(model)
    rules = [
        Rule("add", "all", strength=0.0, vector=vector, preserve_norm=keep),
        Rule("project", "all", strength=0, basis=random_basis(32, 4, seed=0), preserve_norm=keep),
    ]
    assert torch.equal(outputs(model, rules)[0], plain)


@pytest.mark.parametrize("method", ["add", "project"])
def test_norms_can_be_preserved(llama, vector, method):
    array = {"vector": vector} if method == "add" else {"basis": random_basis(32, 8, seed=2)}
    _, before = outputs(llama)
    _, after = outputs(llama, Rule(method, 1, strength=0.7, preserve_norm=True, **array))
    torch.testing.assert_close(after[1].norm(dim=-1), before[1].norm(dim=-1))
    assert not torch.allclose(after[1], before[1])


def test_half_precision_is_rounded_once(vector):
    model = tiny.model("llama").to(torch.bfloat16)
    _, before = outputs(model)
    _, after = outputs(model, Rule("add", 0, vector=vector))
    assert after[0].dtype == torch.bfloat16
    expected = (before[0].float() + torch.from_numpy(vector).float()).to(torch.bfloat16)
    assert torch.equal(after[0], expected)


# ---------------------------------------------------------------- restoring


def hooks_of(model):
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]


def test_everything_is_restored_after_the_block_and_after_errors(llama, vector):
    plain, _ = outputs(llama)
    rule = Rule("add", "all", vector=vector, tokens="generation")
    with steer(llama, rule):
        assert hooks_of(llama)
    assert hooks_of(llama) == []
    with pytest.raises(ZeroDivisionError), steer(llama, rule):
        raise ZeroDivisionError
    assert hooks_of(llama) == []
    wrong = Rule("add", 0, vector=np.ones(5))
    with pytest.raises(InputError, match="rule 2 is made for width 5; the model has 32"):
        with steer(llama, [rule, wrong]):
            pytest.fail("a rule that does not fit was accepted")
    assert hooks_of(llama) == []
    assert torch.equal(outputs(llama)[0], plain)


def test_steering_can_be_nested(llama, vector):
    both, _ = outputs(llama, [Rule("add", 0, vector=vector), Rule("add", 1, vector=vector)])
    with steer(llama, Rule("add", 0, vector=vector)):
        nested, _ = outputs(llama, Rule("add", 1, vector=vector))
    torch.testing.assert_close(nested, both, rtol=0, atol=0)


def test_gradients_flow_through(vector):
    model = tiny.model("llama")
    with steer(model, Rule("add", 0, vector=vector)):
        model(IDS).logits.sum().backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- generation


def generate(model, rules, *, cache=True, ids=IDS):
    with steer(model, rules):
        return model.generate(
            ids, max_new_tokens=6, do_sample=False, use_cache=cache, min_new_tokens=6
        )


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_generation_with_and_without_a_cache_is_the_same(family, vector):
    model = tiny.model(family)
    rules = Rule("add", "1:", strength=3.0, vector=vector)
    cached = generate(model, rules)
    assert torch.equal(cached, generate(model, rules, cache=False))
    assert not torch.equal(cached, generate(model, []))


@pytest.mark.parametrize(("tokens", "touched"), [("prompt", [6]), ("generation", [1] * 5)])
@pytest.mark.parametrize("prompt", [6, 1])
def test_prompt_and_generation_are_told_apart(llama, vector, tokens, touched, prompt):
    lengths = []
    changed = []

    def before(_module, args, _kwargs=None):
        lengths.append(args[0].shape[1])

    def after(_module, args, output):
        changed.append(not torch.equal(output, raw[-1]))

    raw: list[torch.Tensor] = []
    block = llama.model.layers[1]
    hooks = [
        block.register_forward_pre_hook(before),
        block.register_forward_hook(lambda _m, _a, out: raw.append(out)),
    ]
    with steer(llama, Rule("add", 1, vector=vector, tokens=tokens)):
        hooks.append(block.register_forward_hook(after))
        llama.generate(IDS[:, :prompt], max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for hook in hooks:
        hook.remove()
    assert lengths == [prompt, 1, 1, 1, 1, 1]
    first, rest = (True, False) if tokens == "prompt" else (False, True)
    assert changed == [first] + [rest] * 5
    assert sum(changed) == len(touched)


def test_phases_are_seen_through_an_adapter(vector):
    model = tiny.model("llama")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    rule = Rule("add", 1, strength=3.0, vector=vector, tokens="generation")
    expected = generate(tiny.model("llama"), rule)
    with steer(wrapped, rule):
        found = wrapped.generate(input_ids=IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert torch.equal(found, expected)
    assert not torch.equal(found, generate(tiny.model("llama"), []))


def test_prompt_and_generation_together_are_all(llama, vector):
    parts = [Rule("add", 1, vector=vector, tokens=tokens) for tokens in ("prompt", "generation")]
    assert torch.equal(generate(llama, parts), generate(llama, Rule("add", 1, vector=vector)))


# ---------------------------------------------------------------- from a space


def test_unknown_layers_and_things_that_are_no_rules(llama, vector):
    with (
        pytest.raises(InputError, match="unknown layer 3"),
        steer(llama, Rule("add", 3, vector=vector)),
    ):
        pass
    with pytest.raises(InputError, match="rule 1 is a PolicyRule; expected Rule"):
        with steer(llama, [PolicyRule("sw", 0)]):
            pass


def test_the_space_steers_only_its_own_model(space, llama, vector):
    policy = Policy((PolicyRule("sw", 1, strength=2.0),))
    plain, _ = outputs(llama)
    with space.steer(llama, policy), torch.no_grad():
        steered = llama(IDS).logits
    expected, _ = outputs(llama, diffmean_rules(space, "sw", layers=1, strength=2.0))
    assert torch.equal(steered, expected)
    assert not torch.equal(steered, plain)
    with pytest.raises(InputError, match="another model"):
        space.steer(tiny.model("llama", seed=1), policy)


# ---------------------------------------------------------------- controls


def test_difference_of_means_moves_a_pivot_mean_onto_the_language(space):
    rules = diffmean_rules(space, "Swahili", layers="all")
    assert [rule.layers for rule in rules] == [0, 1, 2]
    for rule in rules:
        means = space.means(rule.layers)
        np.testing.assert_allclose(means[0] + rule.vector, means[2], rtol=1e-12, atol=1e-12)


def test_random_rules_have_equal_norms_and_other_directions(space):
    real = diffmean_rules(space, "sw", layers="all", strength=1.5)
    made = random_rules(space, "sw", layers="all", strength=1.5, seed=0)
    again = random_rules(space, "sw", layers="all", strength=1.5, seed=0)
    for ours, theirs, same in zip(real, made, again, strict=True):
        assert ours.strength == theirs.strength
        norm = np.linalg.norm(ours.vector)
        np.testing.assert_allclose(np.linalg.norm(theirs.vector), norm, rtol=1e-12)
        assert abs(ours.vector @ theirs.vector) < 0.8 * norm**2
        np.testing.assert_array_equal(theirs.vector, same.vector)
    other = random_rules(space, "sw", layers="all", seed=1)
    assert not np.allclose(other[0].vector, made[0].vector)


def test_projection_rules_use_the_fit_of_each_block(space, llama):
    rules = project_rules(space, layers="-2:", rank=2)
    _, after = outputs(llama, rules)
    for layer in (1, 2):
        basis = space.fit(layer, rank=2, agnostic="complement").basis
        inside = after[layer] @ torch.from_numpy(basis).float()
        assert inside.abs().max() < 1e-4 * after[layer].abs().max()


def test_a_random_subspace_of_equal_rank(space):
    real = space.fit(1, rank=3, agnostic="complement")
    made = random_subspace(real, seed=3)
    assert made.rank == 3 and made.basis.shape == real.basis.shape
    np.testing.assert_allclose(made.basis.T @ made.basis, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(made.basis.T @ made.agnostic, 0, atol=1e-10)
    step = space.delta(1, "sw")
    carried = carry(step, source=real.basis, target=made.basis)
    inside = real.basis.T @ step
    np.testing.assert_allclose(np.linalg.norm(carried), np.linalg.norm(inside), rtol=1e-12)
    np.testing.assert_allclose(made.basis.T @ carried, inside, atol=1e-10)
    with pytest.raises(InputError, match="rank is 40"):
        random_basis(32, 40, seed=0)
    with pytest.raises(InputError, match="shapes do not fit"):
        carry(step[:5], source=real.basis, target=made.basis)


def test_a_space_without_a_recorded_model():
    states = {
        "block.0": {code: np.random.default_rng(i).random((3, 32)) for i, code in enumerate(ROWS)}
    }
    space = Space.from_states(states, pivot="en")
    assert diffmean_rules(space, "sw", layers=-1)[0].layers == 0
    with pytest.raises(InputError, match="unknown layer 1"):
        diffmean_rules(space, "sw", layers=1)


@pytest.mark.needs_shared
def test_a_real_model_writes_another_script_when_steered(shared):
    from lens.data.corpora import read_parallel

    model, tokenizer = load(shared / "models" / "polyglot-14m")
    path = shared / "data" / "tico19" / "tico19.jsonl.xz"
    rows = read_parallel(path, languages=["en", "ru"], limit=40).rows
    space = probe(model, tokenizer, rows, sites=3, max_tokens=128)
    prompts = ["And it came to pass that", "The people of the city", "He said to them"]
    shares = {}
    for strength in (0.0, 3.0):
        texts = ""
        with steer(model, diffmean_rules(space, "ru", layers=3, strength=strength)):
            for prompt in prompts:
                ids = torch.tensor([tokenizer("<s>" + prompt)["input_ids"]])
                made = model.generate(ids, max_new_tokens=20, do_sample=False)
                texts += tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        letters = [letter for letter in texts if letter.isalpha()]
        shares[strength] = np.mean(["\u0400" <= letter <= "\u04ff" for letter in letters])
    assert shares[0.0] < 0.1
    assert shares[3.0] > 0.7
