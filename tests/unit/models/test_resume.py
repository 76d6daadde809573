"""Probes that are killed, run out of memory or disk, and go on."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lens.errors import InputError
from lens.models import hidden_states
from lens.models.architecture import locate
from lens.models.batching import AUTO_BATCH, tokens_within
from lens.models.hidden_states import CaptureJournal, capture
from lens.space.probe import probe
from lens.space.space import Space
from tests.helpers import tiny

ROWS = {
    "en": [f"row {'of words ' * (i % 5)}{i}" for i in range(40)],
    "es": [f"fila {'de texto ' * (i % 7)}{i}" for i in range(40)],
}


def in_a_process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path, mode):
    command = [sys.executable, "-m", "tests.helpers.killed_probe", str(tmp_path), "3", mode]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["left"]) >= 2  # it was killed, and each time later than before
    assert found["same_space"]
    assert found["same_states"]
    assert not found["work"]


class Interrupted(Exception):
    """What a test raises in the middle of a probe."""


def stop_after(model, calls):
    """Make a model's second block fail after so many calls."""
    left = [calls]

    def count(_module, _args):
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted

    return model.model.layers[1].mlp.register_forward_pre_hook(count)


@pytest.mark.parametrize("by_layer", [False, True])
def test_finished_batches_are_not_run_again(llama, tokenizer, tmp_path, by_layer):
    options = {"pivot": "en", "batch_size": 8, "layer_by_layer": by_layer}
    expected = probe(llama, tokenizer, ROWS, **options)
    locate(llama)
    hook = stop_after(llama, 7)
    with pytest.raises(Interrupted):
        probe(llama, tokenizer, ROWS, **options, work=tmp_path / "w")
    hook.remove()
    calls = []
    inside = llama.model.layers[1].mlp  # a block that is passed by is called too
    hook = inside.register_forward_pre_hook(lambda _m, _a: calls.append(1))
    found = probe(llama, tokenizer, ROWS, **options, work=tmp_path / "w", resume=True)
    hook.remove()
    assert len(calls) == 3  # of ten
    assert found.sha256 == expected.sha256
    assert not (tmp_path / "w").exists()


def unfinished(model, tokenizer, folder, **options):
    hook = stop_after(model, 3)
    try:
        with pytest.raises(Interrupted):
            probe(model, tokenizer, ROWS, pivot="en", work=folder, batch_size=8, **options)
    finally:
        hook.remove()


def test_another_probe_does_not_go_on_with_it(llama, tokenizer, tmp_path):
    work = tmp_path / "w"
    unfinished(llama, tokenizer, work)
    with pytest.raises(InputError, match=r"an unfinished probe is in .* --resume"):
        probe(llama, tokenizer, ROWS, pivot="en", work=work)
    with pytest.raises(InputError, match="pooling: was mean, is now last"):
        probe(llama, tokenizer, ROWS, pivot="en", work=work, resume=True, pooling="last")
    other = {"en": ROWS["en"], "es": ROWS["es"][::-1]}
    named = r"not the same one:\n  batch: was .*\n  rows\.\w+: has changed"
    with pytest.raises(InputError, match=named):
        probe(llama, tokenizer, other, pivot="en", work=work, resume=True)
    with pytest.raises(InputError, match="no states of its rows"):
        options = {"batch_size": 8, "keep_states": tmp_path / "states"}
        probe(llama, tokenizer, ROWS, pivot="en", work=work, resume=True, **options)
    assert not (tmp_path / "states.unfinished").exists()
    probe(llama, tokenizer, ROWS, pivot="en", work=work, force=True)
    assert not work.exists()
    with pytest.raises(InputError, match="name it with work="):
        probe(llama, tokenizer, ROWS, pivot="en", resume=True)


def test_batches_of_another_boot_are_run_again(llama, tokenizer, tmp_path, monkeypatch):
    expected = probe(llama, tokenizer, ROWS, pivot="en", batch_size=8)
    unfinished(llama, tokenizer, tmp_path / "w")
    monkeypatch.setattr(hidden_states, "boot_id", lambda: "after a power failure")
    calls = []
    inside = llama.model.layers[1].mlp
    hook = inside.register_forward_pre_hook(lambda _m, _a: calls.append(1))
    found = probe(
        llama, tokenizer, ROWS, pivot="en", batch_size=8, work=tmp_path / "w", resume=True
    )
    hook.remove()
    assert len(calls) == 10  # all of them
    assert found.sha256 == expected.sha256


def test_the_work_folder_goes_when_the_space_is_saved(llama, tokenizer, tmp_path):
    work, out = tmp_path / "w", tmp_path / "space.safetensors"
    options = {"pivot": "en", "batch_size": 8, "work": work, "save_to": out}
    out.mkdir()  # so that it cannot be written
    with pytest.raises(
        InputError, match=r"finished batches are kept in .*w: continue with --resume"
    ):
        probe(llama, tokenizer, ROWS, **options)
    assert work.exists()
    out.rmdir()
    calls = []
    hook = llama.model.layers[1].register_forward_pre_hook(lambda _m, _a: calls.append(1))
    found = probe(llama, tokenizer, ROWS, **options, resume=True)
    hook.remove()
    assert Space.load(out).sha256 == found.sha256
    assert not work.exists() and len(calls) <= 1  # one pass to find the blocks, none for the rows


@pytest.mark.parametrize("cut", [1, 9, 700])
def test_a_batch_cut_short_is_run_again(llama, tokenizer, tmp_path, cut):
    work = tmp_path / "w"
    expected = probe(llama, tokenizer, ROWS, pivot="en", batch_size=8)
    unfinished(llama, tokenizer, work)
    with (work / "batches").open("r+b") as file:
        file.truncate((work / "batches").stat().st_size - cut)
    found = probe(llama, tokenizer, ROWS, pivot="en", batch_size=8, work=work, resume=True)
    assert found.sha256 == expected.sha256


def test_a_changed_byte_is_found(llama, tokenizer, tmp_path):
    work = tmp_path / "w"
    expected = probe(llama, tokenizer, ROWS, pivot="en", batch_size=8)
    unfinished(llama, tokenizer, work)
    with (work / "batches").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    found = probe(llama, tokenizer, ROWS, pivot="en", batch_size=8, work=work, resume=True)
    assert found.sha256 == expected.sha256


def probe_with_little_room(folder, limit, by_layer):
    """Probe where no file may grow beyond a limit, as on a disk that is full."""
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    options = {"batch_size": 8, "layer_by_layer": by_layer, "work": folder, "resume": True}
    print(probe(model, tokenizer, ROWS, pivot="en", **options).sha256)


@pytest.mark.parametrize(
    ("by_layer", "limit", "message"),
    [(0, 25_000, "finished batches are kept"), (1, 60_000, "no room for two files of 0 MB")],
)
def test_a_full_disk_is_told_and_the_probe_can_go_on(tmp_path, by_layer, limit, message):
    code = (
        "import sys; from tests.unit.models.test_resume import probe_with_little_room as p;"
        "p(sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])))"
    )
    full = in_a_process(code, tmp_path / "w", limit, by_layer)
    assert full.returncode == 1
    assert message in full.stderr.splitlines()[-1]
    assert "--resume" in full.stderr.splitlines()[-1]
    done = in_a_process(code, tmp_path / "w", 0, by_layer)
    alone = in_a_process(code, tmp_path / "other", 0, by_layer)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.stdout


def capture_in_little_memory(megabytes):
    """Allow the process so much more address space than it has, and capture."""
    model = tiny.model("llama", hidden_size=256, max_position_embeddings=512)
    tokenizer = tiny.tokenizer()
    rows = ["x" * 500] * 32
    locate(model)
    capture(model, tokenizer, rows[:1])  # what is allocated once
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    result = capture(model, tokenizer, rows, batch_size=32, keep_states=True, n_threads=1)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    single = capture(model, tokenizer, rows[:1], keep_states=True)
    error = np.abs(result.states["final"] - single.states["final"]).max()
    print(json.dumps({"size": result.batch_size, "rows": result.n_rows, "error": error}))


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits address space as Linux does"
)
def test_the_allocator_of_the_cpu_runs_out():
    code = "from tests.unit.models.test_resume import capture_in_little_memory as c; c(60)"
    done = in_a_process(code)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1 <= found["size"] < 32
    assert found["rows"] == 32
    assert found["error"] < 1e-5


def test_a_memory_limit_makes_batches_smaller(llama, tokenizer):
    rows = ["x" * 60] * 20
    seen = []
    parts = locate(llama)
    hook = llama.model.layers[0].register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].shape[:2])
    )
    weights = sum(p.numel() * p.element_size() for p in llama.parameters())
    limit = weights + 4 * 20 * 32 * 8 + 500_000
    tokens = tokens_within(limit, llama, parts, sites=4, rows=20)
    try:
        found = capture(llama, tokenizer, rows, max_memory=limit, keep_states=True)
    finally:
        hook.remove()
    assert max(n * t for n, t in seen) <= tokens
    assert 1 < max(n for n, _ in seen) < 20 <= AUTO_BATCH
    expected = capture(llama, tokenizer, rows, keep_states=True)
    for site, values in expected.states.items():
        np.testing.assert_allclose(found.states[site], values, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"max_memory is 1 kB, but the weights take"):
        capture(llama, tokenizer, rows, max_memory=1000)
    with pytest.raises(InputError, match="the longest row has 61"):
        capture(llama, tokenizer, rows, max_memory=weights + 4 * 20 * 32 * 8 + 10_000)


def test_batches_are_not_noted_outside_a_unit(tmp_path):
    with pytest.raises(InputError, match="outside a unit"):
        CaptureJournal(tmp_path / "w").note("a", [0], {}, 1)
