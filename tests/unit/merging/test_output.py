"""Where results go, what is left when something is wrong there, and damaged records."""

import errno
import json
import os
import shutil

import pytest
from click.testing import CliRunner

from lens.cli.app import main
from lens.errors import InputError, VerificationError
from lens.merging import output
from lens.merging import tensors as cutting
from lens.merging.operations import extract, merge, verify
from lens.utils import records
from lens.utils.files import new_folder
from tests.helpers import maec_files as files


@pytest.fixture
def two(tmp_path):
    base = files.checkpoint(tmp_path / "base")
    return base, files.checkpoint(tmp_path / "other", seed=1, near=base)


def config(base, other):
    return {"merge_method": "task_arithmetic", "base_model": str(base),
            "models": [{"model": str(other), "parameters": {"weight": 0.5}}]}  # fmt: skip


def ability(base, other):
    return {"merge_method": "maec", "base_model": str(base), "parameters": {"k1": 0.1},
            "abilities": [{"trained": str(other)}]}  # fmt: skip


def test_a_source_is_never_replaced(two, tmp_path):
    before = [files.contents(folder) for folder in two]
    (tmp_path / "link").symlink_to(two[0])
    for out in (*two, tmp_path, tmp_path / "link"):
        with pytest.raises(InputError, match="which would be replaced"):
            merge(config(*two), out, force=True)
    with pytest.raises(InputError, match="which would be replaced"):
        extract(ability(*two), two[0] / "model.safetensors", force=True)
    assert [files.contents(folder) for folder in two] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "link", "other"]


def test_a_result_may_lie_inside_a_source(two):
    merge(config(*two), two[0] / "merged")
    verify(two[0] / "merged", sample=None)


@pytest.mark.parametrize("out", [".", "/", "x/.."])
def test_names_that_are_none(two, out):
    path = two[0].parent / "merge.yaml"
    path.write_text(json.dumps(config(*two)))
    done = CliRunner().invoke(main, ["merge", "-C", str(path), "--out", out, "--force"])
    assert done.exit_code == 2 and "is no name of a new file or folder" in done.output


def test_links_that_lead_nowhere(two, tmp_path):
    out = tmp_path / "out"
    out.symlink_to("nowhere")
    with pytest.raises(InputError, match="exists already"):
        merge(config(*two), out)
    merge(config(*two), out, force=True)
    assert out.is_dir() and not out.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "other", "out"]


def test_a_link_is_replaced_and_not_what_it_leads_to(two, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "out").symlink_to("kept")
    merge(config(*two), tmp_path / "out", force=True)
    assert (tmp_path / "kept" / "file").read_text() == "x"
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_folders_that_cannot_be_made(two, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"), new_folder(tmp_path / "file" / "out"):
        pass
    with pytest.raises(InputError, match="cannot write"):
        extract(ability(*two), tmp_path / "file" / "x.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        extract(ability(*two), two[1], force=True)


def test_extract_asks_for_the_room_that_it_takes(two, tmp_path, monkeypatch):
    """A share of a tenth takes 8 bytes for each of its elements, and not what the model takes."""
    plain, size = os.statvfs, (two[0] / "model.safetensors").stat().st_size

    def room(n):
        def statvfs(path):
            found = list(plain(path))
            found[1], found[4] = 1, n  # f_frsize, f_bavail
            return os.statvfs_result(found)

        monkeypatch.setattr("lens.merging.plan.os.statvfs", statvfs)

    room(size // 2)
    extract(ability(*two), tmp_path / "x.safetensors")
    room(size // 8)
    with pytest.raises(InputError, match="make room"):
        extract(ability(*two), tmp_path / "y.safetensors")


def test_a_source_that_changes_while_it_is_read(two, tmp_path, monkeypatch):
    plain = output.ChunkWriter.write

    def write(self, target, cut, content):
        os.utime(two[1] / "model.safetensors", ns=(1, 1))
        plain(self, target, cut, content)

    monkeypatch.setattr(output.ChunkWriter, "write", write)
    with pytest.raises(InputError, match=r"other changed while it was read"):
        merge(config(*two), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def interrupted(two, out, monkeypatch):
    plain, seen = output.ChunkWriter.write, []

    def write(self, target, cut, content):
        seen.append(cut)
        if len(seen) == 9:
            raise OSError(errno.ENOSPC, "full")
        plain(self, target, cut, content)

    with monkeypatch.context() as patched:
        patched.setattr(output.ChunkWriter, "write", write)
        with pytest.raises(InputError, match="--resume"):
            merge(ability(*two), out)
    return out.with_name(out.name + ".unfinished")


def cut_file(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {
    "log cut": lambda at: cut_file(at / "slices"),
    "log of nonsense": lambda at: (at / "slices").write_bytes(bytes(range(256)) * 9),
    "log of another merge": lambda at: (at / "slices").write_bytes(
        records.encode(0, {"tensor": 99, "slice": 99, "xxh64": "deadbeef"})
    ),
    "no log": lambda at: (at / "slices").unlink(),
    "workdir.json cut": lambda at: cut_file(at / "workdir.json"),
    "workdir.json a list": lambda at: (at / "workdir.json").write_text("[]"),
    "facts.json cut": lambda at: cut_file(at / "facts.json"),
    "facts.json a list": lambda at: (at / "facts.json").write_text("[1]"),
    "no file": lambda at: (at / "model" / "model.safetensors").unlink(),
    "file cut": lambda at: cut_file(at / "model" / "model.safetensors"),
    "no folder": lambda at: shutil.rmtree(at / "model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_what_was_kept_costs_time_alone(two, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(cutting, "SLICE", 64)
    merge(ability(*two), tmp_path / "alone")
    left = interrupted(two, tmp_path / "out", monkeypatch)
    DAMAGES[damage](left)
    merge(ability(*two), tmp_path / "out", resume=True)
    assert files.contents(tmp_path / "out") == files.contents(tmp_path / "alone")
    assert not left.exists()


@pytest.mark.parametrize("key", ["config", "sources", "facts", "checksums", "shard_size"])
def test_a_damaged_record_is_told(two, tmp_path, key):
    merge(config(*two), tmp_path / "out")
    path = tmp_path / "out" / "reproduce.json"
    known = json.loads(path.read_text())
    for content in ({k: v for k, v in known.items() if k != key}, known | {key: "nonsense"}):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="damaged"):
            verify(tmp_path / "out")
    path.write_text(json.dumps(known))
    verify(tmp_path / "out")


def test_a_lost_file_or_checksum_is_told(two, tmp_path):
    merge(config(*two), tmp_path / "out")
    path = tmp_path / "out" / "reproduce.json"
    known = json.loads(path.read_text())
    del known["checksums"]["model.norm.weight"]
    path.write_text(json.dumps(known))
    with pytest.raises(VerificationError, match=r"model\.norm\.weight"):
        verify(tmp_path / "out", sample=None)
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(VerificationError, match="cannot read"):
        verify(tmp_path / "out")


def test_an_adapter_is_not_resumed(two, tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps(config(*two)))
    arguments = ["merge", "-C", str(path), "--out", str(tmp_path / "out"), "--lora-rank", "2"]
    done = CliRunner().invoke(main, [*arguments, "--resume"])
    assert done.exit_code == 2 and "leave out --resume" in done.output
