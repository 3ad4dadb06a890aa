"""A process that ends when the one that started it ends, for whatever reason.

The starter keeps one end of a pipe whose other end is the child's standard input. The operating
system closes it when the starter dies, on Windows too, and even at `kill -9`.
"""

from __future__ import annotations

import os
import threading

_STDIN = 0


def hold() -> None:
    """End this process, at once, when its standard input ends. All its files survive a crash."""
    threading.Thread(target=_wait, name="parent watch", daemon=True).start()


def _wait() -> None:
    try:
        while os.read(_STDIN, 1):
            pass
    except OSError:
        pass
    os._exit(1)
