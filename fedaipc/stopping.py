"""How a program is asked to end: signal handlers set a flag; a second signal ends it at once."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

STOPPED = 143  # the exit code of what SIGTERM ended, as shells have it
_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")  # the last one exists on Windows only
_LOOK = 0.5  # s between two looks at the flag


class Stop:
    """A flag. In place of threading.Event, whose lock a handler could wait for forever, and whose
    wait a signal does not end on Windows.
    """

    def __init__(self) -> None:
        self._wanted = False

    def set(self) -> None:
        """From any thread or signal handler: it takes no lock."""
        self._wanted = True

    def is_set(self) -> bool:
        return self._wanted

    def wait(self, seconds: float = float("inf")) -> bool:
        """Whether it was set within that time."""
        end = time.monotonic() + seconds
        while not self._wanted and (left := end - time.monotonic()) > 0:
            time.sleep(min(_LOOK, left))
        return self._wanted


@contextmanager
def signals(stop: Callable[[], object]) -> Iterator[None]:
    """Within the block, what asks the process to end calls `stop`, which may only set a flag.

    A second such signal ends the process at once: all files of fedaipc survive that.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        stop()

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
