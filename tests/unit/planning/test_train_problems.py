"""Plans of what is wrong: every problem at once, large models without reading them, the command."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from lens.cli.app import main
from lens.errors import InputError
from lens.models.checkpoint import read_checkpoint
from lens.planning.checks import DiskUse, of_disk
from lens.planning.plan import plan_training
from lens.space.space import Space
from lens.training.config import Lora
from lens.utils.settings import options_of
from tests.helpers import tiny

PROMPTS = {"en": [[3] * 9] * 5, "es": [[3] * 12] * 5}
TEXT = {"en": ["what is red?", "who is it?"], "es": ["que es rojo?", "quien es?"]}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    tiny.model().save_pretrained(place, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(place)
    return place


def problems(*given, **settings):
    plan = plan_training(*given, rates=None, **settings)
    return {(problem.level, problem.about): problem.text for problem in plan.problems}


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(file, change):
    """Change the header of a safetensors file; the numbers stay."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def without(file, name):
    """Take a tensor out of a file, which stays well formed."""
    kept = load_file(file)
    del kept[name]
    save_file(kept, file, {"format": "pt"})


def shard_of(folder, tensor):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][tensor]


@pytest.mark.parametrize("quick", [False, True])
def test_a_sound_model_has_no_problems(folder, quick):
    assert problems(folder, TEXT, quick=quick) == {}


@pytest.mark.parametrize("quick", [False, True])
def test_everything_that_is_wrong_is_said_at_once(folder, quick):
    name = "model.layers.1.mlp.up_proj.weight"
    without(shard_of(folder, name), name)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    space = Space.from_states(
        {"final": {c: np.random.default_rng(0).normal(size=(9, 16)) for c in ("en", "fr")}},
        pivot="eng_Latn",
    )
    found = problems(
        folder, {"en": ["a", "b"], "es": ["c"]}, space=space, layers="7:9", lora=500,
        max_memory="10kB", quick=quick,
    )  # fmt: skip
    text = "\n".join(found.values())
    assert "up_proj" in found["error", "architecture"]
    assert "the index names model.layers.1.mlp.up_proj.weight" in found["error", "files"]
    assert "reach outside the model" in found["error", "layers"]
    assert "not parallel, row counts are eng_Latn: 2, spa_Latn: 1" in found["error", "prompts"]
    assert "the space has no spa_Latn" in found["error", "space"]
    assert "no tokenizer beside the config" in found["error", "tokenizer"]
    assert len(found) >= 6 and "Traceback" not in text
    second = problems(folder, PROMPTS, lora=500, max_memory="10kB", quick=quick)
    assert "LoRA rank 500" in second["error", "lora"]
    assert "pass --max-memory by" in second["error", "memory"]


def test_tensors_are_compared_with_the_architecture(folder):
    for i in range(3):  # missing in every block alike: only the architecture can tell
        name = f"model.layers.{i}.mlp.up_proj.weight"
        rewrite(shard_of(folder, name), lambda header, n=name: header.update(
            {f"{n}s": header.pop(n)}))  # fmt: skip
    (folder / "model.safetensors.index.json").unlink()
    found = problems(folder, TEXT)
    assert "missing for LlamaForCausalLM: layers.0.mlp.up_proj.weight" in found[
        "error", "architecture"
    ]  # fmt: skip
    assert "not part of LlamaForCausalLM" in found["warning", "architecture"]
    assert ("error", "architecture") not in problems(folder, TEXT, quick=True)


@pytest.mark.parametrize("quick", [False, True])
def test_sizes_that_the_config_does_not_have(folder, quick):
    change_config(folder, vocab_size=333, num_hidden_layers=4)
    plan = plan_training(folder, TEXT, rates=None, quick=quick)
    text = "\n".join(problem.text for problem in plan.errors)
    assert "the config promises 4 blocks, the files hold 3" in text
    assert "the config says vocab_size 333, the tensors 300" in text


def test_a_tokenizer_of_another_model(folder):
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["new"] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    found = problems(folder, PROMPTS, quick=True)
    assert "ids up to 4000, the embedding has 300 rows" in found["error", "tokenizer"]


def test_a_template_that_is_missing(folder):
    from lens.models.tokenization import ChatOptions

    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert "plain text" in problems(folder, TEXT)["warning", "tokenizer"]
    wanted = problems(folder, PROMPTS, chat=ChatOptions(template=True))
    assert "one was asked for" in wanted["error", "tokenizer"]


def test_damaged_files(folder):
    shards = sorted(folder.glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    shards[1].write_bytes(b"nothing of the kind")
    shards[2].unlink()
    text = "\n".join(read_checkpoint(folder).problems)
    assert f"{shards[0].name} is truncated" in text
    assert f"{shards[1].name}: 19 bytes, but its header claims" in text
    assert f"{shards[2].name} is missing" in text


def test_lying_headers(folder):
    first, second, *_ = sorted(folder.glob("*.safetensors"))

    def overlapping(header):
        entry = next(v for k, v in header.items() if k != "__metadata__")
        entry["data_offsets"] = [0, entry["data_offsets"][1] + 8]

    rewrite(first, overlapping)
    rewrite(second, lambda header: header.update(
        {"odd": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}))  # fmt: skip
    text = "\n".join(read_checkpoint(folder).problems)
    assert "but F32 of shape" in text and "tensor 'odd' is F33, expected one of" in text


def test_other_weights_and_none(folder, tmp_path):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    assert "no weights beside the config" in problems(folder, TEXT)["warning", "files"]
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "convert them to safetensors" in problems(folder, TEXT)["error", "files"]
    with pytest.raises(InputError, match="neither a folder nor a file"):
        plan_training(tmp_path / "nowhere", TEXT)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match="expected an object"):
        plan_training(tmp_path / "bad.json", TEXT)
    (tmp_path / "odd.json").write_text('{"model_type": "never-heard-of"}')
    assert "never-heard-of" in problems(tmp_path / "odd.json", TEXT)["error", "architecture"]
    with pytest.raises(InputError, match="unknown dtype"):
        plan_training(folder, TEXT, dtype="int3")


def test_adapters_on_nothing(folder):
    assert "selects none" in problems(folder, PROMPTS, lora=2, modules="norm")["error", "lora"]
    assert "selects nothing" in problems(folder, PROMPTS, modules="wings")["error", "layers"]
    assert ("error", "lora") not in problems(folder, PROMPTS, lora=Lora(2))


def test_a_disk_that_is_too_small(tmp_path):
    uses = [
        DiskUse("result", str(tmp_path / "not" / "there"), 70, 100, True),
        DiskUse("cached states", str(tmp_path), 50, 100, True),
    ]
    (found,) = of_disk(uses)
    assert "0.12 kB are needed where 0.1 kB are free" in found.text and "--cache" in found.text
    assert of_disk(uses[:1]) == []


# ---------------------------------------------------------------- models too large to read


def make_sparse(place: Path) -> int:
    """Write a checkpoint with the sizes of Llama 2 70B, of headers and holes; return its bytes."""
    place.mkdir()
    width, ff, blocks, vocabulary, kv = 8192, 28672, 80, 32000, 1024
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary,
        "hidden_size": width, "intermediate_size": ff, "num_hidden_layers": blocks,
        "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config))
    inside = {
        "self_attn.q_proj.weight": (width, width), "self_attn.k_proj.weight": (kv, width),
        "self_attn.v_proj.weight": (kv, width), "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (ff, width), "mlp.up_proj.weight": (ff, width),
        "mlp.down_proj.weight": (width, ff), "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }  # fmt: skip
    shards = [
        {
            f"model.layers.{i}.{name}": shape
            for i in range(at, at + 5)
            for name, shape in inside.items()
        }
        for at in range(0, blocks, 5)
    ]
    shards[0]["model.embed_tokens.weight"] = (vocabulary, width)
    shards[-1] |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    weight_map, total = {}, 0
    for number, shapes in enumerate(shards, start=1):
        file = place / f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, at = {}, 0
        for name, shape in shapes.items():
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            weight_map[name] = file.name
            at += size
        text = json.dumps(header).encode()
        with file.open("wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(8 + len(text) + at)
        total += at
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts bytes read through /proc")
def test_seventy_billion_parameters_are_planned_without_being_read(tmp_path):
    total = make_sparse(tmp_path / "big")
    assert total > 130e9

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    plan = plan_training(
        tmp_path / "big", PROMPTS, low_memory=True, rates=None, quick=True, out=tmp_path / "out"
    )
    assert read() - before < 2e6
    assert plan.model is not None and plan.model.parameters == 68_976_648_192
    assert plan.model.per_block == 855_654_400 and plan.model.layers == (78, 79)
    assert plan.peak > 16 * 2 * 855_654_400
    text = "\n".join(problem.text for problem in plan.errors)
    assert "tokenizer" in text and "lacks" not in text


# ---------------------------------------------------------------- the command


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def text(tmp_path):
    place = tmp_path / "text"
    place.mkdir()
    for code, rows in TEXT.items():
        (place / f"{code}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return place


def test_command_shows_tables(folder, text):
    shown = run("plan", "train", "--model", folder, "--prompts", text, "--flops", 1e9, "--steps", 3)
    assert shown.exit_code == 0, shown.output
    for words in ("blocks 1, 2", "Memory: ", "activations", "total", "result", "FLOPs",
                  "rates from the command line", "No problem was found."):  # fmt: skip
        assert words in shown.stdout


def test_command_gives_json_and_an_exit_code(folder, text):
    common = ("plan", "train", "--model", folder, "--prompts", text, "--json")
    content = json.loads(run(*common, "--quick").stdout)
    assert content["ok"] is True and content["seconds_estimated"] is None
    assert content["rows"]["languages"] == ["eng_Latn", "spa_Latn"]
    shutil.rmtree(folder / "chat_template.jinja", ignore_errors=True)
    wrong = run(*common, "--no-time", "--layers", "9:", "--langs", "en,sw")
    assert wrong.exit_code == 2
    found = json.loads(wrong.stdout)
    assert found["ok"] is False
    assert {problem["about"] for problem in found["problems"]} >= {"layers", "prompts"}
    assert run(*common, "--bandwidth", 5).exit_code == 2
    assert run(*common, "--dora").exit_code == 2


def test_every_option_of_training_can_be_planned():
    from lens.cli import plan, train

    def options(command):
        return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}

    assert options(train.train) < options(plan.train)
    found = options_of(plan.PlanTrainCommand)
    assert {name for name, one in found.items() if one.field.is_required()} == {"model", "prompts"}


def test_a_quick_plan_does_without_torch(folder):
    code = """
import sys
from lens.planning.plan import plan_training
rows = {"en": [[3] * 9] * 5, "es": [[3] * 12] * 5}
plan = plan_training(sys.argv[1], rows, rates=None, quick=True, lora=2)
assert plan.peak and not plan.errors, plan.errors
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
