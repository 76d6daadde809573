"""Two questions at once, and the study that carries them to other languages."""

import json
import math

import pytest
import torch
import yaml
from click.testing import CliRunner

from lens import world
from lens.cli import main
from lens.errors import InputError
from lens.maec import merge
from lens.models import load
from lens.world.corpus import plain_text
from lens.world.doubles import answers_both, double_rows, doubles
from lens.world.facts import facts
from lens.world.transfer import read_study, study, summarise
from lens.world.transfer.judging import Judged, perplexity, put
from lens.world.transfer.searching import Bounds, Trial, chosen, search
from lens.world.transfer.systems import MERGES, PARTS, config, start, without


def test_double_questions_are_parallel_and_their_splits_disjoint():
    seen = {}
    for split in ("train", "validation", "test"):
        found = {code: doubles(split, code) for code in world.LANGUAGES}
        assert len({tuple(x.pair_id for x in rows) for rows in found.values()}) == 1
        seen[split] = {part for x in found["eng_Latn"] for part in x.pair_id.split("+")}
    assert not seen["test"] & (seen["train"] | seen["validation"])
    split_of = {fact.fact_id: fact.split for fact in facts()}
    assert {split_of[x] for x in seen["train"]} == {"train"}
    assert all(
        "validation" in {split_of[part] for part in x.pair_id.split("+")}
        for x in doubles("validation", "eng_Latn")
    )
    shared = {fact.fact_id for fact in facts() if not fact.english_only}
    assert seen["test"] <= shared and seen["validation"] <= shared


def test_what_is_taught_is_about_train_facts_only():
    rows = set(double_rows(2000, language="eng_Latn", seed=3))
    assert list(double_rows(5, language="eng_Latn", seed=3)) != list(
        double_rows(5, language="eng_Latn", seed=4)
    )
    for split in ("validation", "test"):
        assert not {x.answer for x in doubles(split, "eng_Latn")} & {a for _, a in rows}


@pytest.mark.parametrize("code", world.LANGUAGES)
def test_both_answers_must_be_right_and_in_the_language(code):
    other = "spa_Latn" if code != "spa_Latn" else "swh_Latn"
    for asked, foreign in zip(doubles("test", code, 40), doubles("test", other, 40), strict=True):
        assert answers_both(asked, asked.answer, code) and answers_both(asked, asked.answer)
        assert not answers_both(asked, foreign.answer, code)
        assert answers_both(asked, foreign.answer)
        first = asked.answer[: len(asked.answer) // 2]
        assert not answers_both(asked, first, code)
        assert not answers_both(asked, asked.answer.replace(asked.person, "Nobody"), code)


def test_plain_text_of_one_language_asks_nothing_of_other_splits():
    rows = " ".join(plain_text(400, language="spa_Latn", seed=1))
    for split in ("validation", "test"):
        assert not [q for q in world.questions(split, "spa_Latn") if q.prompt in rows]
    assert list(plain_text(3, language="spa_Latn")) == list(plain_text(3, language="spa_Latn"))
    with pytest.raises(InputError, match="no text in"):
        doubles("test", "deu_Latn")


def test_perplexity_is_that_of_the_tokens_and_ignores_padding():
    model, tokenizer = world.load("base")
    text = list(plain_text(3, language="swh_Latn"))
    nats = tokens = 0.0
    for row in text:
        ids = tokenizer(row, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        nats, tokens = nats + float(loss) * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    assert perplexity(model, tokenizer, text) == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_a_model_takes_the_weights_of_another(tmp_path):
    base, _ = world.load("base")
    chat, _ = world.load("chat")
    put(base, world.checkpoint_path("chat"))
    pairs = zip(base.parameters(), chat.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class _Models:
    base, seed = str(world.checkpoint_path("base")), 0

    def path(self, name):
        kind = "chat" if name == "ability" else "mixed"
        return str(world.checkpoint_path(kind))


def test_every_search_begins_where_task_arithmetic_is_best(tmp_path):
    best = {"gamma": 0.7, "eta": 0.5}
    found = []
    for item in MERGES[:4]:
        values = start(item.kind, best)
        made = config(item, values, _Models(), "spa_Latn")
        if item.kind == "DARE":
            assert made["models"][0]["parameters"] == {"weight": 0.7, "density": 1.0}
        if item.kind in ("task arithmetic", "DARE", "MAEC"):
            merge(made, tmp_path / item.kind)
            model, _ = load(tmp_path / item.kind)
            found.append(torch.cat([p.reshape(-1) for p in model.parameters()]))
    assert all(torch.allclose(found[0], other, atol=1e-6) for other in found[1:])


def test_a_part_that_is_off_changes_that_part_alone():
    values = {"source": "keys-0.2", "k1": 0.7, "k2": 0.5, "beta": 0.1, "gamma": 1.2, "eta": 0.8,
              "mu": 0.9}  # fmt: skip
    alone = without(PARTS["MAEC, key neurons not trained alone"], values)
    assert alone == {**values, "source": "whole", "k1": 0.2}
    assert without(PARTS["MAEC without key neurons"], values)["k1"] == 1.0
    assert without(PARTS["MAEC without β"], values) == {**values, "beta": 0.0}


def judged(share, pivot, perplexity):
    return Judged([share], share, 1.0, pivot, perplexity)


def test_the_best_merge_is_within_the_bounds():
    bounds = Bounds(pivot=0.9, perplexity=4.0)
    trials = [Trial({"n": i}, judged(*x)) for i, x in enumerate([
        (0.9, 0.5, 3.0), (0.8, 1.0, 5.0), (0.4, 0.95, 3.9), (0.3, 1.0, 3.0),
    ])]  # fmt: skip
    assert chosen(trials, bounds).values == {"n": 2}
    assert chosen(trials, Bounds(pivot=0.9, perplexity=math.inf)).values == {"n": 1}
    assert chosen(trials[:2], bounds).values == {"n": 1}


def settings(tmp_path, **changes):
    tuning = {"steps": 2, "batch_size": 4, "learning_rate": 5e-4}
    values = {
        "base": str(world.checkpoint_path("mixed").parent) + "/{world}", "worlds": ["mixed"],
        "seeds": [0, 1], "languages": ["spa_Latn", "swh_Latn"], "k1": [0.2],
        "corpora": {"rows": 60, "documents": 60, "held_out": 4},
        "training": {
            "ability": tuning, "direct": tuning, "located": tuning, "keys": tuning,
            "replay": {**tuning, "replay": 0.25, "row_tokens": 32},
            "text": {**tuning, "row_tokens": 32},
        },
        "validation": 2, "test": 4,
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_the_study_goes_from_worlds_to_a_table_and_goes_on_where_it_stopped(tmp_path):
    path, out = settings(tmp_path), tmp_path / "out"
    call = ["world", "transfer", "-C", str(path), "--out", str(out), "--split", "test", "--quiet"]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    assert "| MAEC without selection |" in (out / "table-test.md").read_text()
    found = json.loads((out / "results-test.json").read_text())
    lines = {line["system"]: line for line in found["lines"]}
    assert lines["language only"]["perplexity"] == 1.0 and lines["ability only"]["loss"] == 0.0
    assert lines["task arithmetic"]["n"] == "1 × 2 × 4" and lines["MAEC"]["change"] is not None
    assert {r["split"] for r in found["records"]} == {"test"}
    before = (out / "mixed" / "records.jsonl").read_bytes()
    again = study(read_study(path), out, split="test")
    assert (out / "mixed" / "records.jsonl").read_bytes() == before
    assert [line.average for line in summarise(again)] == [
        tuple(line["average"]) for line in found["lines"]
    ]
    with pytest.raises(InputError, match="models of other settings"):
        study(read_study(settings(tmp_path, seeds=[5])), out, split="test")


def test_a_search_keeps_what_helps_and_leaves_the_rest_off():
    maec, plain = MERGES[3], MERGES[0]
    tried = []

    def judge(values):
        tried.append(dict(values))
        share = 0.5 - abs(values["gamma"] - 0.85) - abs(values["eta"] - 0.6)
        share += 0.2 * (values.get("k1") == 0.4) - 0.3 * (values.get("k2", 1.0) < 1)
        return judged(share, 1.0, 3.0)

    bounds = Bounds(0.9, math.inf)
    best = search(plain, judge=judge, bounds=bounds, k1=[0.2], best=None).values
    assert best == {"gamma": 0.85, "eta": 0.6} and len(tried) == 18
    tried.clear()
    found = search(maec, judge=judge, bounds=bounds, k1=[0.2], best=best).values
    assert tried[0] == start("MAEC", best)
    assert found["k1"] == 0.4 and found["k2"] == 1.0 and found["gamma"] == 0.85
    assert found["source"] == "whole" and {"keys-0.2", "whole"} == {x["source"] for x in tried}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"languages": ["eng_Latn"]}, "is the pivot"),
        ({"k1": [1.5]}, "above 0 and below 1"),
        ({"tests": 3}, "nearest is 'test'"),
    ],
)
def test_a_bad_study_is_told(tmp_path, change, told):
    with pytest.raises(InputError, match=told):
        read_study(settings(tmp_path, **change))
