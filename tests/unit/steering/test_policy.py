"""Rules and policies: what is accepted, what a policy means, and its file."""

import numpy as np
import pytest

from lens.errors import InputError
from lens.space.space import Space
from lens.steering.policy import Policy, PolicyRule, Rule


@pytest.fixture(scope="module")
def space():
    generator = np.random.default_rng(0)
    languages = ("en", "es", "sw", "tr")
    states = {
        f"block.{layer}": {
            code: generator.standard_normal(16) * 3 + generator.standard_normal((20, 16))
            for code in languages
        }
        for layer in range(3)
    }
    return Space.from_states(states, pivot="en")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "multiply"}, "method is 'multiply'; expected one of: add, project"),
        ({"tokens": "sometimes"}, "tokens is 'sometimes'"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": "much"}, "strength is 'much'"),
        ({"vector": None}, "method 'add' needs vector="),
        ({"basis": np.eye(3)}, "and no basis="),
        ({"vector": np.ones((2, 2))}, r"shape \(2, 2\); expected \(d,\)"),
        ({"vector": np.array([1, np.inf])}, "NaN or infinite"),
        ({"method": "project", "vector": None, "basis": np.ones((4, 2))}, "not orthonormal"),
    ],
)
def test_rules_that_make_no_sense(arguments, message):
    values = {"method": "add", "layers": 0, "vector": np.ones(4), **arguments}
    with pytest.raises(InputError, match=message):
        Rule(**values)


def test_a_policy_keeps_its_meaning_on_disk(space, tmp_path):
    policy = Policy(
        (
            PolicyRule("Swahili", "1:3", strength=1.5, tokens="generation"),
            PolicyRule("tr", [0, 2], preserve_norm=True),
            PolicyRule("*", -1, method="project", strength=-0.5, rank=2),
        ),
        space_sha256=space.sha256,
    )
    path = policy.save(tmp_path / "policy.yaml")
    assert Policy.load(path) == policy
    assert space.sha256 in path.read_text()
    rules = policy.resolve(space, language="sw")
    assert [(rule.method, rule.layers) for rule in rules] == [
        ("add", 1),
        ("add", 2),
        ("project", 2),
    ]
    np.testing.assert_array_equal(rules[1].vector, space.delta(2, "sw"))
    fitted = space.fit(2, rank=2, agnostic="complement").basis
    np.testing.assert_array_equal(rules[2].basis, fitted)


def test_a_policy_of_another_space_or_language(space):
    rules = (PolicyRule("sw", 0), PolicyRule("es", 1))
    with pytest.raises(InputError, match="belongs to another space"):
        Policy(rules, space_sha256="0" * 64).resolve(space, language="sw")
    with pytest.raises(InputError, match=r"say which language .* spa_Latn, swh_Latn"):
        Policy(rules).resolve(space)
    with pytest.raises(InputError, match="not in this space"):
        Policy((PolicyRule("ru", 0),)).resolve(space)
    assert len(Policy(rules[:1]).resolve(space)) == 1
    assert Policy((PolicyRule("*", 0, method="project"),)).resolve(space)[0].method == "project"


def test_every_problem_of_a_policy_file_is_listed(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(
        "schema: lens.policy/1\nspaec: abc\nrules:\n"
        "- {language: sw, layers: 1, strenght: 2}\n"
        "- {layers: 1, method: add}\n"
        "- {language: Gibberish, layers: 1}\n"
        "- {language: sw, layers: 1, rank: 0}\n"
        "- text\n"
    )
    with pytest.raises(InputError) as caught:
        Policy.load(path)
    for message in (
        "unknown key 'spaec'; did you mean 'space'?",
        "rule 1: unknown key 'strenght'; did you mean 'strength'?",
        "rule 2: 'language' is missing",
        "rule 3: unknown language 'Gibberish'",
        "rule 4: rank is 0",
        "rule 5: expected keys",
    ):
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rules: []", "not a policy"),
        ("schema: lens.policy/1", "at least one rule"),
        ("a: [", "not YAML"),
    ],
)
def test_files_that_are_no_policies(tmp_path, content, message):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        Policy.load(tmp_path / "p.yaml")
    with pytest.raises(InputError, match="does not exist"):
        Policy.load(tmp_path / "q.yaml")
