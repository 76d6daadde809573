"""Trackers: where the log of a run goes besides ``metrics.jsonl``, when asked for by name.

Nothing here is ever switched on by an environment variable or by a package being installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from lens.errors import InputError, MissingExtraError

TRACKERS = ("tensorboard", "wandb", "trackio")
Entry = dict[str, float]


class Tracker(Protocol):
    """Somewhere that log entries go."""

    def log(self, entry: Entry) -> None:
        """Take the entry of one step."""

    def close(self) -> None:
        """Write what is left."""


class _TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Entries of an earlier process after its last checkpoint are hidden.
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

    def log(self, entry: Entry) -> None:
        for name, value in entry.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(entry["step"]))

    def close(self) -> None:
        self.writer.close()


class _Service:
    """Weights & Biases, or trackio, which has the same functions."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, entry: Entry) -> None:
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
