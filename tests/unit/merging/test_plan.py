"""What merging reads: what differs between models, adapters, pickles; everything told at once."""

import collections
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from lens.errors import InputError
from lens.merging.config import parse_config
from lens.merging.operations import merge
from lens.merging.plan import plan_merge
from lens.models.checkpoint import Checkpoint, Files, read_header
from tests.helpers import maec_files as files


@pytest.fixture
def two(tmp_path):
    base = files.checkpoint(tmp_path / "base")
    return base, files.checkpoint(tmp_path / "other", seed=1, near=base)


def config(base, *models, method="task_arithmetic", **more):
    return {
        "merge_method": method, "base_model": str(base),
        "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in models], **more,
    }  # fmt: skip


def told(values):
    plan = plan_merge(values)
    plan.files.close()
    return "\n".join(plan.problems), "\n".join(plan.notes)


def test_no_problem_hides_another(two, tmp_path):
    base, other = two
    shapes = {n: s for n, s in files.SHAPES.items() if n != "model.norm.weight"}
    lacking = files.checkpoint(tmp_path / "lacking", shapes=shapes)
    values = config(base, other, lacking, "/no/such/model")
    values["parameters"] = {"weights": 1, "lambda": "much"}
    values["merge_method"] = "task_arithmetics"
    found, _ = told(values)
    for said in ("nearest is 'task_arithmetic'", "no model '/no/such/model'", "nearest is 'weight'",
                 "lacking lacks 'model.norm.weight'", "got 'much'"):  # fmt: skip
        assert said in found, said


def test_a_wrong_parameter_of_the_run_hides_nothing(two, tmp_path):
    shapes = {n: s for n, s in files.SHAPES.items() if n != "model.norm.weight"}
    lacking = files.checkpoint(tmp_path / "lacking", shapes=shapes)
    values = {"merge_method": "maec", "base_model": str(two[0]), "parameters": {"k1": 3},
              "abilities": [{"trained": str(lacking)}]}  # fmt: skip
    found, _ = told(values)
    assert "'k1': got 3" in found and "lacking lacks 'model.norm.weight'" in found


def test_weights_that_sum_to_zero_are_seen_in_the_plan(two, tmp_path):
    values = config(*two, method="linear")
    values["models"] = [
        {"model": str(m), "parameters": {"weight": w}} for m, w in zip(two, (1, -1), strict=True)
    ]
    assert "weights sum to 0" in told(values)[0]
    with pytest.raises(InputError, match="weights sum to 0"):
        merge(values, tmp_path / "out")
    assert not (tmp_path / "out.unfinished").exists()


def test_too_little_memory_names_what_is_enough(two):
    values = config(*two)
    text = plan_merge(values, max_memory=1000).problems[0]
    least = text.split("so give ")[1].split(" or more")[0]
    assert not plan_merge(values, max_memory=least).problems


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt"])
def test_tokenizers_without_a_tokenizer_json(two, name):
    for folder, text in zip(two, (b"one", b"two"), strict=True):
        (folder / "tokenizer.json").unlink()
        (folder / name).write_bytes(text)
    assert "another tokenizer" in told(config(*two))[0]
    (two[1] / name).write_bytes(b"one")
    assert told(config(*two)) == ("", "")


def test_a_tokenizer_that_is_none_is_a_difference(two):
    (two[1] / "tokenizer.json").write_text("[]")
    assert "another tokenizer" in told(config(*two))[0]


def test_what_models_compute_otherwise_is_noted(two):
    for folder, theta, architecture in zip(two, (1e4, 5e5), ("A", "B"), strict=True):
        content = json.loads((folder / "config.json").read_text())
        content |= {"rope_theta": theta, "architectures": [architecture]}
        (folder / "config.json").write_text(json.dumps(content))
    problems, notes = told(config(*two))
    assert not problems
    assert "rope_theta is 500000.0" in notes and "architectures is ['B']" in notes


def test_templates_in_the_tokenizer_config(two, tmp_path):
    third = shutil.copytree(two[1], tmp_path / "third")
    for folder, text in zip((*two, third), ("{{ a }}", "{{ b }}", "{{ b }}"), strict=True):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))
    values = config(*two, third)
    assert told(values)[1].count("another chat template") == 2
    merge(values, tmp_path / "own")
    assert not (tmp_path / "own" / "chat_template.jinja").exists()
    for wanted, written in (("auto", "{{ b }}"), ("{{ mine }}", "{{ mine }}")):
        assert "template" not in told(values | {"chat_template": wanted})[1]
        merge(values | {"chat_template": wanted}, tmp_path / wanted[:3])
        assert (tmp_path / wanted[:3] / "chat_template.jinja").read_text() == written
    (two[0] / "tokenizer_config.json").unlink()
    assert told(values)[1].count("auto takes it over") == 2
    assert "is no Jinja text" in told(values | {"chat_template": "chatml"})[0]


def test_keys_without_a_value_are_not_there(two):
    values = config(*two, tokenizer_source=None, slices=None)
    values["models"].append({"model": str(two[0]), "parameters": None})
    assert parse_config(values).models[-1].parameters == {}


@pytest.mark.parametrize(
    "header",
    [b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
     b'{"a": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}'],
    ids=["deep list", "deep object", "dtype"],
)  # fmt: skip
def test_headers_that_would_break_the_reader(tmp_path, header):
    files.write_raw(tmp_path / "x.safetensors", header, b"")
    with pytest.raises(InputError):
        read_header(tmp_path / "x.safetensors")


def test_a_config_that_would_break_the_reader(two):
    (two[1] / "config.json").write_text("[" * 100_000)
    assert "cannot be read" in told(config(*two))[0]


def test_a_source_that_goes_away_is_named(two):
    checkpoint, opened = Checkpoint(two[0]), Files()
    (two[0] / "model.safetensors").unlink()
    stored = checkpoint.tensors["model.norm.weight"]
    with pytest.raises(InputError, match="it was there when its header was read"):
        opened.read(stored, 0, 1, np.empty(8, np.uint8))


def test_blocks_in_a_new_order_have_their_own_settings(tmp_path):
    kinds = ["full", "sliding", "full", "sliding"]
    base = files.checkpoint(tmp_path / "base", config={"layer_types": kinds, "eos_token_id": [2]})
    ranges = ([0, 2], [1, 4])
    slices = [{"sources": [{"model": str(base), "layer_range": r}]} for r in ranges]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["num_hidden_layers"] == 5 and content["eos_token_id"] == [2]
    assert content["layer_types"] == ["full", "sliding", "sliding", "full", "sliding"]


def test_8_bit_weights_become_float32_and_the_config_says_so(tmp_path):
    eight = files.checkpoint(tmp_path / "eight", dtype="BF16")
    raw = {n: ("F8_E5M2", np.zeros(s, np.uint8)) for n, s in files.SHAPES.items()}
    files.write_file(eight / "model.safetensors", raw)
    merge({"merge_method": "passthrough", "models": [{"model": str(eight)}]}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    tensors = read_header(tmp_path / "out" / "model.safetensors").tensors
    assert {stored.dtype for stored in tensors.values()} == {"F32"}


def test_nothing_but_files_is_copied(two, tmp_path):
    os.mkfifo(two[0] / "pipe.txt")
    merge(config(*two), tmp_path / "out")
    assert not (tmp_path / "out" / "pipe.txt").exists()


@pytest.mark.parametrize("method", ["ties", "dare_linear", "della", "breadcrumbs"])
def test_a_model_of_weight_0_is_not_read(two, tmp_path, method):
    base, other = two
    bad = shutil.copytree(other, tmp_path / "bad")
    raw = {n: ("BF16", np.full(s, 0x7FC0, np.uint16)) for n, s in files.SHAPES.items()}
    files.write_file(bad / "model.safetensors", raw)
    values = config(base, other, bad, method=method, parameters={"density": 0.5})
    merge(config(base, other, method=method, parameters={"density": 0.5}), tmp_path / "alone")
    values["models"][1]["parameters"]["weight"] = 0
    merge(values, tmp_path / "out")
    assert files.raw_bits(tmp_path / "out") == files.raw_bits(tmp_path / "alone")
    values["models"][0]["parameters"]["weight"] = 0
    merge(values, tmp_path / "none")
    assert files.raw_bits(tmp_path / "none") == files.raw_bits(base)


def test_maec_names_the_tensor_that_is_not_finite(two, tmp_path):
    base, other = two
    bad = shutil.copytree(other, tmp_path / "bad")
    raw = {n: ("BF16", np.full(s, 0x7F80, np.uint16)) for n, s in files.SHAPES.items()}
    files.write_file(bad / "model.safetensors", raw)
    values = {"merge_method": "maec", "base_model": str(base),
              "abilities": [{"trained": str(bad)}],
              "languages": [{"model": str(other)}]}  # fmt: skip
    with pytest.raises(InputError, match=r"'.*\.weight' of .*bad holds inf at \[0"):
        merge(values, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def pickled(storage: bytes, arguments: tuple) -> bytes:
    """Pickle {"a": _rebuild_tensor_v2(storage, *arguments)}, the storage as raw opcodes."""
    parts = b"".join(pickle.dumps(x, 2)[2:-1] for x in arguments)  # without head and stop
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + storage + parts + b"tRs."


GOOD = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
REST = (False, collections.OrderedDict())


@pytest.mark.parametrize(
    ("storage", "arguments"),
    [
        (b"K\x05Q", (0, (2,), (1,), *REST)),
        (b"(X\x07\x00\x00\x00storagetQ", (0, (2,), (1,), *REST)),
        (b"K\x05", (0, (2,), (1,), *REST)),
        (GOOD, (0, None, None, *REST)),
        (GOOD, ("x", (2,), (1,), *REST)),
        (GOOD, (0, (-2, -2), (2, 1), *REST)),
        (GOOD, (0, (2.0,), (1,), *REST)),
        (GOOD, (0, (2, 2), (1,), *REST)),
        (GOOD, (3, (2,), (1,), *REST)),
    ],
    ids=["number", "short", "no storage", "no shape", "offset", "negative", "half", "strides",
         "outside"],
)  # fmt: skip
def test_pickles_that_make_no_sense(two, storage, arguments):
    def write(raw):
        with zipfile.ZipFile(two[1] / "pytorch_model.bin", "w") as archive:
            archive.writestr("m/data.pkl", raw)
            archive.writestr("m/data/0", np.arange(4, dtype=np.float32).tobytes())

    (two[1] / "model.safetensors").unlink()
    write(pickled(GOOD, (0, (2, 2), (2, 1), *REST)))
    assert Checkpoint(two[1]).tensors["a"].shape == (2, 2)  # the same, but for what is changed
    write(pickled(storage, arguments))
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        Checkpoint(two[1])


def test_sharded_bin_files_are_checked_against_their_index(tmp_path):
    torch = pytest.importorskip("torch")
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for name, key in zip(names, "ab", strict=True):
        torch.save({key: torch.zeros(3)}, tmp_path / name)
    index = tmp_path / "pytorch_model.bin.index.json"
    good = dict(zip("ab", names, strict=True))
    index.write_text(json.dumps({"weight_map": good}))
    assert Checkpoint(tmp_path).tensors.keys() == {"a", "b"}
    for wrong, said in (
        ({**good, "a": names[1]}, "'a' should be in"),
        ({**good, "c": names[1]}, "'c' should be in"),
        ({"a": names[0], "d": names[1]}, "'d' should be in"),
        ({**good, "a": 5}, "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(InputError, match=said):
            Checkpoint(tmp_path)
