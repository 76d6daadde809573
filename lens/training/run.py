"""One training run: identity, checkpoints, resume, trackers, stop on signals."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lens.errors import DamagedError, InputError, MissingExtraError
from lens.training.config import SUFFIX, RunOptions
from lens.training.objective import BatchObjective, ValidationMonitor
from lens.training.optimizer import DivergedError, Entry, Optimization
from lens.utils.progress import progress, say
from lens.utils.signals import StoppedError, StopRequest, stop_requests
from lens.utils.versions import versions
from lens.utils.workdir import WorkDir, differences

TRACKERS = ("tensorboard", "wandb", "trackio")
LogEntry = dict[str, float]


class Tracker(Protocol):
    """Somewhere that log entries go."""

    def log(self, entry: LogEntry) -> None:
        """Take the entry of one step."""

    def close(self) -> None:
        """Write what is left."""


class _TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Entries of an earlier process after its last checkpoint are hidden.
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

    def log(self, entry: LogEntry) -> None:
        for name, value in entry.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(entry["step"]))

    def close(self) -> None:
        self.writer.close()


class _Service:
    """Weights & Biases, or trackio, which has the same functions."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, entry: LogEntry) -> None:
        values = {name: value for name, value in entry.items() if name != "step"}
        self.run.log(values, step=int(entry["step"]))

    def close(self) -> None:
        self.run.finish()


def check(names: Sequence[str]) -> None:
    """Refuse unknown trackers, and those whose package is missing, before anything is run.

    Raises
    ------
    InputError
        For an unknown name.
    MissingExtraError
        For a package that is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"unknown tracker '{name}'; expected one of: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name, f"reporting to {name}")


@contextmanager
def tracking(
    names: Sequence[str], *, folder: Path, name: str, start: int, settings: dict[str, Any]
) -> Iterator[list[Tracker]]:
    """Open the trackers of a run and close them at its end, however it ends.

    Parameters
    ----------
    names : sequence of str
        Out of `TRACKERS`; empty for none.
    folder : Path
        Folder of the run.
    name : str
        Name of the run where there are many.
    start : int
        Number of the first step, above zero after a resume.
    settings : dict
        What the run is, shown beside its curves.
    """
    check(names)
    with ExitStack() as stack:
        trackers = []
        for kind in names:
            tracker = _opened(kind, folder=folder, name=name, start=start, settings=settings)
            stack.callback(tracker.close)
            trackers.append(tracker)
        yield trackers


def _opened(kind: str, *, folder: Path, name: str, start: int, settings: dict[str, Any]) -> Tracker:
    if kind == "tensorboard":
        return _TensorBoard(folder, start)
    if kind == "wandb":
        import wandb

        return _Service(wandb.init(project="lens", name=name, config=settings, dir=str(folder)))
    import trackio

    resume = "allow" if start else "never"
    return _Service(trackio.init(project="lens", name=name, config=settings, resume=resume))


_KEPT = 2
_NAME = re.compile(r"step-(\d+)")
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
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


class RunFolder(WorkDir):
    """Work folder of a training run, beside its output.

    The last two checkpoints are kept: when a loss stops being finite, the weights that gave it are
    the last checkpoint's, and the one before is good.

    Parameters
    ----------
    path : Path
        Where it is, or will be.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "training run", keeps="complete checkpoints")
        self._metrics: IO[str] | None = None

    @property
    def metrics(self) -> Path:
        """The log so far, one JSON object per line, for whoever watches it."""
        return self.path / "metrics.jsonl"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints, oldest first."""
        if not self.begun:
            return []
        named = [(_NAME.fullmatch(item.name), item) for item in self.path.iterdir()]
        return sorted((int(match[1]), item) for match, item in named if match)

    def check(self, *, resume: bool = False, force: bool = False) -> None:
        """Refuse what `open` could not use; a run without a checkpoint may be discarded.

        Raises
        ------
        InputError
            As `WorkDir.check`.
        """
        found = self.checkpoints()
        if found and not resume and not force:
            raise InputError(
                f"an unfinished training run, {found[-1][0]} steps long, is in {self.path}; "
                "continue it with --resume, or discard it with --force"
            )
        super().check(resume=resume, force=force or self.begun)

    def last(self, identity: Mapping[str, Any]) -> RunCheckpoint | None:
        """Read the last checkpoint of the same run; None when there is none to resume from.

        Raises
        ------
        InputError
            If the folder is another run's, naming what differs, or the checkpoint is damaged.
        """
        found = self.checkpoints()
        if not found or not self.matches(identity):
            return None
        step, path = found[-1]
        try:
            state = self.load_snapshot(path.name)
        except DamagedError as error:
            raise InputError(
                f"checkpoint {error}; remove this folder to resume from the one before"
            ) from None
        tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
        return RunCheckpoint(step, tensors, state)

    def follow(self, log: list[dict[str, Any]]) -> None:
        """Begin the metrics with the entries up to the checkpoint that the run resumes from."""
        with self.writing(f"the log {self.metrics}"):
            self._metrics = self.metrics.open("w", encoding="utf-8")
            self._metrics.write("".join(json.dumps(entry) + "\n" for entry in log))
            self._metrics.flush()

    def note(self, entry: dict[str, Any]) -> None:
        """Append an entry to the metrics."""
        if self._metrics is not None:
            with self.writing(f"the log {self.metrics}"):
                self._metrics.write(json.dumps(entry) + "\n")
                self._metrics.flush()

    def write(self, checkpoint: RunCheckpoint) -> None:
        """Write a checkpoint completely or not at all, then remove those before the last two.

        Raises
        ------
        InputError
            If it cannot be written; earlier ones are as they were.
        """
        name = f"step-{checkpoint.step:06d}"
        with (
            self.writing(f"the checkpoint of step {checkpoint.step}"),
            self.snapshot(name, checkpoint.state) as folder,
        ):
            for file, tensors in checkpoint.tensors.items():
                kept = {key: value.contiguous() for key, value in tensors.items()}
                save_file(kept, folder / f"{file}.safetensors", {"format": "pt"})
        for _, old in self.checkpoints()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def drop_after(self, step: int) -> Path | None:
        """Remove checkpoints of ``step`` steps and more; return the last that is left."""
        for at, path in self.checkpoints():
            if at >= step:
                shutil.rmtree(path, ignore_errors=True)
        left = self.checkpoints()
        return left[-1][1] if left else None

    def leave(self, *, keep: bool) -> None:
        """Close the folder; unless ``keep``, remove it when there is no checkpoint in it."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if keep or self.checkpoints():
            self.close()
        else:
            self.discard()


def check_running(running: RunOptions) -> None:
    """Refuse what cannot work, before anything is computed.

    Raises
    ------
    InputError
        If something needs a folder and there is none, or an unfinished run is in the way.
    MissingExtraError
        If the package of a tracker is not installed.
    """
    check(running.report_to)
    if running.folder is None:
        if running.checkpoint_every or running.resume or running.report_to:
            raise InputError("checkpoints, resuming and trackers need a working folder")
        return
    RunFolder(running.folder).check(resume=running.resume, force=running.force)


class TrainingRun:
    """One run of an optimization, from its first step or its last checkpoint to its end.

    Parameters
    ----------
    optimization : Optimization
        At its first step.
    parameters : mapping of str to Tensor
        What it trains, by name.
    step : Step
        Loss and log entry of the drawn prompts.
    running : Running
        How it is carried out.
    identity : dict
        What decides its result.
    watch : Watch or None
        Validation.
    """

    def __init__(
        self,
        optimization: Optimization,
        parameters: Mapping[str, Tensor],
        step: BatchObjective,
        *,
        running: RunOptions,
        identity: dict[str, Any],
        watch: ValidationMonitor | None,
    ) -> None:
        self.optimization, self.parameters, self.step = optimization, parameters, step
        self.running, self.identity, self.watch = running, identity, watch
        self.processes = optimization.processes
        self.folder = None if running.folder is None else RunFolder(running.folder)
        self.log: list[Entry] = []

    def go(self) -> list[Entry]:
        """Take all steps and return their log; the parameters hold the result.

        Raises
        ------
        DivergedError
            If the loss is not finite; checkpoints from before it are kept and named.
        StoppedError
            If a signal asked for a stop; a checkpoint was written.
        InputError
            If there is another run in the folder, or no room.
        """
        finished = self._open()
        diverged = False
        try:
            if not finished:
                guard = stop_requests() if self.folder else nullcontext(StopRequest())
                with guard as request, self._trackers() as trackers:
                    self._steps(request, trackers)
                self._finish()
        except DivergedError as error:
            diverged = True
            raise DivergedError(f"{error}{self._kept(error)}", error.step) from None
        except KeyboardInterrupt:  # a second Ctrl-C: not even this step is finished
            left = self.folder.checkpoints() if self.folder else []
            if not left:
                raise
            raise StoppedError(
                f"stopped at once; the last checkpoint is {left[-1][1]}; continue with the same "
                "command and --resume",
                signal.SIGINT,
            ) from None
        finally:
            if self.folder and self.processes.main:
                self.folder.leave(keep=diverged)
        return self.log

    def _open(self) -> bool:
        """Begin, or go on from the last checkpoint; True when the steps are all done."""
        check_running(self.running)
        if self.folder is None:
            return False
        found = self.folder.last(self.identity) if self.running.resume else None
        self.processes.wait()
        if found is not None:
            self._load(found)
        if self.processes.main:
            self._take(self.folder, found)
        self.processes.wait()
        return found is not None and bool(found.state["finished"])

    def _take(self, folder: RunFolder, found: RunCheckpoint | None) -> None:
        """Lock the folder for this run, and report what is resumed."""
        machine = _machine()
        folder.open(self.identity, environment=machine, resume=found is not None, force=True)
        folder.follow(self.log)
        if found is not None:
            say(f"resuming after step {found.step} of {self.optimization.config.steps}")
            changes = differences(folder.head()["environment"], machine)
            if changes:
                say(f"the last bits may differ from those of one run: {'; '.join(changes)}")
        elif self.running.resume:
            say(f"nothing to resume in {folder.path}; starting from the first step")

    def _steps(self, request: StopRequest, trackers: list[Tracker]) -> None:
        optimization, watch = self.optimization, self.watch
        steps = optimization.config.steps
        for _ in progress(range(optimization.done, steps), "Training", unit="step"):
            self.step.number = optimization.done
            entry = optimization.step(self.step)
            done = optimization.done
            if watch is not None and watch.due(done):
                entry |= watch.measure(done)
            self.log.append(entry)
            if self.folder and self.processes.main:
                self.folder.note(entry)
            for tracker in trackers:
                tracker.log(entry)
            if done == steps or (watch is not None and watch.exhausted):
                return
            self._keep(request)

    def _keep(self, request: StopRequest) -> None:
        """Write a checkpoint when one is due or a stop was asked for."""
        every, done = self.running.checkpoint_every, self.optimization.done
        asked = max(self.processes.gather(request.signal_number))
        if not asked and not (every and done % every == 0):
            return
        checkpoint = self._checkpoint()  # by all of them: each may hold a part
        if self.folder and self.processes.main:
            self.folder.write(checkpoint)
        if asked and self.folder:
            raise StoppedError(
                f"stopped after step {done} of {self.optimization.config.steps}; its checkpoint is "
                f"in {self.folder.path}; continue with the same command and --resume",
                asked,
            )

    def _finish(self) -> None:
        """Take the best weights, and keep the result until it is saved."""
        if self.watch is not None:
            self._put(self.watch.best)
        if self.folder and self.processes.main:
            self.folder.write(self._checkpoint(finished=True))

    def _checkpoint(self, *, finished: bool = False) -> RunCheckpoint:
        files = {"band": {name: p.detach() for name, p in self.parameters.items()}}
        state: dict[str, Any] = {"finished": finished, "log": self.log}
        if not finished:
            files["optimizer"], state["optimization"] = self.optimization.state()
        if self.watch is not None:
            state["validation"] = self.watch.state()
            if self.watch.best and not finished:
                files["best"] = self.watch.best
        return RunCheckpoint(self.optimization.done, files, state)

    def _load(self, found: RunCheckpoint) -> None:
        self._put(found.tensors["band"])
        self.log = list(found.state["log"])
        if not found.state["finished"]:
            self.optimization.load(found.tensors["optimizer"], found.state["optimization"])
        if self.watch is not None:
            device = next(iter(self.parameters.values())).device
            best = found.tensors.get("best", {})
            self.watch.load(
                found.state["validation"], {name: t.to(device) for name, t in best.items()}
            )

    @torch.no_grad()
    def _put(self, band: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(band[name])

    def _kept(self, error: DivergedError) -> str:
        """Drop the checkpoint whose weights gave the bad loss; say which one is left."""
        if self.folder is None:
            return ""
        left = self.folder.drop_after(error.step) if self.processes.main else None
        if left is None:
            return f"; the log is in {self.folder.metrics}"
        return f"; the last good weights are in {left / 'band.safetensors'}"

    @contextmanager
    def _trackers(self) -> Iterator[list[Tracker]]:
        if not self.running.report_to or self.folder is None or not self.processes.main:
            yield []
            return
        folder = self.folder.path
        with tracking(
            self.running.report_to,
            folder=folder,
            name=folder.name.removesuffix(SUFFIX),
            start=self.optimization.done,
            settings=self.identity,
        ) as trackers:
            yield trackers


def _machine() -> dict[str, Any]:
    """Return what else decides the last bits: versions, threads, processor."""
    return {
        **versions(),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


@contextmanager
def recomputing(blocks: list[nn.Module]) -> Iterator[None]:
    """Let blocks compute their activations again in the backward pass instead of keeping them.

    The library's own switch acts in training mode alone, and Lens trains in evaluation mode.
    """
    before = [block.__dict__.get("forward") for block in blocks]

    def around(forward: Any) -> Any:
        def again(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return again

    for block in blocks:
        block.forward = around(block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
