"""How a merge is carried out: interrupted, resumed, refused, verified."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lens.cli.app import main
from lens.errors import InputError, VerificationError
from lens.merging import output
from lens.merging import tensors as cutting
from lens.merging.operations import merge, verify
from lens.merging.plan import plan_merge
from lens.utils.signals import StoppedError
from tests.helpers import maec_files as files
from tests.helpers import maec_killed

ROOT = Path(__file__).parents[3]


@pytest.fixture
def three(tmp_path):
    base = files.checkpoint(tmp_path / "base")
    return [base, *(files.checkpoint(tmp_path / f"m{i}", seed=i, near=base) for i in (1, 2))]


def config(models, method="task_arithmetic", **parameters):
    return {
        "merge_method": method, "base_model": str(models[0]), "parameters": parameters,
        "models": [{"model": str(m), "parameters": {"weight": 0.4}} for m in models[1:]],
    }  # fmt: skip


def nothing_is_left(out):
    return not [p for p in out.parent.iterdir() if out.name in p.name]


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp"])
def test_numbers_that_are_none_are_refused(tmp_path, dtype, value, method):
    base = files.checkpoint(tmp_path / "base", dtype=dtype)
    bad = files.checkpoint(tmp_path / "bad", dtype=dtype)
    tensors = {n: ("F32", x) for n, x in files.read(bad).items()}
    tensors["model.layers.2.mlp.up_proj.weight"][1][5, 3] = value
    tensors = {n: (dtype, files.raw_of(x, dtype)) for n, (_, x) in tensors.items()}
    files.write_file(bad / "model.safetensors", tensors)
    values = config([base, bad], method, **({"t": 0.5} if method == "slerp" else {}))
    with pytest.raises(InputError) as found:
        merge(values, tmp_path / "out")
    told = str(found.value)
    assert "'model.layers.2.mlp.up_proj.weight'" in told and "/bad holds" in told
    assert "[5, 3]" in told
    assert nothing_is_left(tmp_path / "out")


def test_results_out_of_range_are_refused(tmp_path):
    base = files.checkpoint(tmp_path / "base", dtype="F32")
    values = config([base], "linear") | {"out_dtype": "float16"}
    values |= {"models": [{"model": str(base), "parameters": {"weight": 1e6}}]}
    values["parameters"] = {"normalize": False}
    with pytest.raises(InputError, match="passes the range of float16"):
        merge(values, tmp_path / "out")
    assert nothing_is_left(tmp_path / "out")


def test_an_output_that_exists_is_kept(three, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        merge(config(three), out)
    assert (out / "precious").exists()
    merge(config(three), out, force=True)
    assert not (out / "precious").exists() and (out / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == ["out"]


@contextmanager
def as_anybody():
    """Give up root's right to write everywhere for a while, if this is root (on Linux)."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_folder_that_cannot_be_written(three):
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        Path(name).chmod(0o755)
        models = [Path(shutil.copytree(model, Path(name, model.name))) for model in three]
        merge(config(models), Path(name, "warm"))  # imports all there is to import
        place = Path(name, "readonly")
        place.mkdir(mode=0o555)
        with as_anybody(), pytest.raises(InputError, match="cannot be written"):
            merge(config(models), place / "out")
        assert not list(place.iterdir())


def test_a_full_disk_is_told_in_the_plan(three, tmp_path, monkeypatch):
    from lens.merging import plan

    class Full:
        f_bavail, f_frsize = 1, 1

    monkeypatch.setattr(plan.os, "statvfs", lambda _: Full)
    with pytest.raises(InputError, match="the result takes"):
        merge(config(three), tmp_path / "out")
    assert nothing_is_left(tmp_path / "out")


def test_a_disk_that_fills_up_at_preallocation(three, tmp_path):
    """A limit on file sizes stands in for a full disk: the system refuses in the same call."""
    code = (
        "import resource, sys, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "from lens.cli.app import main\nmain()\n"
    )
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps(config(three)))
    done = subprocess.run(
        [sys.executable, "-c", code, "merge", "-C", str(path), "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert nothing_is_left(tmp_path / "out")


def stop_after(monkeypatch, n, error):
    """Let the n-th slice that is written fail."""
    plain, seen = output.ChunkWriter.write, []

    def write(self, target, cut, content):
        seen.append(cut)
        if len(seen) == n:
            raise error
        plain(self, target, cut, content)

    monkeypatch.setattr(output.ChunkWriter, "write", write)
    return lambda: monkeypatch.setattr(output.ChunkWriter, "write", plain)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_disk_that_fills_up_later_can_be_resumed(three, tmp_path, monkeypatch, method):
    monkeypatch.setattr(cutting, "SLICE", 64)
    values, out = config(three, method, density=0.5), tmp_path / "out"
    merge(values, tmp_path / "alone")
    undo = stop_after(monkeypatch, 9, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InputError, match=r"No space left on device.*--resume"):
        merge(values, out)
    undo()
    assert not out.exists()
    with pytest.raises(InputError, match="continue it with --resume"):
        merge(values, out)
    monkeypatch.setattr("lens.merging.plan.os.statvfs", None)  # its room is taken: not asked for
    result = merge(values, out, resume=True)
    assert result.resumed >= 8
    assert files.contents(out) == files.contents(tmp_path / "alone")
    assert not (tmp_path / "out.unfinished").exists()


def test_resume_refuses_another_merge(three, tmp_path, monkeypatch):
    out = tmp_path / "out"
    undo = stop_after(monkeypatch, 3, OSError(errno.ENOSPC, "full"))
    with pytest.raises(InputError):
        merge(config(three), out)
    undo()
    with pytest.raises(InputError, match=r"config\.parameters\.lambda: was absent, is now 0\.5"):
        merge(config(three, **{"lambda": 0.5}), out, resume=True)
    os.utime(three[1] / "model.safetensors", ns=(1, 1))
    with pytest.raises(InputError, match=r"\n  sources\.\S*m1\S*: "):
        merge(config(three), out, resume=True)
    merge(config(three), out, force=True)
    assert not (tmp_path / "out.unfinished").exists()


def test_damaged_slices_are_made_again(three, tmp_path, monkeypatch):
    """The log has them, but their bytes have other checksums: power was lost."""
    monkeypatch.setattr(cutting, "SLICE", 64)
    out = tmp_path / "out"
    merge(config(three), tmp_path / "alone")
    undo = stop_after(monkeypatch, 30, OSError(errno.ENOSPC, "full"))
    with pytest.raises(InputError):
        merge(config(three), out)
    undo()
    path = tmp_path / "out.unfinished" / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4000:-2000] = bytes(2000)
    content[2500:2600] = bytes(100)
    path.write_bytes(content)
    with (tmp_path / "out.unfinished" / "slices").open("ab") as lines:
        lines.write(b'{"tensor": 3, "slice": 0, "xxh64": "12')  # torn
    merge(config(three), out, resume=True)
    assert files.contents(out) == files.contents(tmp_path / "alone")


def test_interrupts_keep_what_is_done(three, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "SLICE", 64)
    plain = output.ChunkWriter.write

    def write(self, target, cut, content):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.005)
        plain(self, target, cut, content)

    monkeypatch.setattr(output.ChunkWriter, "write", write)
    with pytest.raises(StoppedError, match="run the same command with --resume") as found:
        merge(config(three), tmp_path / "out")
    assert found.value.exit_code == 130 and not (tmp_path / "out").exists()
    monkeypatch.setattr(output.ChunkWriter, "write", plain)
    merge(config(three), tmp_path / "out", resume=True)
    verify(tmp_path / "out", sample=None)


@pytest.mark.parametrize("method", maec_killed.METHODS)
def test_killed_and_resumed_is_the_same_bytes(tmp_path, method):
    found = maec_killed.run(tmp_path, method, kills=4, rng=random.Random(method))
    assert found["killed"] == 4 and found["same"]


def test_two_merges_do_not_share_a_folder(three, tmp_path):
    with output.merge_folder(tmp_path / "out") as first:
        first.open({})
        with pytest.raises(InputError, match="another process"):
            merge(config(three), tmp_path / "out", force=True)


def test_verify_finds_what_changed(three, tmp_path):
    out = tmp_path / "out"
    merge(config(three), out)
    assert verify(out, sample=3).tensors == 3
    assert verify(out, sample=None).tensors == len(files.SHAPES)
    path = out / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"changed since the merge: tensors lm_head.weight"):
        verify(out, sample=None)
    record = json.loads((out / "reproduce.json").read_text())
    record["config"]["models"][0]["parameters"]["weight"] = 0.41
    content[-1] ^= 1
    path.write_bytes(content)
    (out / "reproduce.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match=r"computed again, .* tensors differ"):
        verify(out, sample=None)
    source = bytearray((three[1] / "model.safetensors").read_bytes())
    source[-1] ^= 1  # the header is as it was
    (three[1] / "model.safetensors").write_bytes(source)
    with pytest.raises(VerificationError, match="not the files that were merged"):
        verify(out)
    files.write_file(three[1] / "model.safetensors", {
        n: ("BF16", np.zeros(s, np.uint16)) for n, s in reversed(files.SHAPES.items())
    })  # fmt: skip
    with pytest.raises(VerificationError, match="not the files that were merged"):
        verify(out)
    with pytest.raises(InputError, match="verify takes what merge wrote"):
        verify(three[0])


def test_too_little_memory_is_told(three):
    problems = plan_merge(config(three), max_memory="100MB").problems
    assert any("too small" in p and "for one worker" in p for p in problems)


def cli(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_command_line(three, tmp_path):
    base, first, second = three
    flags = ["merge", "--method", "task_arithmetic", "--base-model", base,
             "--model", f"{first}=0.4", "--model", f"{second}=0.4"]  # fmt: skip
    dry = cli(*flags, "--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    assert json.loads(dry.output)["tensors"] == len(files.SHAPES)
    done = cli(*flags, "--out", tmp_path / "flags")
    assert done.exit_code == 0 and "15 tensors" in done.output, done.output
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps(config(three)))
    assert cli("merge", "-C", path, "--out", tmp_path / "yaml").exit_code == 0
    assert files.raw_bits(tmp_path / "flags") == files.raw_bits(tmp_path / "yaml")
    assert (
        cli("merge", "-C", tmp_path / "yaml" / "merge.yaml", "--out", tmp_path / "x").exit_code == 0
    )
    assert (
        files.contents(tmp_path / "x")["model.safetensors"]
        == (files.contents(tmp_path / "yaml")["model.safetensors"])
    )
    checked = cli("verify", tmp_path / "yaml", "--all", "--json")
    assert json.loads(checked.output)["tensors"] == len(files.SHAPES)
    (tmp_path / "yaml" / "model.safetensors").write_bytes(b"")
    assert cli("verify", tmp_path / "yaml").exit_code == 3


def test_plans_from_the_command_line(three, tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps(config(three)))
    done = cli("plan", "merge", "-C", path, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0 and json.loads(done.output)["problems"] == [], done.output
    (three[1] / "model.safetensors").write_bytes(b"1234")
    done = cli("plan", "merge", "-C", path)
    assert done.exit_code == 2 and "problem: " in done.output and "truncated" in done.output
    assert not (tmp_path / "out").exists()


def test_command_line_of_maec(three, tmp_path):
    base, ability, language = three
    common = ["--base-model", base, "--trained", ability, "--param", "k1=0.2"]
    out = tmp_path / "ability.safetensors"
    done = cli("extract", *common, "--out", out)
    assert done.exit_code == 0 and re.search(r"of \d+ weights \(20", done.output), done.output
    languages = ["--language", f"{language}=0.5", "--param", "k2=0.5"]
    for name, flags in (("direct", common), ("later", ["--base-model", base, "--extracted", out])):
        done = cli("merge", "--method", "maec", *flags, *languages, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    assert files.raw_bits(tmp_path / "direct") == files.raw_bits(tmp_path / "later")


def test_bad_flags_exit_2(three, tmp_path):
    out = tmp_path / "out"
    for flags, said in (
        (["--method", "ties", "--dry-run"], "nothing to merge"),
        ([], "no merge is described"),
        (["--method", "linear", "--model", three[0]], "no output is named"),
        (
            ["--method", "linear", "--model", three[0], "--out", out],
            "'weight' is missing",
        ),
        (["-C", tmp_path / "none.yaml"], "no config file"),
    ):
        done = cli("merge", *flags)
        assert done.exit_code == 2 and said in done.output, (flags, done.output)


def test_memory_is_bounded_whatever_the_size(tmp_path):
    """Sparse inputs of 0.5 GB: the process stays within what it was allowed."""
    folders = []
    for name in ("base", "a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        head = json.dumps({"w": {"dtype": "BF16", "shape": [16384, 16384],
                                 "data_offsets": [0, 1 << 29]}}).encode()  # fmt: skip
        files.write_raw(folder / "model.safetensors", head, b"")
        os.truncate(folder / "model.safetensors", 8 + len(head) + (1 << 29))
        folders.append(folder)
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps(config(folders)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    code = (
        "from lens.merging.operations import merge; from lens.merging.config import read_config\n"
        f"merge(read_config({str(path)!r}), {str(tmp_path / 'out')!r}, max_memory='150MB')\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print(next(l for l in lines if l.startswith('VmHWM')).split()[1])\n"
        "import sys; assert 'torch' not in sys.modules\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert int(done.stdout) * 1024 <= 150_000_000, before
