"""Run a merge on several workers, so that reading, computing and writing overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from lens.merging.plan import MergePlan
from lens.merging.tensors import Chunk, OutputTensor
from lens.merging.worker import Sink, TensorTask, Workspace
from lens.utils.progress import progress
from lens.utils.signals import StoppedError, StopRequest

R = TypeVar("R")
_AHEAD = 4  # pieces for each worker that may wait for their turn


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor, or one slice of it."""

    target: OutputTensor
    cuts: list[Chunk]


def pieces(targets: Sequence[OutputTensor], *, whole: bool) -> Iterator[Piece]:
    """Tensors, or their slices one by one, in order."""
    for target in targets:
        cuts = target.cuts
        if whole or target.copied:
            yield Piece(target, cuts)
        else:
            yield from (Piece(target, [cut]) for cut in cuts)


class MergeExecutor:
    """Workers over the tensors of a plan.

    Each worker has memory of its own, does one piece from beginning to end, and lets the others go
    on while it waits for the disk. Results come in the order of the pieces.

    Parameters
    ----------
    plan : MergePlan
    stop : StopRequest
        Looked at between pieces.
    """

    def __init__(self, plan: MergePlan, stop: StopRequest | None = None) -> None:
        self._plan, self._stop = plan, stop or StopRequest()
        self._local = threading.local()

    def map(
        self,
        function: Callable[[TensorTask], R],
        targets: Sequence[OutputTensor],
        *,
        whole: bool,
        label: str,
        sink: Sink | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Iterator[tuple[Piece, R]]:
        """Apply a function to every piece of some tensors.

        Raises
        ------
        StoppedError
            If a signal asked for it; pieces that were begun are finished.
        """

        def do(piece: Piece) -> R:
            work = TensorTask(
                piece.target, piece.cuts, sources=self._plan.sources, space=self._space(),
                sink=sink, facts=facts or {},
            )  # fmt: skip
            return function(work)

        total = sum(1 for _ in pieces(targets, whole=whole))
        waiting: deque[tuple[Piece, Future[R]]] = deque()
        pool = ThreadPoolExecutor(self._plan.workers)
        try:
            for piece in progress(pieces(targets, whole=whole), label, total=total, unit="slice"):
                waiting.append((piece, pool.submit(do, piece)))
                if len(waiting) > _AHEAD * self._plan.workers:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(self, waiting: deque[tuple[Piece, Future[R]]]) -> tuple[Piece, R]:
        if self._stop.signal_number:
            raise StoppedError("interrupted", self._stop.signal_number)
        piece, future = waiting.popleft()
        return piece, future.result()

    def _space(self) -> Workspace:
        space: Workspace | None = getattr(self._local, "space", None)
        if space is None:
            space = self._local.space = Workspace(self._plan.needs)
        return space
