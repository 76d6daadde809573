"""How a run is carried out: checkpoints, resuming, validation, trackers, being stopped.

Nothing here changes what a run computes: killed at any moment and resumed, it gives the same bits.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lens.errors import InputError
from lens.interrupting import StoppedError, StopRequest, stop_requests
from lens.lsm.checkpoints import Checkpoint, RunFolder
from lens.lsm.identity import differences
from lens.lsm.optimizing import DivergedError, Entry, Optimization
from lens.lsm.saving import versions
from lens.lsm.step import Step
from lens.lsm.tracking import Tracker, check, tracking
from lens.lsm.validating import Watch
from lens.progress import progress, say

SUFFIX = ".unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How a run is carried out; no setting here changes its result.

    Attributes
    ----------
    folder : Path or None
        Working folder for checkpoints and the log so far; `TrainResult.save` removes it. None
        keeps nothing on disk before the run is saved.
    checkpoint_every : int or None
        Steps from one checkpoint to the next. None writes one only when the run is stopped by
        Ctrl-C or SIGTERM, and when it has ended.
    resume : bool
        Go on from the last checkpoint in ``folder``, if there is one, to the same result.
    force : bool
        Without ``resume``, discard an unfinished run in ``folder``.
    gradient_checkpointing : bool
        Compute the band's activations again in the backward pass instead of keeping them.
    shard : bool
        Divide gradients, master weights and moments among the processes that train together.
    report_to : tuple of str
        Trackers besides ``metrics.jsonl``: "tensorboard", "wandb", "trackio".
    """

    folder: Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False
    force: bool = False
    gradient_checkpointing: bool = False
    shard: bool = False
    report_to: tuple[str, ...] = ()

    @classmethod
    def beside(cls, out: Path) -> Path:
        """Working folder of the run that will become ``out``."""
        return out.with_name(out.name + SUFFIX)

    def check(self) -> None:
        """Refuse what cannot work, before anything is computed.

        Raises
        ------
        InputError
            If something needs a folder and there is none, or an unfinished run is in the way.
        MissingExtraError
            If the package of a tracker is not installed.
        """
        check(self.report_to)
        if self.folder is None:
            if self.checkpoint_every or self.resume or self.report_to:
                raise InputError("checkpoints, resuming and trackers need a working folder")
            return
        found = RunFolder(self.folder).checkpoints()
        if found and not self.resume and not self.force:
            raise InputError(
                f"an unfinished run, {found[-1][0]} steps long, is in {self.folder}; go on with it "
                "by --resume, or discard it with --force"
            )


class Run:
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
        step: Step,
        *,
        running: Running,
        identity: dict[str, Any],
        watch: Watch | None,
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
                self.folder.close(keep=diverged)
        return self.log

    def _open(self) -> bool:
        """Begin, or go on from the last checkpoint; True when the steps are all done."""
        self.running.check()
        if self.folder is None:
            return False
        found = self.folder.resume(self.identity) if self.running.resume else None
        self.processes.wait()
        if found is None:
            if self.running.resume and self.processes.main:
                say(f"nothing to resume in {self.folder.path}; starting from the first step")
            if self.processes.main:
                self.folder.begin(self.identity, _machine())
            self.processes.wait()
            return False
        self._load(found)
        if self.processes.main:
            say(f"resuming after step {found.step} of {self.optimization.config.steps}")
            changes = differences(self.folder.about()["machine"], _machine())
            if changes:
                say(f"the last bits may differ from those of one run: {'; '.join(changes)}")
            self.folder.go_on(self.log)
        return bool(found.state["finished"])

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

    def _checkpoint(self, *, finished: bool = False) -> Checkpoint:
        files = {"band": {name: p.detach() for name, p in self.parameters.items()}}
        state: dict[str, Any] = {"finished": finished, "log": self.log}
        if not finished:
            files["optimizer"], state["optimization"] = self.optimization.state()
        if self.watch is not None:
            state["validation"] = self.watch.state()
            if self.watch.best and not finished:
                files["best"] = self.watch.best
        return Checkpoint(self.optimization.done, files, state)

    def _load(self, found: Checkpoint) -> None:
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
