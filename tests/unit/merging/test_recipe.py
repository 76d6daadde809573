"""Training key neurons, and the recipe that goes from corpora to a merged model."""

import json

import pytest
import torch
import yaml
from click.testing import CliRunner

from lens.cli.app import main
from lens.errors import InputError
from lens.merging.config import read_recipe
from lens.merging.operations import extract, merge
from lens.merging.recipe import run_recipe
from lens.merging.sources import read_key_neurons
from lens.models.loading import load
from lens.training.finetune import FinetuneSettings, examples, finetune_corpus, read_rows, read_text
from lens.training.key_neurons import put_back
from tests.helpers import maec_files as files
from tests.helpers import tiny

ROWS = [(f"what is {a} and {b}", f"{a} {b}") for a in "abcd" for b in "efgh"]
TEXT = [f"{name} eats {thing} in the {place}" for name in ("Ana", "Ben", "Ida")
        for thing in ("rice", "bread") for place in ("city", "forest", "valley")]  # fmt: skip
BRIEF = FinetuneSettings(steps=3, batch_size=4, learning_rate=1e-2, weight_decay=0.1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.model().save_pretrained("base")
    tiny.tokenizer().save_pretrained("base")
    lines = [json.dumps({"prompt": p, "answer": a}) for p, a in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    (tmp_path / "general.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
    return tmp_path


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def located(share=0.05, unit="element", dtype="float32"):
    """Train briefly, and extract the places that moved most."""
    net, tokenizer = load("base", dtype=dtype)
    finetune_corpus(net, tokenizer, examples(tokenizer, ROWS), settings=BRIEF).save("located")
    config = {
        "merge_method": "maec", "base_model": "base", "abilities": [{"trained": "located"}],
        "parameters": {"k1": share, "unit": unit},
    }  # fmt: skip
    extract(config, "keys.safetensors")
    return read_key_neurons("keys.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("unit", ["element", "row"])
def test_masked_training_leaves_all_other_elements_bit_equal(folder, unit, dtype):
    keys = located(unit=unit)
    net, tokenizer = load("base", dtype=dtype)
    before = state(net)
    result = finetune_corpus(net, tokenizer, examples(tokenizer, ROWS), settings=BRIEF, keys=keys)
    places = keys.of(net)
    assert set(result.changed) == set(places) and 0 < keys.count
    moved = 0
    for name, parameter in net.named_parameters():
        same = parameter.reshape(-1).view(torch.uint8) == before[name].reshape(-1).view(torch.uint8)
        same = same.view(parameter.numel(), -1).all(1)
        allowed = torch.zeros(parameter.numel(), dtype=torch.bool)
        if name in places:
            allowed[places[name]] = True
        assert bool(same[~allowed].all())
        moved += int((~same[allowed]).sum())
    assert moved > 0.5 * keys.count
    assert result.log[-1]["loss"] < result.log[0]["loss"]


def test_masked_training_is_adamw_on_the_key_elements():
    """The same as a dense AdamW whose other gradients are zero, up to weight decay, which it has
    on key elements only."""
    net, tokenizer = tiny.model(), tiny.tokenizer()
    from lens.training.key_neurons import KeyNeurons

    before = state(net)
    rng = torch.Generator().manual_seed(0)
    places = {
        n: torch.randperm(p.numel(), generator=rng)[: p.numel() // 3].sort().values
        for n, p in net.named_parameters()
    }
    keys = KeyNeurons(places, {n: tuple(p.shape) for n, p in net.named_parameters()}, "")
    rows = examples(tokenizer, ROWS[:4])
    once = FinetuneSettings(
        steps=1, batch_size=4, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1e9
    )
    finetune_corpus(net, tokenizer, rows, settings=once, keys=keys)
    masked = state(net)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(before[name])
    finetune_corpus(net, tokenizer, rows, settings=once)
    for name, parameter in net.named_parameters():
        at = places[name]
        a, b = masked[name].reshape(-1)[at], parameter.reshape(-1)[at]
        assert torch.allclose(a, b, atol=1e-6)


def test_reverting_keeps_what_full_training_made_of_the_key_elements(folder):
    keys = located()
    net, tokenizer = load("base", dtype="float32")
    before = state(net)
    rows = examples(tokenizer, ROWS)
    finetune_corpus(net, tokenizer, rows, settings=BRIEF)
    full = state(net)
    other, _ = load("base", dtype="float32")
    result = finetune_corpus(other, tokenizer, rows, settings=BRIEF, keys=keys, how="revert")
    places = keys.of(other)
    for name, parameter in other.named_parameters():
        expected = before[name].clone()
        if name in places:
            expected.view(-1)[places[name]] = full[name].view(-1)[places[name]]
        assert torch.equal(parameter, expected), name
    assert result.about["keys"] == {"sha256": keys.sha256, "n": keys.count, "how": "revert"}
    parameters = dict(other.named_parameters())
    put_back(parameters, before, {})
    assert all(torch.equal(p, before[n]) for n, p in parameters.items())


def test_replay_is_the_stated_share_of_every_batch(monkeypatch):
    net, tokenizer = tiny.model(), tiny.tokenizer()
    from lens.training import finetune

    seen = []
    batch = finetune._Rows.batch

    def noted(rows, drawn, *rest):
        seen.append((sum(i < rows.own for i in drawn), sum(i >= rows.own for i in drawn)))
        return batch(rows, drawn, *rest)

    monkeypatch.setattr(finetune._Rows, "batch", noted)
    settings = FinetuneSettings(
        steps=5, batch_size=8, replay_share=0.25, learning_rate=1e-3, row_tokens=16
    )
    general = examples(tokenizer, TEXT, row_tokens=16)
    rows = examples(tokenizer, ROWS)
    log = finetune_corpus(net, tokenizer, rows, settings=settings, replay=general).log
    assert seen == [(6, 2)] * 5
    assert all(0 < entry["loss_replay"] < entry["loss"] for entry in log)
    for wrong in ({"replay": general, "settings": BRIEF}, {"settings": settings}):
        with pytest.raises(InputError, match="replay needs both"):
            finetune_corpus(net, tokenizer, rows, **wrong)


def test_passes_of_a_batch_add_up_to_it():
    losses = []
    for size in (None, 3):
        net, tokenizer = tiny.model(), tiny.tokenizer()
        settings = FinetuneSettings(
            steps=4,
            batch_size=8,
            replay_share=0.25,
            micro_batch_size=size,
            learning_rate=1e-2,
            row_tokens=16,
        )
        general = examples(tokenizer, TEXT, row_tokens=16)
        rows = examples(tokenizer, ROWS)
        log = finetune_corpus(net, tokenizer, rows, settings=settings, replay=general).log
        losses.append([entry["loss"] for entry in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_text_is_put_end_to_end_and_cut():
    tokenizer = tiny.tokenizer()
    found = examples(tokenizer, ["abc", "defgh"], row_tokens=4)
    flat = [i for ids in found.ids for i in ids]
    whole = [*tokenizer("abc")["input_ids"], 2, *tokenizer("defgh")["input_ids"], 2]
    assert flat == whole[: len(flat)] and len(flat) == 12
    assert all(list(at) == [0, 1, 2] for at in found.predicting)
    assert len(examples(tokenizer, ["abc"], row_tokens=512)) == 1


def test_only_the_answer_and_its_end_are_learnt():
    tokenizer = tiny.tokenizer()
    found = examples(tokenizer, [("hi", "yes")])
    ids, at = found.ids[0], found.predicting[0]
    assert tokenizer.decode([ids[i + 1] for i in at]) == "yes</s>"
    assert at.stop == len(ids) - 1


def test_bad_input_is_refused(folder):
    (folder / "bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\nno\n')
    with pytest.raises(InputError, match="line 2, 3 of 2 in all"):
        read_rows("bad.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_rows("missing.jsonl")
    with pytest.raises(InputError, match="holds no text"):
        read_text("bad.jsonl")
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="holds no text"):
        read_text("empty.txt")
    with pytest.raises(InputError, match="no file of this version"):
        read_key_neurons("base/model.safetensors")
    text = examples(tiny.tokenizer(), ["abc " * 100], row_tokens=300)  # of 128 positions
    with pytest.raises(InputError, match="shorter with row_tokens"):
        finetune_corpus(tiny.model(), tiny.tokenizer(), text, settings=FinetuneSettings(steps=1))
    keys = located()
    other = tiny.model(hidden_size=16)
    with pytest.raises(InputError, match="of another model"):
        finetune_corpus(
            other, tiny.tokenizer(), examples(tiny.tokenizer(), ROWS), settings=BRIEF, keys=keys
        )


def test_a_training_that_diverges_leaves_the_model_as_it_was():
    net, tokenizer = tiny.model(), tiny.tokenizer()
    before = state(net)
    wild = FinetuneSettings(steps=9, batch_size=4, learning_rate=1e30)
    with pytest.raises(InputError, match="diverged"):
        finetune_corpus(net, tokenizer, examples(tokenizer, ROWS), settings=wild)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def recipe(**changes):
    values = {
        "base_model": "base", "seed": 1,
        "training": {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "row_tokens": 16},
        "ability": {
            "rows": "rows.jsonl", "replay": "general.jsonl", "training": {"replay_share": 0.25},
            "locate": {"steps": 2},
        },
        "pivot": {"text": "general.jsonl"},
        "languages": [{"name": "swh_Latn", "text": "text.txt", "mu": 0.5}],
        "parameters": {
            "k1": 0.2, "k2": 0.5, "alpha": 0.8, "beta": 0.2, "gamma": 0.9, "eta": 0.7
        },
        "out_dtype": "float32",
    }  # fmt: skip
    return values | changes


def by_hand():
    """The same steps with the verbs."""
    how = ["--steps", "3", "--batch-size", "4", "--lr", "0.01", "--row-tokens", "16",
           "--dtype", "float32", "--seed", "1", "--model", "base"]  # fmt: skip
    replay = ["--replay", "general.jsonl", "--replay-share", "0.25"]
    calls = [
        ["maec", "train", *how, "--rows", "rows.jsonl", *replay, "--steps", "2", "--out", "h1"],
        ["extract", "--base-model", "base", "--trained", "h1", "--param", "k1=0.2",
         "--out", "hk.safetensors"],
        ["maec", "train", *how, "--rows", "rows.jsonl", *replay, "--keys", "hk.safetensors",
         "--out", "hA"],
        ["maec", "train", *how, "--text", "general.jsonl", "--out", "hc"],
        ["maec", "train", *how, "--text", "text.txt", "--out", "hl"],
        ["merge", "--method", "maec", "--base-model", "base", "--trained", "hA", "--located", "h1",
         "--pivot-model", "hc", "--language", "hl=0.5", "--param", "k1=0.2", "--param", "k2=0.5",
         "--param", "alpha=0.8", "--param", "beta=0.2", "--param", "gamma=0.9",
         "--param", "eta=0.7", "--out-dtype", "float32", "--seed", "1", "--out", "hm"],
    ]  # fmt: skip
    for call in calls:
        done = CliRunner().invoke(main, [*call, "--quiet"])
        assert done.exit_code == 0, done.output


def test_one_config_makes_what_the_steps_by_hand_make(folder):
    (folder / "maec.yaml").write_text(yaml.safe_dump(recipe()))
    done = CliRunner().invoke(main, ["maec", "run", "-C", "maec.yaml", "--out", "out", "--json"])
    assert done.exit_code == 0, done.output
    stages = json.loads(done.stdout)["stages"]
    assert [stage["name"] for stage in stages][:2] == ["located", "keys"]
    assert not any(stage["kept"] for stage in stages)
    by_hand()
    pairs = {"located": "h1", "ability": "hA", "pivot": "hc", "languages/swh_Latn": "hl",
             "merged": "hm"}  # fmt: skip
    for name, hand in pairs.items():
        assert files.raw_bits(folder / "out" / name) == files.raw_bits(folder / hand), name
    assert (
        read_key_neurons("out/keys.safetensors").count == read_key_neurons("hk.safetensors").count
    )
    model, _ = load("out/merged")
    assert model.dtype == torch.float32
    assert files.raw_bits(folder / "base") != files.raw_bits(folder / "out" / "merged")


def kept(result):
    return [stage.name for stage in result.stages if stage.kept]


def test_finished_stages_are_kept_and_changed_ones_made_again(folder):
    first = run_recipe(recipe(), "out")
    assert kept(first) == [] and len(first.stages) == 6
    bits = files.raw_bits(folder / "out" / "merged")
    assert kept(run_recipe(recipe(), "out")) == [stage.name for stage in first.stages]
    # another merge: trained models stay
    other = recipe(parameters=recipe()["parameters"] | {"gamma": 0.5})
    assert kept(run_recipe(other, "out")) == [s.name for s in first.stages if s.name != "merged"]
    assert files.raw_bits(folder / "out" / "merged") != bits
    # a damaged stage is made again, to the same bits, so that the merge is kept
    weights = folder / "out" / "located" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert "located" not in kept(run_recipe(other, "out"))
    # another text: its model and the merge
    (folder / "text.txt").write_text("\n".join(reversed(TEXT)))
    assert kept(run_recipe(other, "out")) == ["located", "keys", "ability", "pivot"]
    assert run_recipe(recipe(), "out").merged == "out/merged"


def test_only_a_recipe_of_this_version_is_resumed(folder):
    (folder / "out").mkdir()
    (folder / "out" / "precious").write_text("x")
    with pytest.raises(InputError, match="is no folder of lens maec run; choose another"):
        run_recipe(recipe(), "out")
    (folder / "out" / "stages.json").write_text("{}")
    with pytest.raises(InputError, match=r"format of an earlier version.*choose another folder"):
        run_recipe(recipe(), "out")
    assert {item.name for item in (folder / "out").iterdir()} == {"precious", "stages.json"}


def test_all_parameters_without_keys(folder):
    plain = recipe(parameters={}, pivot=None)
    plain["ability"] = {"rows": "rows.jsonl", "how": "all"}
    result = run_recipe(plain, "out")
    assert [stage.name for stage in result.stages] == ["ability", "languages/swh_Latn", "merged"]
    config = {
        "merge_method": "task_arithmetic", "base_model": "base", "out_dtype": "float32",
        "models": [{"model": "out/ability", "parameters": {"weight": 1.0}},
                   {"model": "out/languages/swh_Latn", "parameters": {"weight": 0.5}}],
    }  # fmt: skip
    merge(config, "sum")
    a, b = files.read(folder / "out" / "merged"), files.read(folder / "sum")
    assert all(abs(a[name] - b[name]).max() < 1e-6 for name in a)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"training": {"stepps": 3}}, "stepps"),
        ({"ability": {"rows": "rows.jsonl", "training": {"stepps": 3}}}, "nearest is 'steps'"),
        ({"languages": []}, "languages"),
        ({"languages": [{"name": "a/b", "text": "text.txt"}]}, "names of folders"),
        ({"ability": {"rows": "rows.jsonl", "text": "text.txt"}}, "exactly one of"),
        (
            {"ability": {"rows": "rows.jsonl", "training": {"replay_share": 0.5}}},
            "name it by replay",
        ),
        ({"parameters": {}}, "k1 is 1"),
        ({"training": {"batch_size": 4, "replay_share": 0.01}}, "at least one row of each"),
    ],
)
def test_a_bad_recipe_is_told_with_its_keys(folder, change, told):
    (folder / "maec.yaml").write_text(yaml.safe_dump(recipe(**change)))
    with pytest.raises(InputError, match=told):
        read_recipe("maec.yaml")
    done = CliRunner().invoke(main, ["maec", "run", "-C", "maec.yaml", "--out", "out"])
    assert done.exit_code == 2 and not (folder / "out").exists()


def test_a_folder_of_something_else_is_left_alone(folder):
    with pytest.raises(InputError, match="no folder of lens maec run"):
        run_recipe(recipe(), "base")
    done = CliRunner().invoke(main, ["maec", "train", "--model", "base", "--out", "x"])
    assert done.exit_code == 2 and "--rows" in done.output and not (folder / "x").exists()


def test_parts_of_the_blocks_are_trained_and_the_rest_keeps_its_bits(folder):
    settings = BRIEF.model_copy(update={"modules": "attention", "layers": "1:2"})
    net, tokenizer = load("base", dtype="float32")
    before = state(net)
    result = finetune_corpus(net, tokenizer, examples(tokenizer, ROWS), settings=settings)
    inside = [n for n in before if ".layers.1." in n and "self_attn" in n]
    assert set(result.changed) == set(inside)
    moved = [n for n, p in net.named_parameters() if not torch.equal(p, before[n])]
    assert moved == inside
    result.save("part")
    assert "Of the blocks 1:2, attention was trained." in (folder / "part/README.md").read_text()


def test_key_neurons_outside_of_what_is_trained_stay_as_they_are(folder):
    keys = located(share=0.5)
    net, tokenizer = load("base", dtype="float32")
    before = state(net)
    settings = BRIEF.model_copy(update={"modules": "mlp"})
    result = finetune_corpus(
        net, tokenizer, examples(tokenizer, ROWS), settings=settings, keys=keys
    )
    assert result.changed and all(".mlp." in name for name in result.changed)
    places = keys.of(net)
    for name, parameter in net.named_parameters():
        same = parameter.reshape(-1) == before[name].reshape(-1)
        if ".mlp." in name and name in places:
            same[places[name]] = True
        assert bool(same.all())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modules": "hands"}, "hands"),
        ({"modules": "full", "layers": "9"}, "9"),
    ],
)
def test_parts_that_there_are_not_are_told(folder, change, told):
    net, tokenizer = load("base", dtype="float32")
    settings = BRIEF.model_copy(update=change)
    with pytest.raises(InputError, match=told):
        finetune_corpus(net, tokenizer, examples(tokenizer, ROWS), settings=settings)


def test_layers_need_what_is_trained_of_them(folder):
    done = CliRunner().invoke(main, [
        "maec", "train", "--model", "base", "--rows", "rows.jsonl", "--steps", "1", "--layers",
        "1", "--out", "x",
    ])  # fmt: skip
    assert done.exit_code == 2 and "add modules: full" in done.output
