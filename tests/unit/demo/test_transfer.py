"""Two questions at once, and the study that carries them to other languages."""

import json
import math

import pytest
import torch
import yaml

from lens import demo
from lens.demo.corpus import plain_text
from lens.demo.questions import answers_both, double_rows, doubles, facts
from lens.errors import InputError
from lens.merging.operations import merge
from lens.models.loading import load
from tests.helpers.studies import load_study

transfer = load_study("maec_transfer/transfer_study")
MERGES, PARTS, against, config, without = (
    transfer.MERGES,
    transfer.PARTS,
    transfer.against,
    transfer.merge_config,
    transfer.without,
)
Bounds, MergeTrial, SearchResult = transfer.Bounds, transfer.MergeTrial, transfer.SearchResult
Steps, chosen, perplexity, put = transfer.Steps, transfer.chosen, transfer.perplexity, transfer.put
asked_of, read_study, search = transfer.judge, transfer.read_study, transfer.search
space, starts, study, summarise = (
    transfer.space,
    transfer.starts,
    transfer.study,
    transfer.summarise,
)


def test_double_questions_are_parallel_and_their_splits_disjoint():
    seen = {}
    for split in ("train", "validation", "test"):
        found = {code: doubles(split, code) for code in demo.LANGUAGES}
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


@pytest.mark.parametrize("code", demo.LANGUAGES)
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
        assert not [q for q in demo.questions(split, "spa_Latn") if q.prompt in rows]
    assert list(plain_text(3, language="spa_Latn")) == list(plain_text(3, language="spa_Latn"))
    with pytest.raises(InputError, match="no text in"):
        doubles("test", "deu_Latn")


def test_perplexity_is_that_of_the_tokens_and_ignores_padding():
    model, tokenizer = demo.load("base")
    text = list(plain_text(3, language="swh_Latn"))
    nats = tokens = 0.0
    for row in text:
        ids = tokenizer(row, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        nats, tokens = nats + float(loss) * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    assert perplexity(model, tokenizer, text) == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_a_model_takes_the_weights_of_another(tmp_path):
    base, _ = demo.load("base")
    chat, _ = demo.load("chat")
    put(base, demo.checkpoint_path("chat"))
    pairs = zip(base.parameters(), chat.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class _Models:
    base, seed = str(demo.checkpoint_path("base")), 0

    def path(self, name):
        kind = "chat" if name == "replay" else "mixed"
        return str(demo.checkpoint_path(kind))


def test_every_search_begins_where_task_arithmetic_is_best(tmp_path):
    best = {"gamma": 0.7, "eta": 0.5}
    found = []
    for item in MERGES[:4]:
        values = starts(item.kind, best)[0]
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
              "mu": 0.9, "unit": "row", "scope": "tensor", "guide": "brief"}  # fmt: skip
    alone = without(PARTS["key neurons not trained alone"], values)
    assert alone == {**values, "source": "whole", "k1": 0.2}
    assert without(PARTS["without key neurons"], values)["k1"] == 1.0
    assert without(PARTS["without β"], values) == {**values, "beta": 0.0}


def test_a_system_is_compared_with_task_arithmetic_within_the_same_bounds():
    assert against("MAEC, without β") == against("ability only") == "task arithmetic"
    assert against("MAEC, text free") == "task arithmetic, text free"
    assert against("MAEC, text free, without β") == "task arithmetic, text free"


def test_the_best_merge_is_within_the_bounds():
    bounds = Bounds(pivot=0.9, perplexity=1.03)
    trials = [MergeTrial({"n": i}, SearchResult(*x)) for i, x in enumerate([
        (0.9, 0.5, 1.0), (0.8, 1.0, 1.3), (0.4, 0.95, 1.02), (0.3, 1.0, 1.0),
    ])]  # fmt: skip
    assert chosen(trials, bounds).values == {"n": 2}
    assert chosen(trials, Bounds(pivot=0.9, perplexity=math.inf)).values == {"n": 1}
    assert chosen(trials[:2], bounds).values == {"n": 1}


def settings(tmp_path, **changes):
    tuning = {"steps": 2, "batch_size": 4, "learning_rate": 5e-4}
    values = {
        "base": str(demo.checkpoint_path("mixed").parent) + "/{world}", "worlds": ["mixed"],
        "seeds": [0, 1], "languages": ["spa_Latn", "swh_Latn"], "k1": [0.2],
        "corpora": {"rows": 60, "documents": 60, "held_out": 4},
        "training": {
            "ability": tuning, "direct": tuning, "located": tuning, "keys": tuning,
            "replay": {**tuning, "replay_share": 0.25, "row_tokens": 32, "modules": "full"},
            "mixture": {**tuning, "replay_share": 0.25, "row_tokens": 32},
            "text": {**tuning, "row_tokens": 32},
        },
        "validation": 2, "test": 4, "test_from": 3, "trials": 2,
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_the_study_makes_a_table_of_worlds_and_resumes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    path, out = settings(tmp_path), tmp_path / "out"
    call = ["transfer_study", "--config", str(path), "--out", str(out), "--split", "test"]
    monkeypatch.setattr("sys.argv", call)
    transfer.main()
    assert "| MAEC, text free, without selection |" in capsys.readouterr().out
    assert "| MAEC, text free, without selection |" in (out / "table-test.md").read_text()
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


def test_every_start_is_among_what_is_searched():
    best = {"gamma": 0.85, "eta": 1.45}
    for kind in ("task arithmetic", "TIES", "DARE", "MAEC"):
        allowed = space(kind, [0.2])
        for values in starts(kind, None if kind == "task arithmetic" else best, [0.2]):
            assert set(values) == set(allowed)
            for name, choice in allowed.items():
                if isinstance(choice, Steps):
                    assert choice.low <= values[name] <= choice.high
                else:
                    assert values[name] in choice


def test_a_search_changes_all_settings_together_and_goes_on_alike():
    pytest.importorskip("optuna")
    known, tried = {}, []

    def judge(values):
        """A ridge: neither factor alone gets far from where the search begins."""
        tried.append(dict(values))
        far = abs(values["gamma"] - values["eta"]) * 2 + abs(values["gamma"] - 1.6)
        return known.setdefault(
            str(values), SearchResult(1 - far / 4, values["gamma"] / 2 + 0.2, 1.0)
        )

    how = {"judge": judge, "starts": [{"gamma": 0.612, "eta": 0.6}], "seed": 3}
    free = search(space("task arithmetic"), bounds=Bounds(0.0, math.inf), trials=40, **how)
    assert tried[0] == {"gamma": 0.6, "eta": 0.6} and len(tried) == 40
    assert free.found.share > 0.9 and free.values["gamma"] > 1.3
    assert all(round(x * 20, 6) == round(x * 20) for values in tried for x in values.values())
    first = list(tried)
    tried.clear()
    again = search(space("task arithmetic"), bounds=Bounds(0.0, math.inf), trials=40, **how)
    assert again == free and tried == first
    kept = search(space("task arithmetic"), bounds=Bounds(1.1, math.inf), trials=20, **how)
    assert kept.found.pivot >= 1.1 or kept.found.share < free.found.share


def test_questions_that_were_asked_before_are_left_out():
    model, tokenizer = demo.load("mixed")
    how = {"language": "spa_Latn", "split": "validation", "text": ["Ana vive en la granja."]}
    later = asked_of(model, tokenizer, limit=4, first=140, **how)
    assert len(later.right) == 4
    with pytest.raises(InputError, match="has 146 double questions"):
        asked_of(model, tokenizer, limit=7, first=140, **how)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"languages": ["eng_Latn"]}, "is the pivot"),
        ({"k1": [1.5]}, "above 0 and below 1"),
        ({"tests": 3}, "nearest is 'test'"),
        ({"searched": ["rus_Cyrl"]}, "none of the languages"),
    ],
)
def test_a_bad_study_is_told(tmp_path, change, told):
    with pytest.raises(InputError, match=told):
        read_study(settings(tmp_path, **change))
