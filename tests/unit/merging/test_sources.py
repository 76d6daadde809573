"""What merges read: headers that lie, shards, 8-bit floats, pickles, adapters."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from lens.errors import InputError
from lens.merging.operations import merge
from lens.merging.plan import plan_merge
from lens.merging.sources import ModelSource
from lens.merging.tensors import as_float32
from lens.models.checkpoint import DTYPES, Checkpoint, Files, read_header
from tests.helpers import maec_files as files
from tests.helpers import tiny


def header(**tensors):
    return json.dumps(tensors).encode()


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "too short": (None, b"\x08\0\0", "truncated"),
    "header longer than the file": (None, struct.pack("<Q", 1 << 40) + b"{}", "claims"),
    "not JSON": (b"{oops", b"", "not JSON"),
    "not an object": (b"[1]", b"", "no names"),
    "a name twice": (b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 8,
                     "'a' twice"),
    "no shape": (header(a={"dtype": "F32", "data_offsets": [0, 8]}), b"\0" * 8, "no dtype, shape"),
    "an unknown dtype": (header(a=entry("F7")), b"\0" * 8, "F7, expected one of"),
    "a negative length": (header(a=entry(shape=(-2,))), b"\0" * 8, "not whole numbers"),
    "offsets of another size": (header(a=entry(offsets=(0, 12))), b"\0" * 12, "the header lies"),
    "an overlap": (header(a=entry(), b=entry(offsets=(4, 12))), b"\0" * 12, "overlaps 'a'"),
    "a gap": (header(a=entry(), b=entry(offsets=(12, 20))), b"\0" * 20, "gap after 'a'"),
    "too few bytes": (header(a=entry()), b"\0" * 4, "is truncated"),
    "too many bytes": (header(a=entry()), b"\0" * 12, "no tensor owns"),
    "a huge tensor": (header(a=entry(shape=(1 << 40, 1 << 40), offsets=(0, 1 << 82))), b"",
                      "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_a_header_that_lies_is_refused(tmp_path, case):
    head, data, said = LIES[case]
    path = tmp_path / "model.safetensors"
    if head is None:
        path.write_bytes(data)
    else:
        files.write_raw(path, head, data)
    with pytest.raises(InputError, match=said) as found:
        read_header(path)
    assert "model.safetensors" in str(found.value)


def test_every_problem_is_told_at_once(tmp_path):
    base = files.checkpoint(tmp_path / "base")
    smaller = {n: s if "embed" not in n else (40, 16) for n, s in files.SHAPES.items()}
    del smaller["model.norm.weight"]
    other = files.checkpoint(tmp_path / "other", shapes=smaller, config={"vocab_size": 40})
    values = {"merge_method": "task_arithmetic", "base_model": str(base),
              "models": [{"model": str(other), "parameters": {"weights": 1}}]}  # fmt: skip
    problems = "\n".join(plan_merge(values).problems)
    assert "unknown parameter 'weights' of task_arithmetic; the nearest is 'weight'" in problems
    values["models"][0]["parameters"] = {"density": 1}
    problems = "\n".join(plan_merge(values).problems)
    for said in ("lacks 'model.norm.weight'", "[40, 16]", "vocabularies of different sizes",
                 "vocab_size is 40", "parameter 'weight' is missing"):  # fmt: skip
        assert said in problems, said


def test_quantized_models_are_refused(tmp_path):
    four = {"quantization_config": {"quant_method": "gptq"}}
    base = files.checkpoint(tmp_path / "base")
    other = files.checkpoint(tmp_path / "other", config=four)
    values = {"merge_method": "linear", "parameters": {"weight": 1},
              "models": [{"model": str(m)} for m in (base, other)]}  # fmt: skip
    (problem,) = plan_merge(values).problems
    assert "other is quantized" in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"merge_metod": "linear"}, "unknown key 'merge_metod'; the nearest is 'merge_method'"),
        ({"models": [{"mode": "x"}]}, "models.0: unknown key 'mode'; the nearest is 'model'"),
        ({"merge_method": "task_arithmetics"}, "the nearest is 'task_arithmetic'"),
        ({"out_dtype": "int4"}, "out_dtype"),
        ({"models": []}, "nothing to merge"),
        ({"models": [{"model": "/no/such"}]}, "no model '/no/such'"),
    ],
)
def test_configs_that_are_none(tmp_path, change, said):
    base = files.checkpoint(tmp_path / "base")
    values = {"merge_method": "linear", "models": [{"model": str(base)}],
              "parameters": {"weight": 1}} | change  # fmt: skip
    with pytest.raises(InputError) as found:
        plan_merge(values).check()
    assert said in str(found.value)


def test_shards_are_checked_against_their_index(tmp_path):
    folder = files.checkpoint(tmp_path / "sharded", shards=3)
    whole = Checkpoint(folder)
    assert whole.tensors.keys() == files.SHAPES.keys()
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    first = "model-00001-of-00003.safetensors"
    (folder / first).rename(folder / "gone")
    with pytest.raises(InputError, match=f"shard {first} is missing"):
        Checkpoint(folder)
    (folder / "gone").rename(folder / first)
    name = next(n for n, file in good["weight_map"].items() if file == first)
    lie = {n: f for n, f in good["weight_map"].items()} | {name: "model-00002-of-00003.safetensors"}
    index.write_text(json.dumps({"weight_map": lie}))
    with pytest.raises(InputError, match=f"'{name}' should be in model-00002"):
        Checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in lie.items() if k != name}}))
    with pytest.raises(InputError, match="leaves out tensor"):
        Checkpoint(folder)
    index.write_text(json.dumps(good))
    copy = files.write_file
    copy(folder / "model-00003-of-00003.safetensors",
         {n: ("BF16", np.zeros(s, np.uint16)) for n, s in files.SHAPES.items()})  # fmt: skip
    with pytest.raises(InputError, match=r"is in model-0000[12]-of-00003\.safetensors too"):
        Checkpoint(folder)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    folder = files.checkpoint(tmp_path / "base")
    reading = Files()
    source = ModelSource(str(folder), reading)
    os.truncate(folder / "model.safetensors", 600)
    with pytest.raises(InputError, match="became shorter"):
        source.read("lm_head.weight", 0, 768, np.empty(1536, np.uint8))
    reading.close()


@pytest.mark.parametrize(
    ("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)]
)
def test_8_bit_floats_are_decoded_as_torch_does(name, dtype):
    raw = np.arange(256, dtype=np.uint8)
    want = torch.from_numpy(raw).view(dtype).float().numpy()
    np.testing.assert_array_equal(as_float32(raw, DTYPES[name]), want)


def test_8_bit_checkpoints_merge(tmp_path):
    base = files.checkpoint(tmp_path / "base")
    eight = tmp_path / "eight"
    eight.mkdir()
    bits = np.random.default_rng(0).integers(0, 0x70, 4000, dtype=np.uint8)
    tensors = {n: ("F8_E4M3", bits[: int(np.prod(s))].reshape(s)) for n, s in files.SHAPES.items()}
    files.write_file(eight / "model.safetensors", tensors)
    values = {"merge_method": "linear", "out_dtype": "float32", "parameters": {"weight": 1},
              "models": [{"model": str(m)} for m in (base, eight)]}  # fmt: skip
    merge(values, tmp_path / "out")
    found, a, b = (files.read(f) for f in (tmp_path / "out", base, eight))
    for name in found:
        np.testing.assert_array_equal(found[name], (a[name] + b[name]) / 2)
    tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = ("F32", np.ones((1, 1), np.float32))
    files.write_file(eight / "model.safetensors", tensors)
    assert any("8 bit with scales" in p for p in plan_merge(values).problems)


def test_bin_files_are_read_without_running_them(tmp_path):
    base = files.checkpoint(tmp_path / "base", dtype="F32")
    old = tmp_path / "old"
    old.mkdir()
    state = {n: torch.from_numpy(x.copy()) for n, x in files.read(base).items()}
    big = torch.zeros(100, 16)
    big[20:68] = state["lm_head.weight"]
    state["lm_head.weight"] = big[20:68]  # a view into a larger storage
    state["model.norm.weight"] = torch.nn.Parameter(state["model.norm.weight"].bfloat16())
    torch.save(state, old / "pytorch_model.bin")
    values = {
        "merge_method": "passthrough",
        "models": [{"model": str(old)}],
        "out_dtype": "float32",
    }
    merge(values, tmp_path / "out")
    found = files.read(tmp_path / "out")
    for name, want in state.items():
        np.testing.assert_array_equal(found[name], want.detach().float().numpy())
    torch.save({"w": torch.ones(3, 4).t()}, old / "pytorch_model.bin")
    with pytest.raises(InputError, match="not contiguous"):
        Checkpoint(old)
    torch.save({"w": torch.ones(2), "f": os.system}, old / "pytorch_model.bin")
    with pytest.raises(InputError, match="more than tensors"):
        Checkpoint(old)
    (old / "pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(InputError, match=r"no complete file of torch\.save"):
        Checkpoint(old)


def test_sharded_bin_files(tmp_path):
    weight_map = {}
    for i, name in enumerate(("a", "b")):
        torch.save({name: torch.full((3,), float(i))}, tmp_path / f"part{i}.bin")
        weight_map[name] = f"part{i}.bin"
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert set(Checkpoint(tmp_path).tensors) == {"a", "b"}
    (tmp_path / "part1.bin").unlink()
    with pytest.raises(InputError, match=r"part1\.bin is missing"):
        Checkpoint(tmp_path)


@pytest.fixture
def adapted(tmp_path):
    """A model, a LoRA adapter on it, and what peft makes of the two."""
    import peft

    net = tiny.model("llama")
    net.save_pretrained(tmp_path / "base")

    def make(**options):
        torch.manual_seed(1)
        net = tiny.model("llama")
        config = peft.LoraConfig(r=4, init_lora_weights=False, **options)
        wrapped = peft.get_peft_model(net, config)
        wrapped.save_pretrained(tmp_path / "adapter")
        want = wrapped.merge_and_unload().state_dict()
        return {n: x.float().numpy() for n, x in want.items()}

    return tmp_path, make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 6},
        {"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2},
         "alpha_pattern": {"layers.1.self_attn.q_proj": 3}, "modules_to_save": ["lm_head"]},
    ],
)  # fmt: skip
def test_adapters_are_what_peft_merges(adapted, options):
    at, make = adapted
    want = make(**options)
    values = {"merge_method": "passthrough", "out_dtype": "float32",
              "models": [{"model": f"{at / 'base'}+{at / 'adapter'}"}]}  # fmt: skip
    merge(values, at / "out")
    found, base = files.read(at / "out"), files.read(at / "base")
    assert any((found[n] != base[n]).any() for n in base)
    for name, x in found.items():
        np.testing.assert_allclose(x, want[name], rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_adapters_that_are_refused(adapted):
    at, make = adapted
    values = {"merge_method": "passthrough",
              "models": [{"model": f"{at / 'base'}+{at / 'adapter'}"}]}  # fmt: skip
    make(target_modules=["q_proj"], use_dora=True)
    assert "more than a low-rank difference" in plan_merge(values).problems[0]
    make(target_modules=["q_proj"])
    other = files.checkpoint(at / "other")
    values["models"][0]["model"] = f"{other}+{at / 'adapter'}"
    assert "is this the right base model" in plan_merge(values).problems[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_take_a_part_out_of_the_base_are_refused(adapted, init):
    """Their factors belong to a base without its largest directions, not to this one."""
    at, make = adapted
    make(target_modules=["q_proj"])
    path = at / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": init}))
    values = {"merge_method": "passthrough",
              "models": [{"model": f"{at / 'base'}+{at / 'adapter'}"}]}  # fmt: skip
    assert f"init_lora_weights {init} changed the base" in plan_merge(values).problems[0]


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_keeps_the_dtype_of_its_model_and_may_be_a_pickle(adapted):
    at, make = adapted
    make(target_modules=["q_proj"], modules_to_save=["lm_head"])
    half = shutil.copytree(at / "base", at / "half")
    content = safetensors.torch.load_file(half / "model.safetensors")
    content = {name: x.to(torch.bfloat16) for name, x in content.items()}
    safetensors.torch.save_file(content, half / "model.safetensors", {"format": "pt"})
    adapter = at / "adapter"
    values = {"merge_method": "passthrough", "models": [{"model": f"{half}+{adapter}"}]}
    merge(values, at / "out")
    tensors = read_header(at / "out" / "model.safetensors").tensors
    assert {stored.dtype for stored in tensors.values()} == {"BF16"}
    safe = adapter / "adapter_model.safetensors"
    torch.save(safetensors.torch.load_file(safe), adapter / "adapter_model.bin")
    safe.unlink()
    merge(values, at / "again")
    assert files.raw_bits(at / "again") == files.raw_bits(at / "out")
    (adapter / "adapter_model.bin").rename(adapter / "pytorch_model.bin")
    values["models"][0]["model"] = str(adapter)
    assert "is an adapter; name it with its model" in plan_merge(values).problems[0]


@pytest.mark.filterwarnings("ignore")
def test_conv1d_and_linear_in_one_adapter(tmp_path):
    """GPT-2 without ties: c_proj is square and stored transposed, the head is not."""
    peft = pytest.importorskip("peft")
    net = tiny.model("gpt2", tie_word_embeddings=False)
    net.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    options = {"target_modules": ["c_proj", "lm_head"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(net, peft.LoraConfig(r=4, **options))
    wrapped.save_pretrained(tmp_path / "adapter")
    values = {"merge_method": "passthrough",
              "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}  # fmt: skip
    merge(values, tmp_path / "out")
    want = wrapped.merge_and_unload().state_dict()
    for name, x in files.read(tmp_path / "out").items():
        np.testing.assert_allclose(x, want[name].numpy(), rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_tied_head_is_told_as_that(tmp_path):
    peft = pytest.importorskip("peft")
    net = tiny.model("llama", tie_word_embeddings=True)
    net.save_pretrained(tmp_path / "base")
    peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["lm_head"])).save_pretrained(
        tmp_path / "adapter"
    )
    values = {"merge_method": "passthrough",
              "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}  # fmt: skip
    assert "ties to its input embedding" in plan_merge(values).problems[0]


def test_an_adapter_gives_the_same_bytes_on_any_number_of_cores(tmp_path):
    shapes = {"model.layers.0.w.weight": (600, 512)}
    base = files.checkpoint(tmp_path / "base", shapes=shapes, dtype="F32")
    rng, adapter = np.random.default_rng(0), tmp_path / "adapter"
    adapter.mkdir()
    factors = {"A": (200, 512), "B": (600, 200)}
    files.write_file(adapter / "adapter_model.safetensors", {
        f"base_model.model.model.layers.0.w.lora_{side}.weight":
            ("F32", rng.standard_normal(shape, np.float32))
        for side, shape in factors.items()
    })  # fmt: skip
    settings = {"peft_type": "LORA", "r": 200, "lora_alpha": 100}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    code = (
        "import sys; from lens.merging.operations import merge; base, adapter, out = sys.argv[1:];"
        "merge({'merge_method': 'passthrough', 'models': [{'model': base + '+' + adapter}]}, out)"
    )
    for threads in ("1", "2", "3"):
        subprocess.run(
            [sys.executable, "-c", code, base, adapter, tmp_path / threads], check=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        )  # fmt: skip
    found = [files.raw_bits(tmp_path / threads) for threads in "123"]
    assert found[0] == found[1] == found[2]


def test_a_plan_takes_models_from_the_hubs_cache_and_fetches_none(tmp_path):
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--a-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    files.checkpoint(repository / "snapshots" / commit)
    code = (
        "import sys; from lens.merging.plan import plan_merge\n"
        "for name in sys.argv[1:]:\n"
        "    values = {'merge_method': 'passthrough', 'models': [{'model': name}]}\n"
        "    print(*plan_merge(values).problems or ['fine'])"
    )
    names = ["someone/a-model", f"someone/a-model@{commit}", "someone/another"]
    environment = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
                   "HF_ENDPOINT": "http://127.0.0.1:9"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *names], env=os.environ | environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    first, second, third = done.stdout.splitlines()
    assert first == second == "fine"
    assert "a plan does not: hf download someone/another" in third


def test_a_plus_in_a_folder_is_part_of_its_name(tmp_path):
    base = files.checkpoint(tmp_path / "a+b" / "base+more")
    source = ModelSource(str(base), reading := Files())
    assert set(source.tensors) == set(files.SHAPES)
    with pytest.raises(InputError, match=r"adapter_config.json"):
        ModelSource(f"{base}+{base}", reading)
    reading.close()
