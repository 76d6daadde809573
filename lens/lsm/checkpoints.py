"""The working folder of a run: what it is, its checkpoints, its log so far.

A checkpoint is a folder that appears complete, by rename after everything in it has reached the
disk, so a process may be killed at any moment. The last two are kept: when a loss stops being
finite, the weights that gave it are the last checkpoint's, and the one before is good.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens.errors import InputError
from lens.io import to_disk, write_text
from lens.lsm.identity import differences

SCHEMA = "lens.run/1"
_KEPT = 2
_NAME = re.compile(r"step-(\d+)")
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State of a run after ``step`` steps.

    Attributes
    ----------
    step : int
        Steps taken.
    tensors : dict of str to dict of str to Tensor
        Files of tensors: ``band``, ``optimizer``, and ``best`` when validation chose one.
    state : dict
        Plain values, the log so far among them.
    """

    step: int
    tensors: dict[str, Tensors]
    state: dict[str, Any]


class RunFolder:
    """Working folder of one run, beside its output.

    Parameters
    ----------
    path : Path
        Where it is, or will be once `begin` is called.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: IO[str] | None = None

    @property
    def metrics(self) -> Path:
        """The log so far, one JSON object per line."""
        return self.path / "metrics.jsonl"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints, oldest first."""
        if not self.path.is_dir():
            return []
        named = [(_NAME.fullmatch(item.name), item) for item in self.path.iterdir()]
        return sorted((int(match[1]), item) for match, item in named if match)

    def begin(self, identity: dict[str, Any], machine: dict[str, Any]) -> None:
        """Make the folder for a new run; what an earlier one left is removed."""
        if self.metrics.exists():
            self._locked().close()
        self.discard()
        content = {"schema": SCHEMA, "run": identity, "machine": machine}
        try:
            with self._told(f"the run in {self.path}"):
                self.path.mkdir(parents=True)
                write_text(self.path / "run.json", json.dumps(content, indent=1))
            self._follow([])
        except InputError:
            self.discard()
            raise

    def resume(self, identity: dict[str, Any]) -> Checkpoint | None:
        """Read the last checkpoint of the same run; None when there is nothing to go on from.

        Raises
        ------
        InputError
            If the folder is another run's; the message names what differs.
        """
        found = self.checkpoints()
        if not found:
            return None
        changes = differences(self.about()["run"], identity)
        if changes:
            raise InputError(
                f"cannot resume the run in {self.path}, it is another one:\n  "
                + "\n  ".join(changes)
                + "\ngive the settings it began with, or start anew with --force"
            )
        step, path = found[-1]
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"checkpoint {path} cannot be read: {error}; remove this folder to resume from "
                "the one before"
            ) from None
        return Checkpoint(step, tensors, state)

    def about(self) -> dict[str, Any]:
        """Read what the folder belongs to: ``run``, its identity, and ``machine``."""
        path = self.path / "run.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA:
                raise ValueError(f"its schema is {found['schema']}, not {SCHEMA}")
            found = {"run": dict(found["run"]), "machine": dict(found["machine"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} does not describe a run: {error}") from None
        return found

    def go_on(self, log: list[dict[str, Any]]) -> None:
        """Take over from an earlier process, whose log up to its checkpoint is ``log``."""
        for item in self.path.glob(".*"):
            shutil.rmtree(item, ignore_errors=True)
        self._follow(log)

    def note(self, entry: dict[str, Any]) -> None:
        """Append a log entry for whoever watches the file."""
        if self._metrics is not None:
            with self._told(f"the log {self.metrics}"):
                self._metrics.write(json.dumps(entry) + "\n")
                self._metrics.flush()

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint completely or not at all, then remove those before the last two.

        Raises
        ------
        InputError
            If it cannot be written; earlier ones are as they were.
        """
        path = self.path / f"step-{checkpoint.step:06d}"
        temporary = self.path / f".{path.name}"
        with self._told(f"the checkpoint of step {checkpoint.step}"):
            try:
                temporary.mkdir()
                for name, tensors in checkpoint.tensors.items():
                    kept = {key: value.contiguous() for key, value in tensors.items()}
                    save_file(kept, temporary / f"{name}.safetensors", {"format": "pt"})
                text = json.dumps(checkpoint.state)
                (temporary / "state.json").write_text(text, encoding="utf-8")
                for item in (*temporary.iterdir(), temporary):
                    to_disk(item)
                if path.exists():  # the same step again, after a resume
                    shutil.rmtree(path)
                temporary.rename(path)
                to_disk(self.path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for _, old in self.checkpoints()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def drop_after(self, step: int) -> Path | None:
        """Remove checkpoints of ``step`` steps and more; return the last that is left."""
        for at, path in self.checkpoints():
            if at >= step:
                shutil.rmtree(path, ignore_errors=True)
        left = self.checkpoints()
        return left[-1][1] if left else None

    def close(self, *, keep: bool) -> None:
        """Stop writing; unless ``keep``, remove the folder when it holds nothing to go on from."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if not keep and not self.checkpoints():
            self.discard()

    def discard(self) -> None:
        """Remove the folder."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def _follow(self, log: list[dict[str, Any]]) -> None:
        """Hold the log open, starting with ``log``."""
        with self._told(f"the log {self.metrics}"):
            self._metrics = self._locked()
            self._metrics.truncate(0)
            self._metrics.write("".join(json.dumps(entry) + "\n" for entry in log))
            self._metrics.flush()

    def _locked(self) -> IO[str]:
        """Open the log for this process alone; the lock goes with the process, however it ends."""
        file = self.metrics.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(
                f"another process is writing {self.path}; wait until it ends"
            ) from None
        return file

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn a write error into one message that says what is kept."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            kept = "make room and start again"
            if self.checkpoints():
                kept = (
                    f"the checkpoints in {self.path} are complete: make room, then continue with "
                    "--resume"
                )
            raise InputError(f"cannot write {what}: {reason}; {kept}") from None
