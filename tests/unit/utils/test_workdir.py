"""Work folders: killed, torn, damaged, full, of another job, of an earlier version."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest

from lens.errors import DamagedError, InputError
from lens.utils import records, workdir
from lens.utils.files import try_lock
from lens.utils.workdir import WorkDir, boot_id, differences

IDENTITY = {"model": "a" * 64, "losses": {"rate": 0.1, "terms": [{"weight": 1.0}]}, "rows": [1, 2]}
KEEPS = "finished batches"


def work_at(path, **options):
    return WorkDir(path, "probe", keeps=KEEPS, **options)


def begun(path, identity=IDENTITY):
    work = work_at(path)
    assert not work.open(identity)
    return work


def resumed(path, identity=IDENTITY):
    work = work_at(path)
    assert work.open(identity, resume=True)
    return work


@contextmanager
def no_file_above(size):
    """Limit the size of files, as a full disk does; the system refuses in the same call."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# -- begin, resume, discard


def test_begun_resumed_discarded(tmp_path):
    path = tmp_path / "deep" / "w"
    work = work_at(path)
    assert not work.begun and not work.open(IDENTITY, environment={"torch": "2"}, resume=True)
    assert work.begun and work.head()["identity"] == IDENTITY
    work.close()
    with pytest.raises(InputError, match=r"unfinished probe is in .*--resume .*--force"):
        work_at(path).open(IDENTITY)
    with resumed(path, IDENTITY | {"rows": (1, 2)}) as again:  # compared as JSON
        assert again.head()["environment"] == {"torch": "2"}
        again.save("x", {"a": 1})
    with work_at(path) as forced:
        assert not forced.open({}, force=True)
        assert sorted(item.name for item in path.iterdir()) == [".lock", "workdir.json"]
    work_at(path).discard()
    assert not path.exists() and path.parent.exists()
    work_at(path).discard()
    assert not path.exists()


def test_another_job_is_refused_and_every_difference_named(tmp_path):
    begun(tmp_path / "w").close()
    other = {
        "model": "b" * 64,
        "losses": {"rate": 0.2, "terms": [{"weight": 2.0}], "new": True},
        "data.sha256": None,
    }
    with pytest.raises(InputError) as refused:
        work_at(tmp_path / "w").open(other, resume=True)
    assert str(refused.value).splitlines() == [
        f"cannot resume the probe in {tmp_path / 'w'}, it is not the same one:",
        "  data: has changed",
        "  losses.new: was absent, is now True",
        "  losses.rate: was 0.1, is now 0.2",
        "  losses.terms.0.weight: was 1.0, is now 2.0",
        "  model: has changed",
        "  rows: was [1, 2], is now absent",
        "repeat the settings it was begun with, or discard it with --force",
    ]
    with pytest.raises(InputError, match="unfinished probe, no merge"):
        WorkDir(tmp_path / "w", "merge", keeps="slices").open(IDENTITY, resume=True)
    resumed(tmp_path / "w").close()  # it is as it was, and no lock is left behind


def test_differences_of_long_values_are_cut():
    (line,) = differences({"prompt": "x" * 500}, {"prompt": "y" * 500})
    assert line == f"prompt: was {'x' * 100}…, is now {'y' * 100}…"
    assert differences(IDENTITY, IDENTITY) == []


@pytest.mark.parametrize("name", workdir.EARLIER)
def test_folders_of_an_earlier_version_are_refused(tmp_path, name):
    path = tmp_path / "w"
    path.mkdir()
    (path / name).write_text("{}")
    assert not work_at(path).begun
    for options in ({}, {"resume": True}, {"resume": True, "force": True}):
        with pytest.raises(InputError, match=r"format of an earlier version.*--force"):
            work_at(path).open(IDENTITY, **options)
    with pytest.raises(InputError, match=r"earlier version.*choose another folder"):
        work_at(path, always_resumes=True, shared=True).open({})
    assert (path / name).exists()
    with work_at(path) as work:
        work.open(IDENTITY, force=True)
    assert not (path / name).exists()


def test_what_is_no_work_folder_is_never_touched(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "w", tmp_path / "file"):
        for options in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(InputError, match="not the work folder of a probe"):
                work_at(path).open(IDENTITY, **options)
    with pytest.raises(InputError, match="not the work folder"):
        work_at(tmp_path / "w").discard()
    assert [item.name for item in (tmp_path / "w").iterdir()] == ["precious"]


def test_a_shared_folder_keeps_what_else_is_there(tmp_path):
    (tmp_path / "sweep.yaml").write_text("x")
    (tmp_path / ".part").write_text("x")
    for expected in (False, True):
        with work_at(tmp_path, always_resumes=True, shared=True) as work:
            assert work.open({}) is expected
    work_at(tmp_path, always_resumes=True, shared=True).discard()
    assert {"sweep.yaml", ".part", "workdir.json"} < {item.name for item in tmp_path.iterdir()}


@pytest.mark.parametrize("damage", ["cut", "changed", "a list", "another schema"])
def test_a_damaged_head_is_refused_and_can_be_discarded(tmp_path, damage):
    begun(tmp_path / "w").close()
    head = tmp_path / "w" / "workdir.json"
    text = head.read_text()
    changed = {
        "cut": text[:-9],
        "changed": text.replace("0.1", "0.2"),
        "a list": "[]",
        "another schema": text.replace("workdir/1", "workdir/2"),
    }
    head.write_text(changed[damage])
    with pytest.raises(DamagedError, match=r"workdir\.json is damaged.*--force"):
        work_at(tmp_path / "w").open(IDENTITY, resume=True)
    with work_at(tmp_path / "w") as work:
        assert not work.open(IDENTITY, force=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot use the work folder.*choose another output"):
        work_at(tmp_path / "file" / "w").open(IDENTITY)
    with no_file_above(10), pytest.raises(InputError, match=r"cannot write the probe.*start again"):
        work_at(tmp_path / "w").open(IDENTITY)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


# -- locks


def forked(function):
    """Run a function in a child process; it ends with status 1 on an exception."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def test_the_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "w"
    code = (
        "import sys, time; from lens.utils.workdir import WorkDir\n"
        "WorkDir(sys.argv[1], 'probe', keeps='x').open({}); print('begun', flush=True)\n"
        "time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(workdir.__file__).parents[2])}
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stdout.readline() == "begun\n"
            for options in ({"resume": True}, {"force": True}):
                with pytest.raises(InputError, match="another process is at work in"):
                    work_at(path).open({}, **options)
            with pytest.raises(InputError, match="another process is at work in"):
                work_at(path).discard()
            assert (path / "workdir.json").exists()
        finally:
            other.kill()
    with resumed(path, {}):
        with pytest.raises(InputError, match="another process"):
            work_at(path).open({}, force=True)


def test_a_discarded_folder_begins_anew_under_a_lock_of_its_own(tmp_path):
    first = begun(tmp_path / "w")
    handle = os.open(tmp_path / "w" / ".lock", os.O_RDWR)  # a process that waits for the folder
    first.discard()
    second = begun(tmp_path / "w")
    assert try_lock(handle)  # it has the lock of a file that is gone, and no name …
    os.close(handle)
    with pytest.raises(InputError, match="another process"):  # … so the folder is still locked
        work_at(tmp_path / "w").open(IDENTITY, force=True)
    second.close()


def test_folders_are_checked_again_once_they_are_locked(tmp_path, monkeypatch):
    plain = WorkDir._acquire

    def late(self):
        monkeypatch.setattr(WorkDir, "_acquire", plain)
        begun(self.path).close()  # another process was faster
        plain(self)

    monkeypatch.setattr(WorkDir, "_acquire", late)
    with pytest.raises(InputError, match="an unfinished probe is in"):
        work_at(tmp_path / "w").open(IDENTITY)
    assert resumed(tmp_path / "w").head()["identity"] == IDENTITY


# -- logs


def filled(path, count=5, **options):
    with begun(path) as work:
        log = work.log("log", **options)
        for n in range(count):
            log.append({"n": n, "text": f'"seal": "é\n{n}'}, bytes([n]) * n)
    return path / "log"


def numbers(work, **options):
    found = list(work.log("log", **options).records())
    assert all(record.data == bytes([record.fields["n"]]) * len(record.data) for record in found)
    return [record.fields["n"] for record in found]


def test_records_come_back_and_new_ones_follow(tmp_path):
    filled(tmp_path / "w")
    with resumed(tmp_path / "w") as work:
        log = work.log("log")
        found = list(log.records())
        assert found[3] == ({"n": 3, "text": '"seal": "é\n3'}, b"\3\3\3")
        log.append({"n": 5})
        assert list(log.records()) == found and not log.empty
    with resumed(tmp_path / "w") as work:
        assert numbers(work) == [0, 1, 2, 3, 4, 5]


def test_a_log_of_lines_is_json_lines(tmp_path):
    with begun(tmp_path / "w") as work:
        log = work.log("runs.jsonl", sync=True)
        log.append({"name": "a", "loss": float("nan")})
        log.append({})
    lines = [json.loads(x) for x in (tmp_path / "w" / "runs.jsonl").read_text().splitlines()]
    assert lines[0]["name"] == "a" and list(lines[1]) == ["seal"]


@pytest.mark.parametrize("cut", [1, 4, 5, 60, 10_000])
def test_a_torn_record_is_dropped(tmp_path, cut):
    path = filled(tmp_path / "w")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    with resumed(tmp_path / "w") as work:
        kept = numbers(work)
        assert kept == list(range(len(kept))) and len(kept) < 5
        work.log("log").append({"n": len(kept)})
    with resumed(tmp_path / "w") as work:
        assert numbers(work) == [*kept, len(kept)]


def test_any_changed_byte_is_found(tmp_path):
    path = filled(tmp_path / "w", count=3)
    whole = path.read_bytes()
    with resumed(tmp_path / "w") as work:
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            kept = numbers(work)
            assert len(kept) < 3 and kept == list(range(len(kept)))


def test_a_strict_log_with_a_damaged_record_is_refused(tmp_path):
    work = work_at(tmp_path, always_resumes=True, shared=True)
    work.open({})
    log = work.log("runs", sync=True, strict=True)
    for n in range(3):
        log.append({"n": n})
    whole = log.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.path.write_bytes(whole[:-3])
    assert [x.fields["n"] for x in work.log("runs", strict=True).records()] == [0, 1]
    log.path.write_bytes(lines[0] + lines[1].replace(b"1", b"7", 1) + lines[2])
    with pytest.raises(DamagedError, match="runs, line 2 is damaged; move it away"):
        work.log("runs", strict=True)
    assert log.path.read_bytes().startswith(lines[0])  # nothing was removed
    log.path.write_bytes(lines[0] + lines[2])  # a record may be taken out by hand
    assert [x.fields["n"] for x in work.log("runs", strict=True).records()] == [0, 2]
    work.close()


def test_records_of_another_job_file_or_scope_do_not_count(tmp_path):
    content = filled(tmp_path / "w", boot=boot_id(), unit="a").read_bytes()
    with resumed(tmp_path / "w") as work:
        assert numbers(work, boot=boot_id(), unit="a") == [0, 1, 2, 3, 4]
        (work.path / "log").write_bytes(content)
        assert numbers(work, boot="another one", unit="a") == []
        (work.path / "other").write_bytes(content)
        assert list(work.log("other", boot=boot_id(), unit="a").records()) == []
    with begun(tmp_path / "x", IDENTITY | {"seed": 1}) as work:
        (work.path / "log").write_bytes(content)
        assert numbers(work, boot=boot_id(), unit="a") == []


def test_boot_ids_are_stable_where_the_system_has_one(monkeypatch):
    if sys.platform == "linux":
        assert boot_id() == boot_id()
    monkeypatch.setattr(workdir, "_BOOT_ID", Path("/nonexistent"))
    assert boot_id() != boot_id()


def test_threads_append_whole_records(tmp_path):
    with begun(tmp_path / "w") as work:
        log = work.log("log")

        def append(start):
            for n in range(start, start + 50):
                log.append({"n": n}, b"x" * n)

        threads = [threading.Thread(target=append, args=(at,)) for at in (0, 50, 100, 150)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {record.fields["n"]: len(record.data) for record in work.log("log").records()}
    assert found == {n: n for n in range(200)}


def test_a_full_disk_keeps_the_records_before(tmp_path):
    with begun(tmp_path / "w") as work:
        log = work.log("log")
        with no_file_above(20), pytest.raises(InputError, match="free some space and start again"):
            log.append({"n": 0})
        log.append({"n": 0})
        with no_file_above(2000), pytest.raises(InputError) as full:
            log.append({"n": 1}, b"\1" * 5000)
        told = str(full.value)
        assert "log': File too large; finished batches are kept in" in told
        assert told.endswith("free some space and continue with --resume")
        assert log.path.stat().st_size < 100
        log.append({"n": 1}, b"\1" * 5000)
    with resumed(tmp_path / "w") as work:
        assert numbers(work) == [0, 1]


# -- single records, snapshots, finishing


def test_entries_are_written_as_a_whole(tmp_path):
    with begun(tmp_path / "w") as work:
        assert work.load("facts.json") is None
        for data in (b"", b"x" * 100_000):
            work.save("facts.json", {"cosine": 0.5}, data)
            assert work.load("facts.json") == ({"cosine": 0.5}, data)
        with no_file_above(1000), pytest.raises(InputError, match="finished batches are kept"):
            work.save("facts.json", {}, b"y" * 5000)
        assert work.load("facts.json").data == b"x" * 100_000
        whole = (work.path / "facts.json").read_bytes()
        for content in (whole[:-1], whole + b"x", whole[:50] + b"?" + whole[51:], b"", b"[1]\n"):
            (work.path / "facts.json").write_bytes(content)
            with pytest.raises(DamagedError, match=r"facts\.json is damaged; discard .*--force"):
                work.load("facts.json")
        (work.path / "copy").write_bytes(whole)
        with pytest.raises(DamagedError):
            work.load("copy")
    assert sorted(item.name for item in work.path.iterdir()) == [
        ".lock", "copy", "facts.json", "workdir.json",
    ]  # fmt: skip


def test_snapshots_appear_whole_and_damage_is_found(tmp_path):
    with begun(tmp_path / "w") as work:
        with work.snapshot("step-1", {"loss": 0.1}) as place:
            (place / "a").write_bytes(b"x" * 5000)
            (place / "b").write_bytes(b"")
            assert not (work.path / "step-1").exists()
        assert work.load_snapshot("step-1") == {"loss": 0.1}
        with pytest.raises(RuntimeError), work.snapshot("step-1", {}) as place:
            (place / "a").write_bytes(b"y")
            raise RuntimeError
        assert work.load_snapshot("step-1") == {"loss": 0.1}
        with work.snapshot("step-1", {"loss": 0.2}) as place:
            (place / "a").write_bytes(b"y")
        assert work.load_snapshot("step-1") == {"loss": 0.2}
        assert {item.name for item in (work.path / "step-1").iterdir()} == {"a", "state.json"}
        for damage in ("changed", "gone"):
            (work.path / "step-1" / "a").write_bytes(b"z")
            if damage == "gone":
                (work.path / "step-1" / "a").unlink()
            with pytest.raises(DamagedError, match="step-1 cannot be read"):
                work.load_snapshot("step-1")
        (work.path / "step-1" / "a").write_bytes(b"y")
        assert work.load_snapshot("step-1")
        (work.path / "step-1" / "state.json").write_bytes(b"{}")
        with pytest.raises(DamagedError, match=r"state\.json is not as it was written"):
            work.load_snapshot("step-1")


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    begun(tmp_path / "w").close()
    (tmp_path / "w" / ".step-1.lens-part").mkdir()
    (tmp_path / "w" / ".step-1.lens-part" / "a").write_text("x")
    (tmp_path / "w" / ".facts.json.lens-part").write_text("x")
    (tmp_path / "w" / ".hidden").write_text("x")
    resumed(tmp_path / "w").close()
    left = sorted(item.name for item in (tmp_path / "w").iterdir())
    assert left == [".hidden", ".lock", "workdir.json"]


@pytest.mark.parametrize("replaced", [False, True])
def test_finished_at_the_moment_of_the_rename(tmp_path, monkeypatch, replaced):
    out, folder = tmp_path / "out", tmp_path / "w" / "model"
    if replaced:
        out.mkdir()
        (out / "old").write_text("x")
    with begun(tmp_path / "w") as work:
        folder.mkdir()
        (folder / "a").write_text("x")
        monkeypatch.setattr(WorkDir, "discard", WorkDir.close)  # killed before it
        work.finish(folder, out)
    monkeypatch.undo()
    assert [item.name for item in out.iterdir()] == ["a"]
    with resumed(tmp_path / "w") as work:
        assert work.is_finished(folder, out)
        work.discard()
    assert [item.name for item in tmp_path.iterdir()] == ["out"]
    with begun(tmp_path / "w") as work:
        assert not work.is_finished(folder, out)


# -- killed


def test_killed_while_it_is_discarded_nothing_of_it_counts(tmp_path, monkeypatch):
    path = tmp_path / "w"
    with begun(path) as work:
        for n in range(4):
            work.save(f"unit-{n}", {})
    plain, seen = workdir.remove, []

    def remove(item):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(item)
        plain(item)

    monkeypatch.setattr(workdir, "remove", remove)
    with pytest.raises(KeyboardInterrupt):
        work_at(path).discard()
    monkeypatch.undo()
    assert not work_at(path).begun
    with work_at(path) as work:
        assert not work.open(IDENTITY, resume=True)
        assert sorted(item.name for item in path.iterdir()) == [".lock", "workdir.json"]


def test_killed_at_any_moment_all_that_was_reported_is_there(tmp_path):
    """A child writes records, entries and snapshots and reports each one; it is killed often."""
    path, report = tmp_path / "w", tmp_path / "report"
    rng = random.Random(0)

    def write(reported):
        with work_at(path) as work:
            work.open(IDENTITY, resume=True)
            log = work.log("log", boot=boot_id())
            done = [record.fields["n"] for record in log.records()]
            assert done == list(range(len(done)))
            for n in range(len(done), 10**6):
                log.append({"n": n}, bytes([n % 256]) * rng.randrange(3000))
                work.save("entry", {"n": n}, b"x" * 1000)
                with work.snapshot(f"step-{n % 2}", {"n": n}) as place:
                    (place / "a").write_bytes(b"x" * n)
                os.write(reported, f"{n}\n".encode())

    reached = []
    for _ in range(12):
        handle = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        child = forked(lambda handle=handle: write(handle))
        os.close(handle)
        while not report.stat().st_size:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child failed"
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        last = int(report.read_text().split("\n")[-2])
        with resumed(path) as work:
            found = [record.fields["n"] for record in work.log("log", boot=boot_id()).records()]
            assert found == list(range(len(found))) and len(found) > last
            assert work.load("entry").fields["n"] >= last
            states = [work.load_snapshot(item.name) for item in path.glob("step-*")]
            assert max(state["n"] for state in states) >= last
            assert not [item for item in path.iterdir() if ".lens-part" in item.name]
        reached.append(last)
    assert reached == sorted(reached)


def test_ten_thousand_records_take_no_time_to_speak_of(tmp_path):
    with begun(tmp_path / "w") as work:
        log = work.log("log")
        for n in range(10_000):
            log.append({"key": n, "metric": 0.1})
    with resumed(tmp_path / "w") as work:
        assert sum(1 for _ in work.log("log").records()) == 10_000
        assert records.intact_bytes(work.path / "log", 0) == 0
