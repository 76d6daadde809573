"""Plans of probes that cannot be: every problem at once, large models unread, the command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lens.errors import InputError
from lens.models.hidden_states import CaptureJournal
from lens.planning.plan import plan_probing
from lens.utils.settings import options_of
from tests.helpers import tiny
from tests.helpers.command import run
from tests.unit.planning.test_probe_plan import ROWS, save_llama
from tests.unit.planning.test_train_problems import change_config, make_sparse, shard_of, without


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a checkpoint that is only read."""
    return save_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def broken(tmp_path):
    """A model in several files, to be damaged."""
    place = tmp_path / "broken"
    tiny.model().save_pretrained(place, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(place)
    return place


def problems(*given, **settings):
    found = plan_probing(*given, rates=None, **settings).problems
    return {(p.level, p.about): p.text for p in found}


@pytest.mark.parametrize("quick", [False, True])
def test_a_sound_probe_has_no_problems(model, tmp_path, quick):
    rows = {"en": ["one row", "another"], "es": ["una fila", "otra"]}
    assert problems(model, rows, out=tmp_path / "s.safetensors", quick=quick) == {}


@pytest.mark.parametrize("quick", [False, True])
def test_everything_that_is_wrong_is_said_at_once(broken, tmp_path, quick):
    name = "model.layers.1.mlp.up_proj.weight"
    without(shard_of(broken, name), name)
    change_config(broken, vocab_size=333)
    (broken / "tokenizer_config.json").unlink()
    (broken / "tokenizer.json").unlink()
    out, kept = tmp_path / "space.safetensors", tmp_path / "kept"
    out.write_text("there")
    kept.mkdir()
    CaptureJournal(tmp_path / "space.safetensors.unfinished").begin({})
    found = plan_probing(
        broken, {"en": ["a", "b"], "es": ["c"]}, sites="7:9", pivot="sw", batch_size=0,
        pooling="most", prompts={"en": ["x"]}, keep_states=kept, out=out, max_memory="lots",
        states_dtype="float16", rates=None, quick=quick,
    )  # fmt: skip
    text = "\n".join(f"{problem.about}: {problem.text}" for problem in found.errors)
    for words in (
        "up_proj", "index.json: the index names model.layers.1.mlp.up_proj.weight",
        "architecture: the config says vocab_size 333", "reach outside the model",
        "rows: rows are not parallel, row counts are eng_Latn: 2, spa_Latn: 1",
        "rows: too few rows of spa_Latn", "rows: the pivot swh_Latn has no rows",
        "no tokenizer beside the config", "batch_size: got 0", "pooling: got 'most'",
        "prompts: prompts belong to role assistant", "out: " + str(out) + " exists already",
        "an unfinished probe is in", "states: " + str(kept) + " exists already",
        "max_memory: 'lots' is not a size",
    ):  # fmt: skip
        assert words in text
    assert found.memory == () and "Traceback" not in text


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_limits_that_weights_or_rows_pass(model, layer_by_layer):
    given = {"layer_by_layer": layer_by_layer}
    assert "the weights take" in problems(model, ROWS, max_memory="50kB", **given)[
        "error", "memory"
    ]  # fmt: skip
    whole = problems(model, ROWS, max_memory="640kB", sites="final")
    assert "but the longest row has" in whole["error", "memory"]


def test_rows_longer_than_the_positions(model):
    long = {**ROWS, "en": [*ROWS["en"][:-1], "x" * 300]}
    text = problems(model, long)["error", "rows"]
    assert "1 of 120 rows are longer than the 256 positions" in text and "301 tokens" in text
    assert problems(model, long, max_tokens=256) == {}
    guessed = {**ROWS, "en": [*ROWS["en"][:-1], "x" * 3000]}
    assert "longer than the 256" in problems(model, guessed, quick=True)["warning", "rows"]


def test_rows_of_another_role(model):
    prompts = {"en": ["say it"], "es": ["dilo"]}
    rows = {lang: ROWS[lang] for lang in prompts}
    assert problems(model, rows, role="assistant", prompts=prompts) == {}
    assert "(--prompts)" in problems(model, rows, role="assistant")["error", "prompts"]
    assert "row 0 has" in problems(model, rows, role="user", max_tokens=20)["error", "rows"]
    assert "--keep-states" in problems(model, rows, select_rank=True)["error", "states"]


def test_packed_weights_layer_by_layer(model, tmp_path):
    place = tmp_path / "config.json"
    settings = json.loads((model / "config.json").read_text())
    packed = {**settings, "quantization_config": {"quant_method": "gptq"}}
    place.write_text(json.dumps(packed))
    found = problems(place, ROWS, layer_by_layer=True, quick=True)
    assert "packed weights" in found["error", "dtype"]


def test_a_machine_that_is_too_small(model, monkeypatch):
    from lens.planning import checks

    monkeypatch.setattr(checks, "free_memory", lambda: 1000)
    monkeypatch.setattr(checks, "free_disk", lambda _folder: 10)
    found = problems(model, ROWS, layer_by_layer=True)
    assert "needs" in found["error", "memory"] and "--batch-size" in found["error", "memory"]
    assert "hidden states" in found["error", "disk"]
    assert "--layer-by-layer" in problems(model, ROWS)["error", "memory"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts bytes read through /proc")
def test_seventy_billion_parameters_are_planned_without_being_read(tmp_path):
    total = make_sparse(tmp_path / "big")
    code = """
import json, sys
from pathlib import Path
from lens.planning.plan import plan_probing

rows = {"en": [[3] * 90] * 500, "es": [[3] * 120] * 500}
read = lambda: int(Path("/proc/self/io").read_text().split()[1])
def plan(**given):
    return plan_probing(sys.argv[1], rows, rates=None, quick=True, **given)
plan()
before = read()
whole, layered = plan(), plan(layer_by_layer=True)
print(json.dumps({"read": read() - before, "torch": "torch" in sys.modules,
    "whole": whole.to_dict(), "layered": layered.to_dict()}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big")],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert not found["torch"] and found["read"] < 4e6
    whole, layered = found["whole"], found["layered"]
    assert whole["model"]["parameters"] == 68_976_648_192
    assert whole["peak_bytes"] > 0.98 * total
    block, embedding = 2 * 855_654_400, 2 * 32_000 * 8192
    (probing,) = (phase for phase in layered["memory"] if phase["name"] == "probe")
    assert probing["parts"]["weights"] == block + embedding + 2 * 8192
    uses = {use["what"]: use["nbytes"] for use in layered["disk"]}
    assert uses["hidden states"] == 2 * 500 * (90 + 120) * 8192 * 2
    assert layered["costs"][0]["traffic"] == total
    assert whole["seconds"] < 1 and layered["seconds"] < 1


# ---------------------------------------------------------------- the command


@pytest.fixture
def text(tmp_path):
    place = tmp_path / "text"
    place.mkdir()
    for code, rows in ROWS.items():
        (place / f"{code}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return place


def test_command_shows_tables(model, text):
    shown = run("plan", "probe", "--model", model, "--data", text, "--flops", 1e9, "--reading", 1e8,
                "--layer-by-layer")  # fmt: skip
    assert shown.exit_code == 0, shown.output
    for words in ("40 rows in 3 languages", "one block at a time", "Memory: ", "activations",
                  "hidden states (temporary)", "rows per second", "100.00 MB",
                  "rates from the command line", "No problem was found."):  # fmt: skip
        assert words in shown.stdout


def test_command_gives_json_and_an_exit_code(model, text):
    common = ("plan", "probe", "--model", model, "--data", text, "--json")
    content = json.loads(run(*common, "--quick", "--max-memory", "1GB").stdout)
    assert content["ok"] is True and content["job"] == "probe"
    assert content["rows"]["languages"] == ["eng_Latn", "spa_Latn", "swh_Latn"]
    wrong = run(*common, "--no-time", "--sites", "9:", "--pivot", "fr")
    assert wrong.exit_code == 2
    about = {problem["about"] for problem in json.loads(wrong.stdout)["problems"]}
    assert about >= {"sites", "rows"}
    assert run(*common, "--reading", 5).exit_code == 2
    assert run("plan", "probe", "--states", text).exit_code == 2
    assert run("plan", "probe", "--model", model).exit_code == 2
    printed = run(*common, "--limit", 7, "--print-config")
    assert printed.exit_code == 0 and "limit: 7" in printed.stdout


def test_every_option_of_a_probe_can_be_planned():
    from lens.cli import plan, probe

    def options(command):
        return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}

    assert options(probe.probe) < options(plan.probe)
    assert not any(
        option.field.is_required() for option in options_of(plan.PlanProbeCommand).values()
    )


def test_an_unknown_dtype_is_refused(model):
    with pytest.raises(InputError, match="unknown dtype"):
        plan_probing(model, ROWS, dtype="int3")
