"""The command line: help that costs nothing, one message per error, and a real run of each verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from pydantic import TypeAdapter

import lens
from lens.cli.app import main
from lens.report.io import write_run
from lens.utils.progress import set_quiet
from lens.utils.settings import Numbers
from tests.helpers import tiny
from tests.helpers.synthetic_run import make_record

VERBS = ("demo", "doctor", "probe", "inspect", "train", "steer", "eval", "report", "merge")
TEXT = {
    "en": ["The river is wide.", "Ana lives here.", "We buy bread.", "It rains today."],
    "es": ["El río es ancho.", "Ana vive aquí.", "Compramos pan.", "Hoy llueve."],
    "sw": ["Mto ni mpana.", "Ana anaishi hapa.", "Tunanunua mkate.", "Leo mvua inanyesha."],
}


def run(*arguments: object) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    set_quiet(False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: object, words: str, code: int = 2) -> str:
    """Run the command, expect one message on stderr and an exit code; return the message."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert words in result.stderr and "Traceback" not in result.stderr
    return result.stderr


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    root = str(Path(lens.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "lens", *arguments],
        env=os.environ | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("before", "arguments", "code", "out"),
    [
        ("atexit.register(print, 'bye')", ["--version"], 0, "lens, version 0.1.0\nbye\n"),
        ("atexit.register(print, 'bye')", ["no-such-verb"], 2, "bye\n"),
        ("threading.Timer(0.2, print, ['late']).start()", ["--version"], 0,
         "lens, version 0.1.0\nlate\n"),
    ],
    ids=["done", "refused", "a thread is at work"],
)  # fmt: skip
def test_leaving_at_once_loses_nothing(before, arguments, code, out):
    script = f"import atexit, threading, sys; {before}\nfrom lens.__main__ import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, out)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a random-weight model, parallel text, and a space read from both."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.model(seed=1, num_hidden_layers=2).save_pretrained(folder / "other")
    tiny.tokenizer().save_pretrained(folder / "other")
    (folder / "text").mkdir()
    for code, rows in TEXT.items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = run("probe", "--model", folder / "model", "--data", folder / "text", "--out",
               folder / "space.safetensors")  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


# --- help, and what it costs ------------------------------------------------------------------


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lens.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'yaml', 'rich', 'jinja2', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    root = str(Path(lens.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": root})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, "demo export", "space show", "plan train", "maec run"])
def test_every_verb_has_help_and_its_common_flags(verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0
    assert all(flag in result.stdout for flag in ("--json", "--quiet", "-v", "--config"))


def test_version_and_module_entry() -> None:
    done = child("--version")
    assert done.returncode == 0 and lens.__version__ in done.stdout


# --- verbs on a real, small model -------------------------------------------------------------


def test_probe_and_inspect(place: Path) -> None:
    assert (place / "space.safetensors").is_file() and (place / "space.json").is_file()
    shown = run("inspect", place / "space.safetensors")
    assert shown.exit_code == 0 and "swh_Latn" in shown.stdout and "block.0" in shown.stdout
    data = json.loads(run("inspect", place / "space.safetensors", "--json").stdout)
    assert data["counts"] == {"eng_Latn": 4, "spa_Latn": 4, "swh_Latn": 4}
    site = data["sites"]["final"]
    assert len(site["singular_values"]) >= 2 and site["rank"] >= 1 and site["rank_reason"]


def test_train_writes_a_checkpoint_that_loads(place: Path, tmp_path: Path) -> None:
    common = ("train", "--model", place / "model", "--space", place / "space.safetensors",
              "--prompts", place / "text", "--out", tmp_path / "out", "--steps", 2)  # fmt: skip
    done = run(*common, "--layers", "-1:", "--strength", "spa_Latn=1.5,sw=2", "--batch_size", 2)
    assert done.exit_code == 0, done.output
    assert "2 steps" in done.stdout and str(tmp_path / "out") in done.stdout
    names = {item.name for item in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "metrics.jsonl", "reproduce.json"} <= names
    facts = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert facts["strength"] == {"spa_Latn": 1.5, "swh_Latn": 2.0} and facts["layers"] == [2]
    lens.models.load(tmp_path / "out")
    refused(*common, words="--force")
    again = run(*common, "--force", "--json", "--langs", "es")
    assert json.loads(again.stdout)["steps"] == 2
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_train_adapters_from_a_kept_cache(place: Path, tmp_path: Path) -> None:
    settings = {"modules": "attention", "lora": 2, "dora": True, "cache": str(tmp_path / "cache"),
                "max-memory": "1GB", "steps": 2, "keep_in_memory": True}  # fmt: skip
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    common = ("train", "--model", place / "model", "--space", place / "space.safetensors",
              "--prompts", place / "text", "--config", tmp_path / "train.yaml")  # fmt: skip
    logs = []
    for name in ("one", "two"):
        assert run(*common, "--out", tmp_path / name).exit_code == 0
        logs.append((tmp_path / name / "metrics.jsonl").read_text())
        adapter = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert adapter["use_dora"] and adapter["r"] == 2 and adapter["lora_alpha"] == 4
    assert logs[0] == logs[1]
    assert len(list((tmp_path / "cache").iterdir())) == 3  # one file per language
    facts = json.loads((tmp_path / "two" / "reproduce.json").read_text())
    assert facts["trained"]["modules"] == "attention"


def test_steer_answers_and_compares(place: Path, tmp_path: Path) -> None:
    common = ("steer", "--model", place / "model", "--space", place / "space.safetensors",
              "--max-new-tokens", 6, "--json", "--compare")  # fmt: skip
    plain, moved = (
        json.loads(run(*common, "--lang", "es", "--prompt", "Where?", "--strength", s).stdout)
        for s in (0, 40)
    )
    assert plain[0]["plain"] == plain[0]["steered"] == moved[0]["plain"] != moved[0]["steered"]
    (tmp_path / "p.txt").write_text("Where?\n\nWho?\n", encoding="utf-8")
    lines = run(*common, "--method", "project", "--prompts", tmp_path / "p.txt", "--rank", 1)
    assert [row["prompt"] for row in json.loads(lines.stdout)] == ["Where?", "Who?"]
    refused(*common, words="--prompt TEXT")
    refused(*common, "--prompt", "Where?", words="--lang")
    refused(*common, "--prompt", "Where?", "--lang", "fr", words="fra_Latn")


def test_eval_measures(place: Path, tmp_path: Path) -> None:
    references = tmp_path / "references.jsonl"
    references.write_text("\n".join(['{"en": "bread", "es": ["pan"]}'] * 4), encoding="utf-8")
    common = ("eval", "--model", place / "model", "--prompts", place / "text",
              "--max-new-tokens", 4, "--limit", 2, "--out", tmp_path / "answers.json")  # fmt: skip
    shown = run(*common, "--references", references)
    assert shown.exit_code == 0, shown.output
    assert "Average" in shown.stdout and "Correct, in that language" in shown.stdout
    kept = json.loads((tmp_path / "answers.json").read_text())
    assert len(kept["answers"]) == 6 and kept["about"]["identifier"].startswith("py3langid")
    refused(*common, words="--force")
    data = json.loads(run(*common, "--force", "--json").stdout)
    assert {row["metric"] for row in data["rows"]} == {"fidelity"}
    refused(*common, "--force", "--identifier", "glotlid", words="expected one of")


def test_report_renders_again(tmp_path: Path) -> None:
    page = write_run(make_record(n=20), tmp_path / "run")
    first = page.read_text(encoding="utf-8")
    page.unlink()
    told = run("report", tmp_path / "run").stdout
    assert told.splitlines()[-1] == str(page) and "DiffMean steering" in told
    assert page.read_text(encoding="utf-8") == first
    assert run("report", tmp_path / "run" / "record.json", "--out", tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == first
    refused("report", tmp_path, words="record.json")
    refused("report", tmp_path / "absent", words="check the path")


def test_demo_writes_table_rows_and_page(tmp_path: Path, monkeypatch) -> None:
    asked = {}

    def instead(*, limit, seed, full):  # the run itself takes minutes
        asked.update(limit=limit, seed=seed, full=full)
        return make_record(n=limit)

    monkeypatch.setattr("lens.demo.run.run", instead)
    monkeypatch.setattr(
        "lens.demo.ability.run_ability", lambda *, limit, seed, full: make_record(n=limit)
    )
    out = tmp_path / "demo"
    shown = run("demo", "--out", out, "--limit", 40, "--seed", 3)
    assert shown.exit_code == 0, shown.output
    assert (out / "merging" / "report.html").is_file() and "merging/report.html" in shown.stdout
    shown = run("demo", "--out", out, "--limit", 40, "--seed", 3, "--no-second-act")
    assert shown.exit_code == 0, shown.output
    assert asked == {"limit": 40, "seed": 3, "full": False}
    assert "DiffMean steering" in shown.stdout and "report.html" in shown.stdout
    assert {item.name for item in out.iterdir()} == {"report.html", "results.json", "record.json"}
    rows = json.loads((out / "results.json").read_text())["rows"]
    fields = {"system", "language", "split", "metric", "value", "n", "low", "high", "seed"}
    assert all(set(row) == fields for row in rows)
    assert json.loads(run("demo", "--out", out, "--limit", 30, "--json").stdout)["rows"]
    for more, limit in (([], 200), (["--full"], 500)):
        assert run("demo", "--out", out, "--no-second-act", *more).exit_code == 0
        assert asked == {"limit": limit, "seed": 0, "full": bool(more)}
    (out / "mine.txt").write_text("keep")
    refused("demo", "--out", out, words="--force")
    assert (out / "mine.txt").exists()


def test_doctor(monkeypatch) -> None:
    found = json.loads(run("doctor", "--json").stdout)
    assert found["facts"]["lens"] == lens.__version__ and found["facts"]["C core"] == "loaded"
    assert {"numpy", "torch", "py3langid"} <= {p["name"] for p in found["packages"] if p["version"]}
    from lens.utils import installation

    real = installation._version
    monkeypatch.setattr(installation, "_version", lambda p: None if p == "torch" else real(p))
    assert 'pip install "lens-lm[hf]"' in run("doctor").stdout


# --- flags and configs ------------------------------------------------------------------------


def test_underscores_and_hyphens_are_the_same(place: Path) -> None:
    for flag in ("--max-tokens", "--max_tokens"):
        refused("probe", "--model", "x", "--data", place / "absent", "--out", "y", flag, 9,
                words="does not exist")  # fmt: skip


def test_strength_reads_numbers_pairs_and_mappings() -> None:
    read = TypeAdapter(Numbers).validate_python
    assert read("1.5") == 1.5
    assert read(2) == 2.0
    assert read("es=1, sw=2.5") == {"es": 1.0, "sw": 2.5}
    assert read({"es": 1}) == {"es": 1.0}


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("tran", "did you mean 'train'?"),
        ("train --modle x", "--model"),
        ("train", "--"),
        ("train --model m --space s --prompts p --out o --strength much", "spa_Latn=1.5"),
        ("train --model m --space s --prompts p --out o --losses push", "lens-paper"),
        ("train --model m --space absent.safetensors --prompts p --out o", "lens probe"),
        ("inspect absent.safetensors", "lens probe"),
        ("probe --model m --data absent --out o", "does not exist"),
        ("probe --model m --data absent --out o --batch-size many", "auto"),
        ("eval --model m --prompts absent", "does not exist"),
        ("steer --model m --space absent.safetensors --prompt a --lang es", "lens probe"),
        ("demo --limit 0", "greater than or equal to 1"),
        ("space showw", "did you mean 'show'?"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(arguments: str, words: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*arguments.split(), words=words)
    assert list(tmp_path.iterdir()) == []


def test_bad_models_and_layers(place: Path, tmp_path: Path) -> None:
    train = ("train", "--space", place / "space.safetensors", "--prompts", place / "text",
             "--out", tmp_path / "out")  # fmt: skip
    refused(*train, "--model", tmp_path, words="config.json")
    refused(*train, "--model", place / "other", words="another model")
    refused(*train, "--model", place / "model", "--layers", "7:9", words="3 blocks")
    refused(*train, "--model", place / "model", "--strength", "es=1", words="swh_Latn")
    refused(*train, "--model", place / "model", "--langs", "fr", words="fra_Latn")
    refused(*train, "--model", place / "model", "--modules", "attn", words="self_attn.q_proj")
    refused(*train, "--model", place / "model", "--dora", words="--lora RANK")
    refused(*train, "--model", place / "model", "--max-memory", "much", words="12GB")
    refused(*train, "--model", place / "model", "--max-memory", "90kB", words="train fewer blocks")
    refused("probe", "--model", place / "model", "--data", place / "text", "--pivot", "fr",
            "--out", tmp_path / "s.safetensors", words="fra_Latn")  # fmt: skip
    refused("probe", "--model", place / "model", "--data", place / "text", "--langs", "en",
            "--out", tmp_path / "s.safetensors", words="one language")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_verbose_shows_the_traceback_and_quiet_keeps_the_message() -> None:
    loud = child("inspect", "absent.safetensors", "-v")
    assert loud.returncode == 2 and "Traceback" in loud.stderr and loud.stdout == ""
    still = child("inspect", "absent.safetensors", "--quiet")
    assert still.returncode == 2 and still.stderr.startswith("lens: ")
    assert len(still.stderr.strip().splitlines()) == 1


def test_interrupt_exits_130_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lens.demo.run.run", stop)
    refused("demo", "--out", tmp_path / "w", words="interrupted", code=130)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_is_one_message(tmp_path: Path, monkeypatch) -> None:
    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("lens.demo.run.run", full)
    refused("demo", "--out", tmp_path / "w", words="No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_export_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    refused("demo", "export", "--out", tmp_path / "w", words="--force")
