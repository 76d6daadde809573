"""Ctrl-C and SIGTERM turned into a request that is honoured between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lens.errors import LensError
from lens.utils.progress import say


class StoppedError(LensError):
    """A run was asked to stop and has kept what it needs to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(slots=True)
class StopRequest:
    """The signal that asked for a stop; 0 while none has."""

    signal_number: int = 0


@contextmanager
def stop_requests(step: str = "step") -> Iterator[StopRequest]:
    """Note the first Ctrl-C or SIGTERM; a second one interrupts at once.

    ``step`` is what is finished first, for the message.

    Only the main thread can do so; elsewhere signals keep their meaning.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request.signal_number:
            raise KeyboardInterrupt
        request.signal_number = number
        say(f"stopping after this {step}; once more to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
