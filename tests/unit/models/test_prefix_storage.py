"""Cached states in files: found again, refused when damaged, never half-written."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lens.errors import InputError
from lens.models.architecture import locate
from lens.models.prefix_cache import PrefixCache
from lens.training.trainer import LensTrainer
from lens.utils.files import size_in_bytes
from tests.helpers import tiny
from tests.helpers.plain_loop import rows as prompts
from tests.helpers.plain_loop import space
from tests.unit.training.test_plain_loop import config_of

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18], [19]]


def cached(folder=None, *, net=None, rows=ROWS, keep="all", batch_size=4, **options):
    net = tiny.model("llama") if net is None else net
    settings = {"first_block": 1, "sites": ("block.1", "final"), "folder": folder, **options}
    cache = PrefixCache(net, locate(net), **settings)
    cache.add(rows, keep=keep, batch_size=batch_size)
    return cache


def same(a, b):
    assert len(a.rows) == len(b.rows)
    for x, y in zip(a.rows, b.rows, strict=True):
        assert torch.equal(x.input_ids, y.input_ids) and torch.equal(x.entry, y.entry)
        assert x.entry.dtype == y.entry.dtype and x.reference.keys() == y.reference.keys()
        assert all(torch.equal(x.reference[s], y.reference[s]) for s in x.reference)


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_later_run_finds_the_same_bits_without_the_frozen_blocks(tmp_path, family, dtype):
    net = tiny.model(family).to(dtype)
    memory, first = cached(net=net), cached(tmp_path, net=net)
    same(memory, first)
    assert first.rows[0].entry.dtype == dtype and first.reused == 0
    calls = []
    handle = (
        locate(net)
        .blocks[2]
        .register_forward_hook(
            lambda _module, args, _output: calls.append(args[0].shape[0] * args[0].shape[1])
        )
    )
    again = cached(tmp_path, net=net)
    handle.remove()
    same(memory, again)
    assert again.reused == 1 and sum(calls) <= 1  # one token tells what blocks return
    assert len(files(tmp_path)) == 1
    batch = again.batch([0, 2])
    assert torch.equal(again.forward(batch)["final"], memory.forward(memory.batch([0, 2]))["final"])


def test_16_bit_states_take_16_bits(tmp_path):
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    many = [list(range(5, 60))] * 20
    cached(wide, rows=many)
    cached(narrow, rows=many, net=tiny.model("llama").bfloat16())
    sizes = [next(folder.iterdir()).stat().st_size for folder in (wide, narrow)]
    assert sizes[0] > 3 * 20 * 55 * 32 * 4 and sizes[1] < 0.51 * sizes[0]


def test_everything_that_decides_the_states_makes_another_file(tmp_path):
    cached(tmp_path)
    other = tiny.model("llama")
    other.set_attn_implementation("eager")
    moved = tiny.model("llama")
    with torch.no_grad():
        moved.get_input_embeddings().weight[200, 7] += 1e-3  # one number of one unused token
    variants = [
        {"net": other},
        {"net": moved},
        {"net": tiny.model("llama", seed=1)},
        {"net": tiny.model("llama").bfloat16()},
        {"net": tiny.model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e4})},
        {"rows": [*ROWS, [20]]},
        {"rows": [[5, 6, 7, 8, 9, 10, 11], [12, 13], *ROWS[2:]]},  # the same tokens, cut elsewhere
        {"keep": "last"},
        {"keep": 2},
        {"batch_size": 2},
        {"first_block": 0},
        {"sites": ("final",)},
    ]
    for count, variant in enumerate(variants, start=2):
        assert cached(tmp_path, **variant).reused == 0, variant
        assert len(files(tmp_path)) == count
    assert cached(tmp_path).reused == 1


def test_blocks_above_every_site_do_not_matter(tmp_path):
    net = tiny.model("llama")
    cached(tmp_path, net=net, sites=("block.1",))
    with torch.no_grad():
        next(locate(net).blocks[2].parameters()).add_(1.0)
    assert cached(tmp_path, net=net, sites=("block.1",)).reused == 1


def test_the_last_k_tokens():
    whole, some = cached(), cached(keep=2)
    for a, b in zip(whole.rows, some.rows, strict=True):
        assert torch.equal(a.reference["final"][-2:], b.reference["final"])
    with pytest.raises(InputError, match="'last', 'all' or a number"):
        cached(keep=0)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def of_other_rows(path):
    net = tiny.model("llama")
    other = cached(path.parent, net=net, rows=ROWS[:2])
    assert other.reused == 0
    (found,) = [p for p in path.parent.glob("*.safetensors") if p != path]
    found.replace(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "cannot be read"),
        (flip, "SHA-256 differs"),
        (empty, "cannot be read"),
        (of_other_rows, "written for something else"),
    ],
)
def test_a_damaged_file_is_said_and_made_again(tmp_path, capsys, damage, words):
    sound = cached(tmp_path)
    bits = [row.entry.clone() for row in sound.rows]
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    del sound
    damage(path)
    again = cached(tmp_path)
    said = capsys.readouterr().err
    assert str(path) in said and words in said and "computed again" in said
    assert again.reused == 0
    assert all(torch.equal(row.entry, old) for row, old in zip(again.rows, bits, strict=True))
    assert path.read_bytes() == content and len(files(tmp_path)) == 1


def test_an_error_midway_leaves_nothing(tmp_path):
    net = tiny.model("llama")
    cache = PrefixCache(net, locate(net), first_block=1, folder=tmp_path)
    with pytest.raises(IndexError):
        cache.add([*ROWS, [10_000]], batch_size=1)  # no such token: the last batch fails
    assert files(tmp_path) == [] and cache.rows == []
    cache.add(ROWS)
    assert len(files(tmp_path)) == 1


_KILLED = """
import os, signal, sys
from lens.models.architecture import locate
from lens.models.prefix_cache import PrefixCache
from tests.helpers import tiny
net = tiny.model("llama")
cache = PrefixCache(net, locate(net), first_block=1, folder=sys.argv[1])
seen = []
def stop(*_):
    seen.append(1)
    if len(seen) == 3:
        print(*os.listdir(sys.argv[1]), flush=True)
        os.kill(os.getpid(), int(sys.argv[2]))
net.model.register_forward_hook(stop)
cache.add([[5, 6, 7], [8, 9], [10], [11]], batch_size=1)
"""


def test_a_killed_writer_leaves_no_file_and_its_rest_is_removed(tmp_path, root):
    command = [sys.executable, "-c", _KILLED, str(tmp_path), str(int(signal.SIGKILL))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (part,) = done.stdout.split()
    assert files(tmp_path) == [part] and part.endswith(".lens-part")
    cached(tmp_path)
    assert [Path(name).suffix for name in files(tmp_path)] == [".safetensors"]


def test_what_a_living_writer_has_so_far_is_left_alone(tmp_path, root):
    command = [sys.executable, "-c", _KILLED, str(tmp_path), str(int(signal.SIGSTOP))]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as writer:
        part = writer.stdout.readline().strip()
        cached(tmp_path)
        assert part in files(tmp_path)
        os.kill(writer.pid, signal.SIGCONT)
        assert writer.wait() == 0
    assert [Path(name).suffix for name in files(tmp_path)] == [".safetensors"] * 2


def test_no_room_is_said_before_anything_is_written(tmp_path):
    many = [list(range(5, 105))] * 40  # three times 40 x 100 states of 128 bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(InputError, match="no room for 2 MB of cached states"):
            cached(tmp_path, rows=many)
        with pytest.raises(InputError, match="no room for 2 MB of cached states"):
            cached(rows=many, memory=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="as a cache folder"):
        cached(tmp_path / "file")
    with pytest.raises(InputError, match="as a cache folder"):
        cached(tmp_path / "file" / "below")


# -- memory


def test_states_past_the_limit_go_to_files_without_a_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = cached()
    capsys.readouterr()
    spilled = cached(memory=memory.nbytes - 1)
    said = capsys.readouterr().err
    assert "go to a temporary file" in said
    same(memory, spilled)
    assert files(tmp_path) == []  # unlinked, and still readable
    spilled.rows.clear()
    spilled.add(ROWS[1:2])  # little enough to stay
    assert capsys.readouterr().err == ""
    assert cached(memory=memory.nbytes).nbytes == memory.nbytes
    assert capsys.readouterr().err == ""


def test_training_is_the_same_wherever_the_states_are(tmp_path, capsys):
    config = config_of("lens")
    ways = ({}, {"cache": tmp_path}, {"cache": tmp_path}, {"max_memory": "420kB"})
    runs, reused = [], []
    for options in ways:
        trainer = LensTrainer(tiny.model("llama"), None, space(), prompts(), **options)
        runs.append(trainer.run(config, seed=1))
        reused.append(trainer.data.cache.reused)
    said = capsys.readouterr().err
    assert reused == [0, 0, 4, 0] and said.count("temporary file") > 0
    for run in runs[1:]:
        assert run.log == runs[0].log
        assert all(torch.equal(run.weights[name], w) for name, w in runs[0].weights.items())


def test_a_limit_that_weights_alone_pass_is_refused():
    with pytest.raises(InputError, match=r"max_memory is 190 kB.*170 kB.*248 kB; train fewer"):
        LensTrainer(tiny.model("llama"), None, space(), prompts(), max_memory="190kB")
    # adapters need less: the same limit fits
    LensTrainer(tiny.model("llama"), None, space(), prompts(), max_memory="190kB", lora=1).release()


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GB", 12 * 10**9), ("500MiB", 500 * 2**20), ("1.5k", 1500), (" 7 b", 7), (64, 64)],
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "12 XB", "1GiBB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="expected for instance 12GB"):
        size_in_bytes(text)
