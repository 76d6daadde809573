"""`lens report` of every kind of run, each written by the job that makes it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import lens
from lens.errors import InputError
from lens.evaluation.accuracy import evaluate
from lens.experiments.summary import SummaryRow
from lens.merging import merge
from lens.report.inspection import save_inspection
from lens.report.io import write_run
from lens.report.runs import KINDS, read_reports, render_runs, write_report
from tests.helpers import maec_files as files
from tests.helpers.command import run
from tests.helpers.runs import HELD_OUT, config, make
from tests.helpers.synthetic_run import make_record
from tests.unit.report.test_report import Page


def sweep_results() -> dict:
    """results.json of a sweep of two settings, as `ablate` writes it."""

    def row(name: str, value: float, change: tuple[float, float, float] | None) -> SummaryRow:
        estimate = (value, value - 0.1, value + 0.1)
        return SummaryRow(
            name=name, method="lens", without=(), against="base", runs=2, items=9,
            values={"accuracy_in_language": estimate, "fidelity": estimate},
            kinds={"shared": estimate},
            languages={m: {"eng_Latn": 0.5, "spa_Latn": 1.0}
                       for m in ("accuracy_in_language", "fidelity")},
            change=change, pivot=0.5, kl=0.25, seconds=2.0,
        )  # fmt: skip

    lines = [row("base", 0.3, None), row("rank=1 <i>", 0.4, (0.1, -0.05, 0.25))]
    return {
        "schema": "lens.ablation/1",
        "split": "validation",
        "sweep": {"title": "Ranks", "against": "base", "vary": {"rank": [1]}},
        "versions": {"lens": lens.__version__},
        "lines": [asdict(line) for line in lines],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One run of each kind."""
    place = tmp_path_factory.mktemp("runs")
    trainer = make(validation=HELD_OUT)
    made = trainer.run(config(validate_every=4))
    made.save(place / "trained")
    save_inspection(lens.inspect_space(trainer.space), place / "inspected")
    prompts = {"eng_Latn": ["who?", "where?"], "rus_Cyrl": ["кто?", "где?"]}
    found = evaluate(
        None, None, prompts=prompts, pivot="eng_Latn", identifier="script", system="mine <b>",
        respond=lambda code, rows: ["она" if code == "rus_Cyrl" else "she"] * len(rows),
        references=[{"eng_Latn": "she", "rus_Cyrl": "он"}] * 2,
    )  # fmt: skip
    (place / "eval.json").write_text(json.dumps(found.to_dict()), encoding="utf-8")
    base = files.checkpoint(place / "base")
    other = files.checkpoint(place / "other", seed=1, near=base)
    models = [{"model": str(other), "parameters": {"weight": 0.5}}]
    merge({"merge_method": "task_arithmetic", "base_model": str(base), "models": models},
          place / "merged")  # fmt: skip
    (place / "sweep").mkdir()
    (place / "sweep" / "results.json").write_text(json.dumps(sweep_results()), encoding="utf-8")
    write_run(make_record(n=20), place / "demo")
    return place


EXPECTED = {
    "trained": ("training run", "8 steps in", "loss separate", "Held-out losses.", "sha256"),
    "inspected": ("inspection", "Site by site", "block.0", "Why this rank"),
    "eval.json": ("evaluation", "mine <b>", "Russian", "кто?", "она", "0.00", "Identified as"),
    "merged": ("merge", "task_arithmetic", "XXH64", "Checksums of", "other"),
    "sweep": ("sweep", "Ranks", "rank=1 <i>", "+0.100", "−0.050 to +0.250", "0.400"),
    "demo": ("demo run", "DiffMean steering", "Prompts and answers"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_kind_has_a_page_and_tables(folder, name):
    kind, *words = EXPECTED[name]
    (report,) = read_reports(folder / name)
    assert report.kind == kind
    page = render_runs([folder / name])
    parsed = Page(page)
    assert parsed.open == [] and len(parsed.ids) == len(set(parsed.ids))
    assert not [a for a in parsed.attributes if a[1] in ("src", "srcset", "action")]
    text = "".join(parsed.text)
    assert all(word in text for word in words), [word for word in words if word not in text]
    assert "<script" not in page and "mine <b>" not in page
    out = io.StringIO()
    report.show(out)
    assert len(out.getvalue().splitlines()) > 5 and "\x1b[" not in out.getvalue()


def test_every_kind_is_tested_here(folder):
    assert {kind.name for kind in KINDS} - {"recipe"} == {kind for kind, *_ in EXPECTED.values()}


def test_several_runs_stand_on_one_page(folder, tmp_path):
    with pytest.raises(InputError, match="6 runs on one page need a file; pass --out"):
        write_report([folder / name for name in EXPECTED])
    page = write_report([folder / name for name in EXPECTED], tmp_path / "all.html")
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.open == [] and len(parsed.ids) == len(set(parsed.ids))
    assert {f"run{i}" for i in range(1, 7)} <= set(parsed.ids)
    assert {f"#run{i}" for i in range(1, 7)} <= set(parsed.references)


def test_a_page_does_not_change_the_model_it_is_about(folder):
    before = sorted(path.name for path in (folder / "merged").iterdir())
    assert write_report([folder / "merged"]) == folder / "merged.report.html"
    assert write_report([folder / "eval.json"]) == folder / "eval.html"
    assert write_report([folder / "sweep" / "results.json"]) == folder / "sweep" / "report.html"
    assert sorted(path.name for path in (folder / "merged").iterdir()) == before


def test_a_recipe_is_its_stages(folder, tmp_path):
    for name in ("recipe.yaml", "stages.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "ability").symlink_to(folder / "trained")
    (tmp_path / "merged").symlink_to(folder / "merged")
    titles = [report.title for report in read_reports(tmp_path)]
    assert titles == ["Training: ability", "Merge: merged"]
    assert write_report([tmp_path]) == tmp_path / "report.html"


def test_the_verb_prints_tables_and_the_page(folder, tmp_path):
    out = tmp_path / "x.html"
    done = run("report", folder / "trained", folder / "eval.json", "--out", out)
    assert done.exit_code == 0, done.output
    assert "Training: trained" in done.stdout and done.stdout.splitlines()[-1] == str(out)
    told = json.loads(run("report", folder / "sweep", "--out", out, "--json").stdout)
    assert told == {"out": str(out), "runs": [{"kind": "sweep", "title": "Ranks"}]}


def test_what_is_no_run_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="check the path"):
        read_reports(tmp_path / "absent")
    with pytest.raises(InputError, match=r"an empty folder; expected one of: demo run \(record"):
        read_reports(tmp_path)
    with pytest.raises(InputError, match=r"config.json, generation_config.json.*metrics\.jsonl"):
        read_reports(folder / "base")
    (tmp_path / "workdir.json").write_text("{}")
    with pytest.raises(InputError, match="work folder of an unfinished job"):
        read_reports(tmp_path)
    with pytest.raises(InputError, match="a file that is not one of a run"):
        read_reports(tmp_path / "workdir.json")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("inspection.json", "{", "is not JSON"),
        ("inspection.json", "[]", "holds list"),
        ("inspection.json", '{"sites": {}}', "is no inspection"),
        ("results.json", '{"schema": "lens.ablation/1"}', "looks like a sweep but cannot be read"),
        ("results.json", '{"rows": []}', "no rows"),
        ("results.json", '{"rows": [{"system": 1}]}', "missing fields"),
        ("reproduce.json", '{"schema": "lens.merge/2"}', "looks like a merge"),
    ],
)
def test_damaged_runs_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        read_reports(tmp_path)


def test_damaged_logs_are_named(tmp_path):
    (tmp_path / "reproduce.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match="lines that are no JSON object"):
        read_reports(tmp_path)


def test_an_inspection_is_read_back(folder):
    data = json.loads((folder / "inspected" / "inspection.json").read_text(encoding="utf-8"))
    again = lens.Inspection.from_dict(data)
    assert json.loads(json.dumps(again.to_dict(), default=str)) == data
    assert isinstance(again.sites[0].singular_values, np.ndarray)
