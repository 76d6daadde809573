"""Plans of probes: parts against settings, disk against what is written, time against rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lens.models.architecture import locate
from lens.models.batching import BatchLimit, batches, tokens_within
from lens.models.checkpoint import read_checkpoint
from lens.models.hidden_states import CaptureJournal, SpilledStates
from lens.models.loading import load
from lens.planning.checks import ProbeFindings
from lens.planning.config import ProbePlanSettings
from lens.planning.model import count, structure_of
from lens.planning.plan import plan_probing
from lens.planning.resources import LIBRARIES, ProbeSizing, Rates, moments_bytes
from lens.space.probe import probe
from tests.helpers import tiny

ROWS = {
    "en": [f"{i} of these rows " * (1 + i % 5) for i in range(40)],
    "es": [f"{i} de estas filas " * (1 + i % 4) for i in range(40)],
    "sw": [f"mistari {i} " * (1 + i % 3) for i in range(40)],
}
RATES = Rates(1e9, reading=1e8)


def save_llama(place: Path) -> Path:
    """Save a Llama of width 64, wide enough for numbers to outweigh their names."""
    made = tiny.model(
        hidden_size=64, intermediate_size=96, max_position_embeddings=256, num_key_value_heads=4
    )
    made.save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a checkpoint that is only read."""
    return save_llama(tmp_path_factory.mktemp("model") / "llama")


def memory(folder, rows=ROWS, **given):
    plan = plan_probing(folder, rows, rates=None, **given)
    assert plan.errors == ()
    return {phase.name: phase.parts for phase in plan.memory}


def sizing_of(folder, rows, **options):
    found = ProbeFindings(read_checkpoint(folder), ProbePlanSettings(**options))
    found.check(rows)
    return ProbeSizing(found, found.structure, found.lengths, found.limit)


# ---------------------------------------------------------------- memory


def test_each_part_follows_from_the_settings(model):
    structure = structure_of(read_checkpoint(model))
    block = 4 * structure.of_block[0]
    around = 4 * (count(structure.embedding) + count(structure.rest))
    whole = memory(model)
    assert whole["load"]["libraries"] == LIBRARIES
    assert whole["load"]["weights"] == 4 * (structure.parameters - count(structure.embedding))
    assert whole["probe"]["weights"] == around + 3 * block
    assert whole["probe"]["pooled states"] == 4 * 64 * 8 * (40 + 32)
    assert whole["probe"]["moments"] == 4 * 3 * (2 * 64 + 2) * 8
    layered = memory(model, layer_by_layer=True)
    assert layered["load"]["weights"] == block
    assert layered["probe"]["weights"] == around + block
    assert layered["probe"]["pooled states"] == 64 * 8 * (40 + 32)
    assert layered["probe"]["activations"] > whole["probe"]["activations"]
    few = memory(model, batch_size=4)["probe"]
    assert few["activations"] < whole["probe"]["activations"] / 4
    short = memory(model, max_tokens=20)["probe"]
    assert short["activations"] < whole["probe"]["activations"] / 3
    first = memory(model, sites="0")["probe"]
    assert first["weights"] == around + block
    assert first["moments"] == whole["probe"]["moments"] // 4
    converted = memory(model, dtype="bfloat16")
    assert converted["load"]["pages of the files"] == 4 * structure.parameters
    assert converted["save"]["weights"] == 2 * structure.parameters
    assert "weights" not in whole["save"]
    one = memory(model, dtype="bfloat16", layer_by_layer=True)
    assert one["load"]["pages of the files"] == 4 * max(block // 4, 300 * 64)
    assert one["load"]["weights"] == around // 2 + max(block // 2, 2 * 300 * 64)


@pytest.mark.parametrize("rows", [1024, 2500])
def test_moments_are_those_that_are_held(model, rows):
    from lens.pooling import StreamingMoments

    held = StreamingMoments(3)
    held.update(torch.zeros(rows, 3), 0)
    assert moments_bytes(rows, 3) == sum(array.nbytes for array in held.to_arrays().values())


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_batches_are_those_of_the_probe(model, monkeypatch, layer_by_layer):
    from lens.models import hidden_states

    seen = []
    whole = hidden_states.Job._attempt

    def note(self, group, chosen, step):
        seen.append((len(chosen), max(len(group.rows[i].ids) for i in chosen)))
        return whole(self, group, chosen, step)

    monkeypatch.setattr(hidden_states.Job, "_attempt", note)
    loaded, tokenizer = load(model, layer_by_layer=layer_by_layer)
    probe(loaded, tokenizer, ROWS, batch_size=7, sites="final")
    plan = plan_probing(
        model, ROWS, batch_size=7, sites="final", rates=None, layer_by_layer=layer_by_layer
    )
    passes = 4 if layer_by_layer else 1  # three blocks and the norm
    assert plan.rows is not None and len(seen) == passes * plan.rows["batches"]
    assert max(seen, key=lambda s: s[0] * s[1]) == tuple(plan.rows["largest_batch"])


def test_limits_of_tokens_shrink_batches():
    lengths = [9, 3, 5, 7] * 100
    every = list(batches(lengths, BatchLimit(32, 64)))
    assert sum(rows for rows, _ in every) == 400
    assert all(rows * tokens <= 64 for rows, tokens in every)
    assert list(batches([5, 90], BatchLimit(32, 64))) == [(1, 5), (1, 90)]


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_the_limit_is_that_of_the_probe(model, layer_by_layer):
    loaded, _ = load(model, layer_by_layer=layer_by_layer)
    tokens = tokens_within(4_000_000, loaded, locate(loaded), sites=4, rows=40)
    sizing = sizing_of(model, ROWS, max_memory="4MB", layer_by_layer=layer_by_layer)
    assert sizing.found.limit.tokens == tokens
    assert sizing.forward.nbytes < 4_000_000


# ---------------------------------------------------------------- disk


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_disk_is_what_is_written(model, tmp_path, monkeypatch, layer_by_layer):
    out, kept = tmp_path / "space.safetensors", tmp_path / "states"
    given = {"layer_by_layer": layer_by_layer, "keep_states": kept, "out": out}
    uses = {use.what: use for use in plan_probing(model, ROWS, rates=None, **given).disk}
    sizes = {"unfinished": 0, "spilled": 0}

    def watch(function):
        def watched(work, *args, **kwargs):
            function(work, *args, **kwargs)
            files = [path for path in work.path.rglob("*") if path.is_file()]
            hidden = sum(path.stat().st_size for path in files if path.name.startswith("hidden"))
            every = sum(path.stat().st_size for path in files)
            sizes["unfinished"] = max(sizes["unfinished"], every - hidden)
            sizes["spilled"] = max(sizes["spilled"], hidden)

        return watched

    monkeypatch.setattr(CaptureJournal, "note", watch(CaptureJournal.note))
    monkeypatch.setattr(CaptureJournal, "finish_unit", watch(CaptureJournal.finish_unit))
    loaded, tokenizer = load(model, layer_by_layer=layer_by_layer)
    work = Path(uses["unfinished probe"].where)
    assert work == tmp_path / "space.safetensors.unfinished"
    space = probe(loaded, tokenizer, ROWS, keep_states=kept, work=work)
    space.save(out)
    states = sum(path.stat().st_size for path in kept.glob("*.safetensors"))
    assert uses["kept states"].nbytes == states and uses["kept states"].stays
    spilled = uses["hidden states"].nbytes if layer_by_layer else 0
    assert spilled == sizes["spilled"]
    assert uses["unfinished probe"].nbytes == pytest.approx(sizes["unfinished"], rel=0.3)
    lacking = sum(2 - fit.rank for fit in space.fit_all().values()) * 64 * 8
    written = out.stat().st_size + out.with_suffix(".json").stat().st_size
    assert uses["space"].nbytes - lacking == pytest.approx(written, rel=0.3)


def test_spilled_states_are_of_the_size_that_is_claimed(model, tmp_path):
    from lens.models.hidden_states import RowSet
    from lens.models.tokenization import EncodedRow

    rows = {"en": [[1] * 5, [1] * 9], "es": [[1] * 2, [1] * 3]}
    sizing = sizing_of(model, rows, layer_by_layer=True)
    sets = [
        RowSet(lang, [EncodedRow((1,) * n, 0, n) for n in lengths], 0)
        for lang, lengths in (("en", (5, 9)), ("es", (2, 3)))
    ]
    spilled = SpilledStates(sets, width=64, dtype=torch.float32, folder=tmp_path)
    spilled.close()
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sizing.spilled() == 2 * spilled.nbytes == written


# ---------------------------------------------------------------- work and time


def test_time_is_work_over_rates(model):
    plan = plan_probing(model, ROWS, rates=RATES)
    read, probing = plan.costs
    assert read.seconds == pytest.approx(read_checkpoint(model).nbytes / 1e8)
    assert probing.seconds == pytest.approx(probing.flops / 1e9)
    assert plan.time == pytest.approx(read.seconds + probing.seconds)
    assert plan.rows_per_second == pytest.approx(120 / probing.seconds)
    half = plan_probing(model, ROWS, rates=RATES, sites="0").costs[1]
    assert half.flops == pytest.approx(probing.flops / 3, rel=0.01)
    unknown = plan_probing(model, ROWS, rates=Rates(1e9))
    assert [cost.name for cost in unknown.costs] == ["probe"] and unknown.time is not None
    assert any("--reading" in note for note in unknown.notes)
    assert plan_probing(model, ROWS, rates=None).time is None


@pytest.mark.parametrize("kind", ["decoder", "encoder", "multimodal"])
def test_whatever_is_probed_is_planned_and_measured(model, tmp_path, kind):
    if kind != "decoder":
        made = tiny.encoder() if kind == "encoder" else tiny.multimodal()
        made.save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        model = tmp_path
    rows = {lang: texts[:3] for lang, texts in ROWS.items()}
    plan = plan_probing(model, rows)
    assert plan.problems == () and plan.notes == ()
    assert plan.rates is not None and plan.rates.source == "measured"
    assert plan.rates.forward > 0 and plan.rates.reading is not None
    assert plan.time is not None and plan.time > 0
    assert plan.rows_per_second is not None and plan.rows_per_second > 0


def test_a_plan_is_plain_data(model):
    content = json.loads(json.dumps(plan_probing(model, ROWS, rates=RATES).to_dict()))
    assert content["schema"] == "lens.plan/1" and content["job"] == "probe"
    assert content["ok"] is True and content["rows_per_second"] > 0
    assert [phase["name"] for phase in content["memory"]] == ["load", "probe", "save"]
    assert content["model"]["layers"] == [] and content["model"]["trained"] == 0
