"""Ablations: what is run, what is resumed, and what the table says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lens.cli.app import main
from lens.errors import InputError
from lens.experiments.ablation import ablate
from lens.experiments.config import (
    METHODS,
    Sweep,
    SweepRun,
    SweepSetting,
    changed,
    fill,
    read_sweep,
)
from lens.experiments.summary import summarise, table, tables
from lens.stats import hierarchical_interval
from lens.utils.hashing import hash_of_path
from lens.utils.workdir import WorkDir
from tests.helpers import tiny

LANGS = ("eng_Latn", "spa_Latn", "ind_Latn")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def content(tmp_path):
    net, tokenizer = tiny.model("llama"), tiny.tokenizer()
    net.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompts = [
        {"eng_Latn": f"what is {i}?", "spa_Latn": f"que es {i}?", "ind_Latn": f"apa {i}?"}
        for i in range(6)
    ]
    answers = [dict.fromkeys(LANGS, f"{i}") for i in range(6)]
    return {
        "model": str(tmp_path / "model"),
        "prompts": lines(tmp_path / "prompts.jsonl", prompts),
        "answers": lines(tmp_path / "answers.jsonl", answers),
        "validation": {
            "prompts": lines(tmp_path / "asked.jsonl", prompts[:3]),
            "references": lines(tmp_path / "accepted.jsonl", answers[:3]),
            "max_new_tokens": 3,
        },
        "base": {"losses": {"terms": [{"kind": "separate"}], "rank": "full", "steps": 2}},
    }


def test_settings_are_base_then_grid_then_runs(content):
    sweep = Sweep.model_validate(
        content
        | {
            "grid": {"losses.rank": [1, "full"], "strength": [1, 2.5]},
            "runs": {"heavier": {"losses.terms.0.weight": 2.0}, "none": {"method": "unchanged"}},
            "seeds": [3, 4],
            "vary": {"world": ["a", "b"]},
        }
    )
    names = list(sweep.settings())
    assert names == [
        "base", "rank=1, strength=1", "rank=1, strength=2.5", "rank=full, strength=1",
        "rank=full, strength=2.5", "heavier", "none",
    ]  # fmt: skip
    assert sweep.settings()["heavier"].losses.terms[0].weight == 2.0
    assert sweep.settings()["rank=1, strength=2.5"].losses.rank == 1
    runs = sweep.expand()
    assert len(runs) == 2 * 7 * 2
    assert [run.where["world"] for run in runs[:14]] == ["a"] * 14
    assert fill("{world}/chat", runs[-1].where) == "b/chat"


def test_presets_can_be_changed_key_by_key(content):
    sweep = Sweep.model_validate(
        content
        | {
            "base": {},
            "runs": {
                "pinned": {"losses.terms.1.weight": 3.0},
                "another preset": {"losses.steps": 7, "losses": "self-translation"},
            },
        }
    )
    another = sweep.settings()["another preset"].losses
    assert another.steps == 7 and [term.kind for term in another.terms] == ["lm", "kl"]
    config = sweep.settings()["pinned"].losses
    assert [term.kind for term in config.terms] == ["separate", "retain", "kl"]
    assert config.terms[1].weight == 3.0


def test_a_sweep_runs_resumes_and_compares(content, tmp_path, monkeypatch):
    sweep = Sweep.model_validate(
        content
        | {
            "runs": {
                "unchanged": {"method": "unchanged"},
                "random": {"method": "random"},
                "steered": {"method": "diffmean", "layers": "-1", "strength": {"es": 2, "id": 1}},
                "tuned": {"method": "finetune"},
                "less": {"without": ["ind_Latn"], "losses.rank": 1, "prompts": 4},
                "same as base": {},
            },
            "seeds": [0, 1],
        }
    )
    out = tmp_path / "out"
    first = ablate(sweep, out)
    assert [line.name for line in first] == ["base", *sweep.runs]
    assert all(line.runs == 2 and line.items == 3 for line in first)
    unchanged = first[1]
    assert unchanged.kl == 0.0 and unchanged.seconds < 1
    assert first[3].kl == 0.0  # the pivot is not steered
    assert min(line.kl for line in (first[0], first[4])) > 0
    assert first[6].values == first[0].values and first[6].change == (0.0, 0.0, 0.0)
    records = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len(records) == 2 + 1 + 2 + 1 + 2 + 2  # unseeded methods once, equal settings once
    assert json.loads((out / "results.json").read_text())["split"] == "validation"
    assert (out / "table.md").read_text() == tables(first) + "\n"

    whole = (out / "runs.jsonl").read_bytes()
    (out / "runs.jsonl").write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 20])  # cut off mid-line
    asked = []
    from lens.experiments.study import Study

    real = Study.run
    monkeypatch.setattr(
        Study, "run", lambda self, run, split: asked.append(run.name) or real(self, run, split)
    )
    again = ablate(sweep, out)
    assert asked == ["less"]
    assert [line.values for line in again] == [line.values for line in first]
    assert [line.kl for line in again] == [line.kl for line in first]


def test_parts_and_adapters_are_settings_and_leave_nothing_behind(content):
    from lens.experiments.study import Study

    sweep = Sweep.model_validate(
        content
        | {
            "runs": {
                "part": {"modules": "mlp"},
                "adapter": {"lora": 2},
                "same adapter": {"lora": 2, "lora_alpha": 4, "modules": "full"},
                "tuned adapter": {"lora": 2, "dora": True, "method": "finetune"},
                "tuned part": {"modules": "attention", "method": "finetune"},
            }
        }
    )
    runs = {run.name: run for run in sweep.expand()}
    keys = {name: run.key(sweep, "validation", {}) for name, run in runs.items()}
    assert keys["adapter"] == keys["same adapter"] and len(set(keys.values())) == 5
    study = Study(sweep, {})
    original = {name: weight.clone() for name, weight in study.model.state_dict().items()}
    first = {}
    for name in (*runs, *runs):  # adapters go on a second time
        found = study.run(runs[name], "validation")
        assert list(study.model.state_dict()) == list(original)
        assert all(torch.equal(w, original[n]) for n, w in study.model.state_dict().items())
        known = first.setdefault(name, found)
        assert (found["log"], found["kl"], found["items"]) == (
            known["log"], known["kl"], known["items"],
        )  # fmt: skip
    drifts = {name: record["kl"]["mean"] for name, record in first.items()}
    assert min(drifts.values()) > 0 and len(set(drifts.values())) == 5
    assert drifts["adapter"] == drifts["same adapter"]
    with pytest.raises(InputError, match=r"self_attn\.q_proj"):  # and what is inside the block
        study.run(SweepRun("x", SweepSetting(modules="ffn"), 0, {}), "validation")


def test_every_method_runs(content, tmp_path):
    texts = [{code: f"{i} {code[:3]} is here." for code in LANGS} for i in range(4)]
    (tmp_path / "kinds.txt").write_text("a\nb\na\n")
    validation = content["validation"] | {"kinds": str(tmp_path / "kinds.txt")}
    sweep = Sweep.model_validate(
        content
        | {
            "validation": validation,
            "test": validation,
            "texts": lines(tmp_path / "texts.jsonl", texts),
            "translator": content["model"],
            "against": "unchanged",
            "runs": {
                "unchanged": {"method": "unchanged"},
                "the same model": {"method": "checkpoint", "checkpoint": content["model"]},
                "shuffled": {"method": "shuffled"},
                "chosen": {"strength": [1, 2], "max_drift": 10},
                "steered": {"method": "diffmean", "layers": "-1", "strength": [1.0, 2.0]},
                "translate first": {"method": "translate-first"},
                "questions": {"losses": "question-translation", "answers": "questions"},
                "left out": {"without": ["ind_Latn"]},
            },
        }
    )
    found = {line.name: line for line in ablate(sweep, tmp_path / "out", split="test")}
    assert found["the same model"].values == found["unchanged"].values
    assert found["the same model"].kl == 0.0 and found["the same model"].change[0] == 0.0
    assert found["translate first"].kl == 0.0  # the model itself is as it was
    assert min(found[name].kl for name in ("shuffled", "chosen", "questions")) > 0
    assert set(found["base"].kinds) == {"a", "b"}
    records = [json.loads(x) for x in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    strengths = {record["name"]: record["strength"] for record in records}
    assert set(strengths["chosen"]) == {"spa_Latn", "ind_Latn"}
    assert set(strengths["chosen"].values()) <= {1.0, 2.0}
    assert strengths["base"] == 1.0 and strengths["unchanged"] is None
    assert "| left out |" in tables(tuple(found.values()))
    row = next(x for x in tables(tuple(found.values())).splitlines()[::-1] if "left out" in x)
    assert row.endswith("] |") and row.count("[") == 1


def test_rows_of_a_reading_are_parallel_unless_asked_otherwise(content):
    from lens.experiments.study import Study

    readings = {"default": {"limit": 4}, "apart": {"parallel": False}}
    study = Study(Sweep.model_validate(content | {"readings": readings}), {})
    rows = study._reading(study.sweep.base)
    assert rows["eng_Latn"] == [f"what is {i}?" for i in range(4)]
    assert rows["spa_Latn"] == [f"que es {i}?" for i in range(4)]
    apart = study._reading(study.sweep.base.model_copy(update={"space": "apart"}))
    numbers = {
        code: [text.rstrip("?").split()[-1] for text in rows] for code, rows in apart.items()
    }
    assert numbers["eng_Latn"] != numbers["spa_Latn"]
    assert sorted(numbers["eng_Latn"]) == sorted(numbers["spa_Latn"]) == list("012345")


def test_answers_a_recipe_did_not_keep_are_named(content, tmp_path):
    texts = [{code: f"{i} {code[:3]} is here." for code in LANGS} for i in range(4)]
    sweep = Sweep.model_validate(
        content
        | {
            "texts": lines(tmp_path / "texts.jsonl", texts),
            "base": {"method": "finetune", "answers": "self"},
        }
    )
    with pytest.raises(InputError, match="use method lens with losses self-translation"):
        ablate(sweep, tmp_path / "out")
    short = content["validation"] | {"kinds": content["answers"], "limit": 6}
    (tmp_path / "kinds.txt").write_text("a\n")
    short["kinds"] = str(tmp_path / "kinds.txt")
    with pytest.raises(InputError, match="has 1 lines for 3 questions"):
        ablate(Sweep.model_validate(content | {"validation": short}), tmp_path / "out2")


def test_the_table_holds_every_level(content):
    sweep = Sweep.model_validate(content | {"runs": {"other": {}}, "seeds": [0, 1]})
    base, other = ([run for run in sweep.expand() if run.name == n] for n in ("base", "other"))

    def record(values):
        return {
            "items": {"accuracy_in_language": values, "fidelity": values},
            "languages": {
                metric: {"eng_Latn": 0.5, "spa_Latn": 1.0}
                for metric in ("accuracy_in_language", "fidelity")
            },
            "kinds": ["shared", "rare"],
            "pivot": "eng_Latn", "kl": {"mean": 0.25}, "seconds": {"training": 2.0},
        }  # fmt: skip

    found = summarise(
        [
            (base[0], record([0.0, 0.5])),
            (base[1], record([0.5, 0.5])),
            (other[0], record([0.5, 1.0])),
            (other[1], record([1.0, 1.0])),
        ]
    )
    assert found[0].values["accuracy_in_language"][0] == 0.375
    assert found[1].change == (0.5, 0.5, 0.5)
    assert found[0].pivot == 0.5 and found[0].change is None
    text = table(found)
    assert "| other | 0.875" in text and "+0.500 (+0.500 to +0.500)" in text and "2 × 2" in text
    assert found[1].kinds == {"shared": (0.75, 0.5, 1.0), "rare": (1.0, 1.0, 1.0)}
    assert "| in language | shared | rare | change from base |" in text
    assert "| other | 0.50 / 0.50 | 1.00 / 1.00 |" in tables(found)
    against = summarise([(run, record([0.0, 0.5])) for run in (*base, *other)], against="other")
    assert against[0].change == (0.0, 0.0, 0.0) and against[1].change is None


def test_hierarchical_interval_covers_each_level():
    rng = np.random.default_rng(0)
    items = rng.random((1, 400))
    low, high = hierarchical_interval([items])
    error = items.std() / 20
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
    worlds = [np.full((2, 50), level) for level in (0.2, 0.4, 0.6)]  # all variance between worlds
    low, high = hierarchical_interval(worlds, seed=1)
    assert low == pytest.approx(0.2) and high == pytest.approx(0.6)
    seeds = [np.array([[0.0] * 50, [1.0] * 50])]
    assert hierarchical_interval(seeds) == (0.0, 1.0)
    with pytest.raises(InputError, match="empty"):
        hierarchical_interval([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"losses.rnk": [1]}}, None),
        ({"grid": {"losses.terms.4.weight": [1]}}, "no '4' here, expected one of 0"),
        ({"base": {"stride": 1}}, "stride"),
        ({"base": {"dora": True}}, "lora: RANK"),
        ({"grid": {"lora": [0]}}, "greater than or equal to 1"),
        ({"runs": {"x": {"space": "other"}}}, "expected one of the readings default"),
        ({"seeds": []}, "at least one"),
        ({"runs": {"base": {}}}, "is taken"),
        ({"models": "x"}, "models"),
        ({"against": "mixed"}, "'mixed' is not a setting, expected one of base"),
        ({"runs": {"x": {"method": "checkpoint"}}}, "go together"),
        ({"runs": {"x": {"strength": []}}}, "strength"),
    ],
)
def test_sweeps_that_do_not_fit_are_refused(content, tmp_path, changes, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(content | changes))  # JSON is YAML
    with pytest.raises(InputError, match=message or "losses"):
        read_sweep(path)


def test_paths_and_logs_that_do_not_fit_are_refused(content, tmp_path):
    with pytest.raises(InputError, match="no config file"):
        read_sweep(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="names something in braces"):
        fill("{world}/chat", {"seed": "1"})
    sweep = Sweep.model_validate(content)
    (tmp_path / "runs.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"format of an earlier version.*choose another folder"):
        ablate(sweep, tmp_path)
    with WorkDir(tmp_path / "damaged", "ablation", keeps="runs", always_resumes=True) as work:
        work.open({})
        (work.path / "runs.jsonl").write_text("what\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        ablate(sweep, work.path)
    with pytest.raises(InputError, match="no 'test:' questions"):
        ablate(sweep, tmp_path / "out", split="test")
    plain = Sweep.model_validate({**content, "answers": None, "base": {"method": "finetune"}})
    with pytest.raises(InputError, match="a setting needs answers"):
        ablate(plain, tmp_path / "out")


@pytest.mark.parametrize("name", ["systems", "losses"])
def test_the_published_sweeps_can_be_read(name):
    sweep = read_sweep(Path(__file__).parents[3] / "docs" / "sweeps" / f"{name}.yaml")
    assert sweep.vary == {"world": ["w0", "w1", "w2"]}
    methods = {run.setting.method for run in sweep.expand()}
    assert methods == (set(METHODS) if name == "systems" else {"lens"})


def test_identity_changes_with_the_content(tmp_path):
    file = tmp_path / "a" / "x.txt"
    file.parent.mkdir()
    file.write_text("one")
    before = hash_of_path(str(file)), hash_of_path(str(file.parent))
    file.write_text("two")
    assert hash_of_path(str(file)) != before[0] and hash_of_path(str(file.parent)) != before[1]
    assert hash_of_path("some/hub-id") != hash_of_path("other/hub-id")


def test_the_command_lists_and_runs(content, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(content | {"runs": {"none": {"method": "unchanged"}}}))
    listed = CliRunner().invoke(main, ["ablate", "--sweep", str(path), "--dry-run"])
    assert listed.output.splitlines() == ["base [lens] seed=0", "none [unchanged] seed=0", "2 runs"]
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["ablate", "--sweep", str(path), "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "| none |" in done.output and (out / "results.json").exists()
    assert CliRunner().invoke(main, ["ablate", "--sweep", str(path)]).exit_code == 2


def test_the_world_is_exported_as_a_users_files(tmp_path):
    from lens.data.corpora import read_parallel
    from lens.demo.languages import LANGUAGES
    from lens.demo.questions import questions
    from lens.evaluation.accuracy import read_references

    out = tmp_path / "world"
    done = CliRunner().invoke(main, ["demo", "export", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = read_parallel(out / "prompts" / "validation.jsonl").rows
    assert rows["swh_Latn"] == [q.prompt for q in questions("validation", "swh_Latn")]
    assert set(rows) == set(LANGUAGES)
    accepted = read_references(out / "references" / "validation.jsonl")
    asked = questions("validation", "spa_Latn")
    assert accepted[5]["spa_Latn"] == list(asked[5].accepted["spa_Latn"])
    for split in ("train", "validation"):
        said = read_parallel(out / "answers" / f"{split}.jsonl").rows["tur_Latn"]
        assert said == [q.answer for q in questions(split, "tur_Latn")]
    kinds = (out / "kinds" / "test.txt").read_text().splitlines()
    asked = questions("test", "spa_Latn")
    assert kinds == ["English only" if q.english_only else "shared" for q in asked]
    assert (out / "chat" / "config.json").exists() and len(rows["eng_Latn"]) == 200
    refused = CliRunner().invoke(main, ["demo", "export", "--out", str(out)])
    assert refused.exit_code == 2 and "exists already" in refused.output


def test_any_option_of_training_is_a_key_of_a_sweep():
    found = SweepSetting.model_validate({"losses": "lens", "steps": 7, "lora": 2, "lora-alpha": 3})
    assert (found.losses.steps, found.lora.rank, found.lora.alpha) == (7, 2, 3)
    again = changed("x", found, {"learning_rate": 0.5, "losses.terms.0.weight": 2, "dora": True})
    assert again.losses.learning_rate == 0.5 and again.losses.terms[0].weight == 2
    assert again.losses.steps == 7 and again.lora.dora and again.lora.rank == 2
    with pytest.raises(InputError, match="run 'x': steps: got 0"):
        changed("x", found, {"steps": 0})
    with pytest.raises(InputError, match="unknown key 'step'; the nearest is 'steps'"):
        changed("x", found, {"step": 3})
