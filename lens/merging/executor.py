"""Run a merge on several workers, so that reading, computing and writing overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from lens.merging.plan import MergePlan
from lens.merging.tensors import Chunk, OutputTensor
from lens.merging.worker import Sink, TensorTask, Workspace
from lens.utils.progress import progress
from lens.utils.signals import StoppedError, StopRequest

R = TypeVar("R")
_AHEAD = 4  # pieces per worker that may wait for their turn
Piece = tuple[OutputTensor, list[Chunk]]  # a tensor, or one chunk of it


def _pieces(targets: Sequence[OutputTensor], *, whole: bool) -> Iterator[Piece]:
    for target in targets:
        if whole or target.copied:
            yield target, target.chunks
        else:
            yield from ((target, [chunk]) for chunk in target.chunks)


class MergeExecutor:
    """Workers over the tensors of a plan.

    Each worker has its own buffers, takes one piece from start to finish, and lets the others run
    while it waits for the disk. Results come in the order of the pieces.

    Parameters
    ----------
    plan : MergePlan
    stop : StopRequest
        Checked between pieces.
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
        facts: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[OutputTensor, R]]:
        """Apply a function to every piece of some tensors: whole tensors, or their chunks.

        Raises
        ------
        StoppedError
            If a signal asked for it; pieces already started are finished.
        """

        def do(piece: Piece) -> R:
            space = self._workspace()
            return function(TensorTask(*piece, self._plan.sources, space, sink, facts or {}))

        total = sum(1 for _ in _pieces(targets, whole=whole))
        waiting: deque[tuple[OutputTensor, Future[R]]] = deque()
        pool = ThreadPoolExecutor(self._plan.workers)
        try:
            for piece in progress(_pieces(targets, whole=whole), label, total=total, unit="chunk"):
                waiting.append((piece[0], pool.submit(do, piece)))
                if len(waiting) > _AHEAD * self._plan.workers:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(self, waiting: deque[tuple[OutputTensor, Future[R]]]) -> tuple[OutputTensor, R]:
        if self._stop.signal_number:
            raise StoppedError("interrupted", self._stop.signal_number)
        target, future = waiting.popleft()
        return target, future.result()

    def _workspace(self) -> Workspace:
        space: Workspace | None = getattr(self._local, "space", None)
        if space is None:
            space = self._local.space = Workspace(self._plan.worker_memory)
        return space
