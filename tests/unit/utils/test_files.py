"""What killed writers leave, and who removes it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lens.utils import files
from lens.utils.files import PART, new_folder, remove_leftovers, write_text


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def killed(tmp_path, code):
    """Run a writer that kills itself."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom lens.utils import files\n"
        "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nout = Path(sys.argv[1]) / 'out'\n"
    ) + code
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL


KILLED = {
    "folder": "with files.new_folder(out, force=True) as at:\n    (at / 'new').touch()\n    die()",
    "file": "files.os.fsync = die\nfiles.write_text(out, 'x')",
    "before the last rename": (
        "rename = Path.rename\n"
        "Path.rename = lambda a, b: die() if b == out else rename(a, b)\n"
        "with files.new_folder(out, force=True) as at:\n    (at / 'new').touch()"
    ),
    "after the last rename": (
        "files.remove = die\n"
        "with files.new_folder(out, force=True) as at:\n    (at / 'new').touch()"
    ),
}


@pytest.mark.parametrize("moment", KILLED)
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, moment):
    if "rename" in moment:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").touch()
    killed(tmp_path, KILLED[moment])
    assert any(PART in name for name in names(tmp_path))
    remove_leftovers(tmp_path, "out")
    assert names(tmp_path) == (["out"] if "rename" in moment else [])
    if "rename" in moment:  # the old or the new output is there, and complete
        assert names(tmp_path / "out") == (["new"] if "after" in moment else ["old"])
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "newer").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["newer"]


def test_what_a_living_writer_has_stays(tmp_path):
    others = [f".other.12345678{PART}", ".out.12345678"]  # of another output, and the user's
    for name in others:
        (tmp_path / name).touch()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
        write_text(tmp_path / "out", "of somebody faster")
        assert names(folder) == ["a"]
    assert names(tmp_path) == [*others, "out"] and names(tmp_path / "out") == ["a"]


def test_leftovers_of_any_output_are_removed(tmp_path):
    for name in (f".a.b.safetensors.12345678{PART}", f".out.12345678{PART}", ".x.lens-part", ".y"):
        (tmp_path / name).touch()
    (tmp_path / f".old.12345678{PART}.replaced").touch()
    (tmp_path / f".old.12345678{PART}").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".x.lens-part", ".y", "old"]


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    plain = Path.rename

    def rename(self, target):
        if PART in self.name and "replaced" not in self.name:
            raise OSError(5, "Input/output error")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), new_folder(tmp_path / "out", force=True):
        pass
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_where_there_are_no_locks_nothing_counts_as_abandoned(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    (tmp_path / f".out.12345678{PART}").touch()
    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    write_text(tmp_path / "out", "x")
    assert (tmp_path / "out").read_text() == "x"
    with new_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
    assert names(tmp_path) == [f".out.12345678{PART}", "folder", "out"]
    monkeypatch.undo()
    write_text(tmp_path / "out", "y")
    assert names(tmp_path) == ["folder", "out"]
