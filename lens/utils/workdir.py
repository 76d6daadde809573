"""Work folder of a long job: lock, identity, logs of finished work, atomic finish.

A work folder belongs to one job (a training run, probe, merge, ablation, …) and may be left behind
at any moment: by ``kill -9``, a full disk, a power failure. It holds

- ``workdir.json``: kind and *identity* of the job, that is every value that decides its result. A
  job with another identity does not resume here; the message names each value that differs.
- ``.lock``: locked by the process at work. The kernel drops the lock when the process ends.
- logs (`WorkDir.log`): append-only files of records, such as one per finished run.
- entries (`WorkDir.save`): single records, replaced as a whole.
- snapshots (`WorkDir.snapshot`): folders of files, such as the checkpoints of a training run.
- whatever else the job keeps there, such as the files of its result.

All records are sealed with the identity (`lens.utils.records`): one that was torn, damaged or
copied from another job is recognised. Everything but log records appears by rename; the hidden
``.NAME.lens-part`` files that a killed process leaves are removed on resume.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError

from lens.errors import DamagedError, InputError
from lens.utils import records
from lens.utils.files import PART, put_in_place, remove, replace_file, try_lock
from lens.utils.hashing import checksum_of_file
from lens.utils.records import Fields, Log, Record

SCHEMA = "lens.workdir/1"
HEAD, LOCK, STATE = "workdir.json", ".lock", "state.json"
# Files by which the work folders of earlier versions are recognised.
EARLIER = ("run.json", "about.json", "merge.json", "stages.json", "runs.jsonl", "records.jsonl")

_FINISH, _DISCARD = "finish.json", f".discard{PART}"
_ABSENT = "absent"
_SHOWN = 100  # characters of a value in a message
_HASH = re.compile(r"[0-9a-f]{16,}")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class WorkDir:
    """Work folder of one job.

    Parameters
    ----------
    path : Path
        Where it is, or will be.
    kind : str
        The job, as messages name it: ``"probe"``, ``"training run"``, ``"merge"``.
    keeps : str
        What is kept when the job is interrupted, for messages: ``"finished batches"``.
    always_resumes : bool
        The job resumes whenever it is run again, without being asked to.
    shared : bool
        The folder is the output of the job and may hold other files too: it is never emptied.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        *,
        keeps: str,
        always_resumes: bool = False,
        shared: bool = False,
    ) -> None:
        self.path, self.kind, self.keeps = Path(path), kind, keeps
        self.always_resumes, self.shared = always_resumes, shared
        self._lock: int | None = None
        self._logs: dict[str, Log] = {}
        self._seed: int | None = None
        self._finished_any = False

    def __enter__(self) -> Self:
        """Return the work folder."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; what is finished stays."""
        self.close()

    # -- begin, resume, discard

    @property
    def begun(self) -> bool:
        """Whether a job was begun here, by this version."""
        return self._state() == "begun"

    def check(self, *, resume: bool = False, force: bool = False) -> None:
        """Refuse, before anything is computed, a folder that `open` could not use.

        Raises
        ------
        InputError
            If an unfinished job is there and neither ``resume`` nor ``force`` was given, if it is
            of an earlier version, or if the folder is something else.
        """
        state, resume = self._state(), resume or self.always_resumes
        if state == "foreign" and not self.shared:
            raise InputError(
                f"{self.path} exists and is not the work folder of a {self.kind}; move it away, or "
                "choose another output"
            )
        if state == "earlier" and (resume or not force):
            raise InputError(
                f"{self.path} holds a {self.kind} in the format of an earlier version of lens, "
                f"which this one cannot resume; finish it with that version, or {self._anew()}"
            )
        if state == "begun" and not resume and not force:
            raise InputError(
                f"an unfinished {self.kind} is in {self.path}; continue it with --resume (in "
                "Python resume=True), or discard it with --force"
            )

    def open(
        self,
        identity: Mapping[str, Any],
        *,
        environment: Mapping[str, Any] | None = None,
        resume: bool = False,
        force: bool = False,
    ) -> bool:
        """Lock the folder, then begin the job, or resume it where one was begun.

        Parameters
        ----------
        identity : mapping
            Every value that decides the result, as plain data.
        environment : mapping, optional
            What else is worth recording, such as versions; it may change between two processes.
        resume : bool
            Resume the job if one was begun here; without one, begin.
        force : bool
            Without ``resume``, discard an unfinished job.

        Returns
        -------
        bool
            True if the job was resumed.

        Raises
        ------
        InputError
            If `check` refuses the folder, the unfinished job has another identity (every
            difference is named), another process is at work in it, or it cannot be written.
        DamagedError
            If ``workdir.json`` is not as it was written.
        """
        self.check(resume=resume, force=force)
        try:
            self._acquire()
            self.check(resume=resume, force=force)  # it may have changed before it was locked
            resumed = (resume or self.always_resumes) and self.matches(identity)
            if resumed:
                self._clean()
                self._finished_any = True
            else:
                self._begin(_plain(identity), _plain(environment or {}))
        except BaseException:
            self.close()
            raise
        return resumed

    def matches(self, identity: Mapping[str, Any]) -> bool:
        """Whether a job of this identity was begun here; False where none was.

        Needs no lock, so that several processes of one job may ask.

        Raises
        ------
        InputError
            If one of another identity was begun: the message names every difference.
        DamagedError
            If ``workdir.json`` is not as it was written.
        """
        if not self.begun:
            return False
        found = self.head()
        if found["kind"] != self.kind:
            raise InputError(f"{self.path} holds an unfinished {found['kind']}, no {self.kind}")
        changes = differences(found["identity"], _plain(identity))
        if changes:
            raise InputError(
                f"cannot resume the {self.kind} in {self.path}, it is not the same one:\n  "
                + "\n  ".join(changes)
                + f"\nrepeat the settings it was begun with, or {self._anew()}"
            )
        return True

    def head(self) -> Fields:
        """Read ``workdir.json``: ``kind``, ``identity`` and ``environment``.

        Raises
        ------
        DamagedError
            If it is not as it was written.
        """
        path = self.path / HEAD
        try:
            found: Fields = json.loads(path.read_bytes())
            seal = found.pop("seal")
            if found["schema"] != SCHEMA:
                raise ValueError(f"its schema is {found['schema']}, expected {SCHEMA}")
            if seal != f"{records.seed_of(found):016x}":
                raise ValueError("its checksum differs")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{path} is damaged ({error}); {self._anew()}") from None
        return found

    def close(self) -> None:
        """Close all files and release the lock; everything stays on disk."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove the folder, unless it is shared.

        Raises
        ------
        InputError
            If another process is at work in it.
        """
        if not self.path.is_dir() or self.shared:
            self.close()
            return
        try:
            if self._lock is None:
                self.check(force=True)
                self._acquire()
            self._empty()
            with suppress(OSError):  # a process that begins anew right now has put files there
                (self.path / LOCK).unlink()
                self.path.rmdir()
        finally:
            self.close()

    # -- records

    def log(self, name: str, *, sync: bool = False, strict: bool = False, **scope: Any) -> Log:
        """Open an append-only log.

        Parameters
        ----------
        name : str
            Name of the file.
        sync : bool
            Wait until each record is on the disk. Without, a record survives the end of the
            process, but not always a power failure.
        strict : bool
            For logs of lines alone: refuse one with a damaged record. By default the records from
            there on are dropped and their work is repeated, as is that of a torn last record.
        **scope
            What the records belong to, such as ``unit="spa_Latn"`` or ``boot=boot_id()``. A log
            of another scope is begun anew.

        Raises
        ------
        DamagedError
            If the log is ``strict`` and a record is not as it was written.
        """
        path, seed = self.path / name, self._seed_of(name, scope)
        if name in self._logs:
            self._logs.pop(name).close()
        if strict and path.exists():
            content, intact = path.read_bytes(), records.intact_bytes(path, seed)
            if b"\n" in content[intact:]:  # a record cut short has no end of line
                line = content[:intact].count(b"\n") + 1
                raise DamagedError(f"{path}, line {line} is damaged; {self._anew()}")
        log = Log(path, seed, writing=self.writing, sync=sync)
        self._logs[name] = log
        return log

    def save(self, name: str, fields: Mapping[str, Any], data: bytes = b"") -> None:
        """Write one record to a file of its own, completely or not at all."""
        path = self.path / name
        with self.writing(f"'{path}'"):
            replace_file(path, records.encode(self._seed_of(name), fields, data) + data)
        self._finished_any = True

    def load(self, name: str) -> Record | None:
        """Read what `save` wrote; None if nothing was.

        Raises
        ------
        DamagedError
            If it is not as it was written.
        """
        path = self.path / name
        try:
            with path.open("rb") as file:
                found = records.read(file, self._seed_of(name))
                if found is None or file.read(1):
                    raise DamagedError(f"{path} is damaged; {self._anew()}")
        except FileNotFoundError:
            return None
        return found

    # -- folders

    @contextmanager
    def snapshot(self, name: str, state: Mapping[str, Any]) -> Iterator[Path]:
        """Write a folder of files that appears under its name when it is complete.

        Parameters
        ----------
        name : str
            Name of the folder; one of that name is replaced.
        state : mapping
            Plain values kept with the files, in ``state.json``, beside their checksums.
        """
        temporary = self.path / f".{name}{PART}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            files = {item.name: f"{checksum_of_file(item):016x}" for item in temporary.iterdir()}
            content = {"state": dict(state), "files": files}
            (temporary / STATE).write_bytes(records.encode(self._seed_of(name), content))
            put_in_place(temporary, self.path / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._finished_any = True

    def load_snapshot(self, name: str) -> Fields:
        """Return the state kept with a snapshot, after checking its files.

        Raises
        ------
        DamagedError
            If a file is missing or not as it was written.
        """
        folder = self.path / name
        try:
            with (folder / STATE).open("rb") as file:
                record = records.read(file, self._seed_of(name))
            if record is None:
                raise ValueError(f"{STATE} is not as it was written")
            for file_name, known in record.fields["files"].items():
                if f"{checksum_of_file(folder / file_name):016x}" != known:
                    raise ValueError(f"{file_name} is not as it was written")
        except (OSError, ValueError) as error:
            raise DamagedError(f"{folder} cannot be read: {error}") from None
        state: Fields = record.fields["state"]
        return state

    def finish(self, folder: Path, out: Path) -> None:
        """Give a finished folder inside this one its final name, then discard the rest.

        The rename is the one moment at which the job is done; `is_finished` reports it to a
        process that resumes a job killed right after.
        """
        self.save(_FINISH, {})
        put_in_place(folder, out)
        self.discard()

    def is_finished(self, folder: Path, out: Path) -> bool:
        """Whether `finish` was killed after ``folder`` had become ``out``."""
        return not folder.exists() and out.exists() and self.load(_FINISH) is not None

    # -- errors

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn errors of the disk into one message that names what is kept."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            advice = "free some space and start again"
            if self._finished_any or not all(log.empty for log in self._logs.values()):
                again = "run the same command again"
                if not self.always_resumes:
                    again = "continue with --resume"
                advice = f"{self.keeps} are kept in {self.path}: free some space and {again}"
            raise InputError(f"cannot write {what}: {reason}; {advice}") from None

    def _anew(self) -> str:
        if self.always_resumes:
            return "move it away or choose another folder, to start again"
        return "discard it with --force"

    # -- inside

    def _state(self) -> str:
        """Classify what is there: "absent", "begun", "earlier" (version) or "foreign"."""
        if not os.path.lexists(self.path):
            return "absent"
        if not self.path.is_dir():
            return "foreign"
        names = {item.name for item in self.path.iterdir()}
        if _DISCARD in names:
            return "absent"
        if HEAD in names:
            return "begun"
        if names.intersection(EARLIER):
            return "earlier"
        ours = all(name == LOCK or (name.startswith(".") and PART in name) for name in names)
        return "absent" if ours else "foreign"

    def _acquire(self) -> None:
        """Lock the folder, making it; the lock goes with the process, however it ends."""
        try:
            while self._lock is None:
                self.path.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
                if not try_lock(handle):
                    os.close(handle)
                    raise InputError(
                        f"another process is at work in {self.path}; wait until it ends"
                    )
                if os.fstat(handle).st_nlink:
                    self._lock = handle
                else:  # another process discarded the folder after the file was opened
                    os.close(handle)
        except OSError as error:
            raise InputError(
                f"cannot use the work folder {self.path}: {error.strerror}; choose another output"
            ) from None

    def _begin(self, identity: Fields, environment: Fields) -> None:
        self._finished_any, self._seed = False, None
        head = {
            "schema": SCHEMA,
            "kind": self.kind,
            "identity": identity,
            "environment": environment,
        }
        head["seal"] = f"{records.seed_of(head):016x}"
        text = json.dumps(head, indent=1, ensure_ascii=False) + "\n"
        try:
            with self.writing(f"the {self.kind} in {self.path}"):
                if not self.shared:
                    self._empty()
                replace_file(self.path / HEAD, text.encode())
        except InputError:
            self.discard()
            raise

    def _clean(self) -> None:
        """Remove what a killed process had not finished writing; undo half a replacement."""
        for item in self.path.glob(f".*{PART}*"):
            replaced = self.path / item.name.removeprefix(".").removesuffix(f"{PART}.replaced")
            if item.name.endswith(".replaced") and not replaced.exists():
                item.rename(replaced)
            else:
                remove(item)

    def _empty(self) -> None:
        """Remove everything but the lock; killed meanwhile, nothing of the rest counts."""
        (self.path / _DISCARD).touch()
        for item in list(self.path.iterdir()):
            if item.name not in (LOCK, _DISCARD):
                remove(item)
        (self.path / _DISCARD).unlink()

    def _seed_of(self, name: str, scope: Mapping[str, Any] | None = None) -> int:
        """Start of the seals of one file: they depend on job and file, not on bytes alone."""
        if self._seed is None:
            found = self.head()
            self._seed = records.seed_of(found["kind"], found["identity"])
        return records.seed_of(self._seed, name, _plain(scope or {}))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List every value in which two identities differ, one line each.

    Hashes are not shown, only named.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, is_now = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if was == is_now:
            continue
        hashed = "sha256" in key or any(_HASH.fullmatch(str(value)) for value in (was, is_now))
        change = "has changed" if hashed else f"was {_short(was)}, is now {_short(is_now)}"
        lines.append(f"{key.removesuffix('sha256').rstrip('._')}: {change}")
    return lines


def boot_id() -> str:
    """Boot id of this machine; a random id where the OS has none.

    What was written without waiting for the disk is certain to be there within one boot only.
    """
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _plain(values: Mapping[str, Any]) -> Fields:
    """Values as JSON gives them back, so that they compare equal."""
    found: Fields = json.loads(json.dumps(values, default=str))
    return found


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, and of lists of mappings, under dotted names."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{i}")
    else:
        yield key, value
