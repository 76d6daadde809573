"""Identifiers, scoring, generation, pivot drift, and the row file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lens.data.language_id import agreement, identifier
from lens.errors import InputError
from lens.evaluation.accuracy import Item, compare, evaluate, outcomes, read_references, score
from lens.evaluation.drift import pivot_kl
from lens.evaluation.results import ResultRow, read_rows, write_rows
from lens.models.generation import generate, length_batches, strip_thinking
from lens.models.tokenization import ChatOptions
from lens.stats import wilson
from tests.helpers import tiny

LANGUAGES = ["eng_Latn", "spa_Latn", "swh_Latn", "rus_Cyrl", "zho_Hans"]


# --- identifiers ------------------------------------------------------------------------------

SENTENCES = {
    "eng_Latn": "Every morning the teacher walks to the market near the river.",
    "spa_Latn": "Cada mañana la maestra camina hasta el mercado cerca del río.",
    "swh_Latn": "Kila asubuhi mwalimu hutembea hadi sokoni karibu na mto.",
    "rus_Cyrl": "Каждое утро учительница идёт на рынок у реки.",
    "zho_Hans": "老师每天早上走到河边的市场。",
}


@pytest.mark.parametrize("name", ["lingua", "py3langid", "default"])
def test_libraries_name_plain_sentences(name: str) -> None:
    judge = identifier(name, LANGUAGES)
    assert judge.identify(SENTENCES.values()) == list(SENTENCES)
    assert judge.version[0].isdigit()
    assert judge.languages == tuple(LANGUAGES)


def test_any_spelling_is_accepted() -> None:
    judge = identifier("py3langid", ["English", "sw", "spa"])
    assert judge.languages == ("eng_Latn", "swh_Latn", "spa_Latn")
    assert judge.identify([SENTENCES["swh_Latn"]]) == ["swh_Latn"]


@pytest.mark.parametrize("name", ["lingua", "py3langid", "script"])
def test_names_digits_and_silence_are_undecided(name: str) -> None:
    judge = identifier(name, LANGUAGES, neutral=["Ana María", "安娜"])
    assert judge.identify(["", "17.", "  ", "Ana María", "ANA 12!", "安娜"]) == [None] * 6


def test_neutral_names_leave_the_rest() -> None:
    judge = identifier("default", LANGUAGES, neutral=["Kenji"])
    assert judge.identify(["出行 Kenji 总是开汽车。", "Kenji 在 Kenji 市场"]) == ["zho_Hans"] * 2


def test_strict_needs_every_word() -> None:
    words = {
        "eng_Latn": ["the forest", "is"],
        "spa_Latn": ["el bosque"],
        "zho_Hans": ["森林", "在"],
    }
    judge = identifier("strict", list(words), vocabulary=words, neutral=["Ana"])
    texts = ["Ana is the forest", "Ana el bosque", "Ana el forest", "在森林", "森山", "bosque x"]
    found = judge.identify(texts)
    assert found == ["eng_Latn", "spa_Latn", None, "zho_Hans", None, None]


def test_script_alone() -> None:
    judge = identifier("script", LANGUAGES)
    assert judge.identify(["лес", "森林", "forest"]) == ["rus_Cyrl", "zho_Hans", None]
    japanese = identifier("script", ["jpn_Jpan", "zho_Hans"])
    assert japanese.identify(["森に住んでいます"]) == ["jpn_Jpan"]


def test_a_foreign_script_is_no_answer_in_the_language() -> None:
    judge = identifier("default", ["rus_Cyrl", "zho_Hans"])
    assert judge.identify(["she lives in the forest near the river"]) == [None]


def test_agreement_counts() -> None:
    assert agreement(["a", "b", None], ["a", "a", "a"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: identifier("glotlid", LANGUAGES), "expected one of"),
        (lambda: identifier("lingua", ["eng_Latn"]), "at least two"),
        (lambda: identifier("lingua", ["en", "eng_Latn"]), "repeated"),
        (lambda: identifier("lingua", "en"), "expected a list"),
        (lambda: identifier("lingua", ["eng_Latn", "kbp_Latn"]), "does not know"),
        (lambda: identifier("py3langid", ["zho_Hans", "zho_Hant", "en"]), "apart"),
        (lambda: identifier("strict", ["en", "es"]), "vocabulary="),
        (lambda: identifier("script", ["en", "es"]).identify("one"), r"\[text\]"),
        (lambda: agreement(["a"], []), "1 identified"),
    ],
)
def test_bad_input_of_identifiers(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_world_text_is_identified() -> None:
    from tests.bench.language_id import GOAL, names, samples

    texts = samples()
    judge = identifier("default", list(texts["answers"]), neutral=names())
    for kind, by_language in texts.items():
        for code, rows in by_language.items():
            right, _, _ = agreement(judge.identify(rows[:150]), [code] * len(rows[:150]))
            assert right / 150 >= GOAL, (kind, code)


# --- scoring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question whose right answer is its language's word for it."""

    language: str
    fact_id: str

    def is_correct(self, answer: str, language: str | None = None) -> bool:
        return answer in ({"en": "yes", "es": "sí", "sw": "ndio"}.values() if language is None
                          else [{"en": "yes", "es": "sí", "sw": "ndio"}[language]])  # fmt: skip


QUESTIONS = [Asked(code, f"{i}") for code in ("en", "es", "sw") for i in range(4)]
ANSWERS = ["yes"] * 4 + ["sí", "yes", "sí", "no"] + ["ndio", "ndio", "x", "yes"]
FOUND = ["en"] * 4 + ["es", "en", "en", "es"] + ["sw", "sw", None, "en"]


def rows_by(rows: list[ResultRow]) -> dict[tuple[str, str], ResultRow]:
    return {(row.language, row.metric): row for row in rows}


def test_score_by_hand() -> None:
    rows = rows_by(score(ANSWERS, QUESTIONS, FOUND, system="s", pivot="en", seed=3))
    expected = {
        ("en", "fidelity"): 1.0, ("es", "fidelity"): 0.5, ("sw", "fidelity"): 0.5,
        ("en", "accuracy_in_language"): 1.0, ("es", "accuracy_in_language"): 0.25,
        ("sw", "accuracy_in_language"): 0.5, ("es", "accuracy_any"): 0.75,
        ("sw", "accuracy_any"): 0.75, ("mean", "accuracy_in_language"): 0.375,
        ("mean", "accuracy_any"): 0.75,
    }  # fmt: skip
    assert {key: rows[key].value for key in expected} == expected
    assert (rows["es", "fidelity"].low, rows["es", "fidelity"].high) == wilson(2, 4)
    assert (rows["en", "fidelity"].n, rows["mean", "fidelity"].n) == (4, 8)
    assert all(row.seed == 3 and row.split == "test" for row in rows.values())
    assert all(row.low <= row.value <= row.high for row in rows.values())


def test_all_right_is_not_certain() -> None:
    right = score(["yes"] * 8, [Asked(c, f"{i}") for c in ("en", "es") for i in range(4)],
                  ["en"] * 4 + ["es"] * 4, system="s")  # fmt: skip
    mean = rows_by(right)["mean", "fidelity"]
    assert mean.value == 1.0 and mean.low == wilson(4, 4)[0]


def test_languages_asked_different_items_are_averaged_too() -> None:
    questions = [Asked("es", "1"), Asked("es", "2"), Asked("sw", "9")]
    mean = rows_by(score(["sí", "x", "ndio"], questions, ["es", "es", "sw"], system="s"))
    assert mean["mean", "accuracy_any"].value == 0.75
    assert not outcomes(["a"] * 3, questions, identified=[None] * 3).parallel()


def test_compare_before_and_after() -> None:
    before = outcomes(["no"] * 12, QUESTIONS, identified=FOUND)
    after = outcomes(ANSWERS, QUESTIONS, identified=FOUND)
    found = {change.language: change for change in compare(before, after, pivot="en")}
    assert (found["es"].gained, found["es"].lost, found["es"].difference) == (1, 0, 0.25)
    assert (found["mean"].gained, found["mean"].difference) == (3, 0.375)
    assert found["en"].p_value == 2 / 16
    with pytest.raises(InputError, match="same questions"):
        compare(before, outcomes(ANSWERS[:4], QUESTIONS[:4], identified=FOUND[:4]))


def test_item_order_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(12)
    shuffled = (
        [ANSWERS[i] for i in order],
        [QUESTIONS[i] for i in order],
        [FOUND[i] for i in order],
    )
    plain = rows_by(score(ANSWERS, QUESTIONS, FOUND, system="s", pivot="en"))
    assert rows_by(score(*shuffled, system="s", pivot="en")) == plain


def test_bad_input_of_scoring() -> None:
    with pytest.raises(InputError, match="3 answers"):
        outcomes(["a"] * 3, QUESTIONS, identified=FOUND)

    class Bare:
        language = "en"

    with pytest.raises(InputError, match="is_correct="):
        outcomes(["a"], [Bare()], identified=["en"])


# --- generation and drift ---------------------------------------------------------------------

PROMPTS = ["Where?", "Who lives by the river, and why?", "A", "¿Dónde?", "森林在哪里"]


@pytest.fixture(scope="module")
def small():
    return tiny.model(), tiny.tokenizer()


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_padding_and_batches_do_not_change_answers(family: str) -> None:
    model, tokenizer = tiny.model(family), tiny.tokenizer()
    alone = [generate(model, tokenizer, [p], max_new_tokens=12)[0] for p in PROMPTS]
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3) == alone
    assert any(alone)


def test_generation_is_greedy_whatever_the_checkpoint_recommends(small) -> None:
    model, tokenizer = small
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=8)
    model.generation_config.do_sample, model.generation_config.temperature = True, 3.0
    try:
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=8) == plain
    finally:
        model.generation_config.do_sample, model.generation_config.temperature = False, None


def test_generation_keeps_the_mode_and_stops_at_the_end() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    with torch.no_grad():
        model.lm_head.weight[:] = 0
    model.train()  # all logits are equal: the first token, padding, always wins
    assert generate(model, tokenizer, ["Who?"], max_new_tokens=4) == [""]
    assert model.training


def test_chat_options_reach_the_template(small) -> None:
    model, tokenizer = small
    plain = generate(model, tokenizer, PROMPTS, chat=ChatOptions(template=False))
    assert plain != generate(model, tokenizer, PROMPTS)
    # the template opens a thinking block, and a random model does not close it: nothing was said
    assert generate(model, tokenizer, PROMPTS, chat=ChatOptions(enable_thinking=True)) == [""] * 5


def test_strip_thinking() -> None:
    assert strip_thinking("<think>hm</think> Forest. ") == "Forest."
    assert strip_thinking("hm</think>Forest.", opened=True) == "Forest."
    assert strip_thinking("<think>hm") == ""
    assert strip_thinking("hm", opened=True) == ""
    assert strip_thinking(" Forest. ") == "Forest."


def test_length_batches_hold_every_row_once() -> None:
    batches = list(length_batches([3, 9, 1, 9, 4], 2))
    assert batches == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [("one", {}, r"\[prompt\]"), (["a", ""], {}, "empty"), (["a"], {"batch_size": 0}, "positive")],
)
def test_bad_input_of_generation(small, prompts, options, words: str) -> None:
    with pytest.raises(InputError, match=words):
        generate(*small, prompts, **options)


def test_no_drift_from_oneself(small) -> None:
    model, tokenizer = small
    found = pivot_kl(model, model, tokenizer, PROMPTS)
    np.testing.assert_allclose(found.rows, 0.0, atol=1e-9)
    assert found.n == 5 and found.mean == pytest.approx(0.0, abs=1e-9)


def test_drift_equals_the_formula_and_ignores_padding(small) -> None:
    model, tokenizer = small
    other = tiny.model(seed=1)
    found = pivot_kl(model, other, tokenizer, PROMPTS, batch_size=5)
    for i, prompt in enumerate(PROMPTS):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            p, q = (torch.log_softmax(m(ids).logits[0].double(), -1) for m in (model, other))
        kl = (p.exp() * (p - q)).sum(-1)
        assert found.rows[i] == pytest.approx(float(kl.mean()), rel=1e-4)
        assert found.last[i] == pytest.approx(float(kl[-1]), rel=1e-4)
    assert found.low <= found.mean <= found.high
    assert found.mean > 0


def test_steering_is_entered_around_the_second_model_only(small) -> None:
    from lens.steering.hooks import steer
    from lens.steering.policy import Rule

    model, tokenizer = small
    rule = Rule(method="add", layers=-1, vector=np.full(32, 0.5), strength=1.0)
    found = pivot_kl(model, model, tokenizer, PROMPTS, steered=lambda: steer(model, rule))
    assert found.mean > 1e-3
    assert pivot_kl(model, model, tokenizer, PROMPTS).mean == pytest.approx(0.0, abs=1e-9)


def test_bad_input_of_drift(small) -> None:
    model, tokenizer = small
    with pytest.raises(InputError, match="at least one prompt"):
        pivot_kl(model, model, tokenizer, [])
    with pytest.raises(InputError, match="vocabularies"):
        pivot_kl(model, tiny.model(vocab_size=310), tokenizer, PROMPTS)


# --- rows and the suite -----------------------------------------------------------------------


def test_rows_survive_the_file(tmp_path) -> None:
    rows = [ResultRow("s", "spa_Latn", "test", "kl", 0.25, 3, 0.1, 0.4, 0),
            ResultRow("s", "mean", "test", "fidelity", 0.5, 3)]  # fmt: skip
    path = write_rows(tmp_path / "deep" / "results.json", rows, about={"seed": 0})
    assert read_rows(path) == rows
    assert set(json.loads(path.read_text())) == {"rows", "about"}
    write_rows(path, [ResultRow("s", "mean", "test", "kl", math.nan, 0)])
    assert math.isnan(read_rows(path)[0].value)
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("[]", "no list 'rows'"), ('{"rows": [{"system": "s"}]}', "missing"),
     (b"\xff\xfe", "UTF-8")],
)  # fmt: skip
def test_bad_row_files(tmp_path, content, words: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words):
        read_rows(path)
    with pytest.raises(InputError, match="check the path"):
        read_rows(tmp_path / "absent.json")
    with pytest.raises(InputError, match="folder"):
        read_rows(tmp_path)


def test_references_are_whole_words_in_any_script() -> None:
    item = Item("spa_Latn", "?", "0", {"spa_Latn": ("mar",), "zho_Hans": ("海",), "en": ("sea",)})
    assert item.is_correct("Vive en el MAR.", "spa_Latn")
    assert not item.is_correct("Vive en Marruecos.", "spa_Latn")
    assert not item.is_correct("the sea", "spa_Latn")
    assert item.is_correct("the sea")
    assert item.is_correct("住在海边", "zho_Hans")


def test_evaluate_on_own_prompts(small) -> None:
    model, tokenizer = small
    prompts = {"en": ["Where?", "Who?"], "es": ["¿Dónde?", "¿Quién?"]}
    options = {"max_new_tokens": 4, "pivot": "en"}
    plain = evaluate(model, tokenizer, prompts=prompts, **options)
    assert {row.metric for row in plain.rows} == {"fidelity"}
    references = [{"en": "forest", "es": ["bosque", "selva"]}, {"en": "Ana"}]
    full = evaluate(model, tokenizer, prompts=prompts, references=references, **options)
    assert {row.language for row in full.rows} == {"eng_Latn", "spa_Latn", "mean"}
    assert [a["answer"] for a in full.answers] == [a["answer"] for a in plain.answers]
    assert json.loads(json.dumps(full.to_dict()))["about"]["pivot"] == "eng_Latn"
    with pytest.raises(InputError, match="one reference entry per prompt"):
        evaluate(model, tokenizer, prompts=prompts, references=references[:1], **options)


def test_bad_references(tmp_path) -> None:
    path = tmp_path / "references.jsonl"
    path.write_text('{"en": "forest"}\n\n{"en": 3}\n')
    with pytest.raises(InputError, match="line 3"):
        read_references(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_references(path)
