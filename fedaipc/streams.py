"""Standard streams that may have lost their reader: then only what is printed is lost."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

# The reader left, the terminal was closed, or the descriptor was. A full disk may have room again.
_FOR_GOOD = (errno.EPIPE, errno.EIO, errno.EBADF, errno.EINVAL)


@contextmanager
def forgiving() -> Iterator[None]:
    """Within the block, printing and logging to standard streams never fail.

    Closed descriptors 0 to 2 then lead nowhere. Otherwise the next file that is opened, perhaps
    a ledger, would get the number of a closed one, and with it all that is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == number:
                os.set_inheritable(number, True)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_wrapped(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _wrapped(stream: TextIO | None) -> TextIO:
    return cast("TextIO", None if stream is None else _Forgiving(stream))


class _Forgiving:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: a closed file, or no such character
            self._lead_nowhere(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lead_nowhere(error)

    def _lead_nowhere(self, error: OSError | ValueError) -> None:
        """Else what is still in the buffer fails again when the process ends."""
        if isinstance(error, OSError) and error.errno in _FOR_GOOD:
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
