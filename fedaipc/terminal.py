"""What a stranger wrote, made safe for a terminal: it cannot move the cursor, hide text or reverse
it.
"""

from __future__ import annotations

import logging
from types import TracebackType

# Not "printable" to Python, and harmless: spaces that do not break, and joiners within words.
_HARMLESS = frozenset("\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{ZERO WIDTH JOINER}"
                      "\N{ZERO WIDTH NON-JOINER}\N{SOFT HYPHEN}")  # fmt: skip


def printable(text: str) -> str:
    r"""`text` on one line, control characters spelt out: an escape is shown as "\x1b".

    So are line breaks, marks that turn the reading order, and half characters (a file name that is
    not UTF-8).
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _HARMLESS else ascii(char)[1:-1] for char in text
    )


class Formatter(logging.Formatter):
    """Formats log lines, whose arguments may come from the other side of a connection."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def log_to_stderr(form: str, dates: str | None = None) -> None:
    """Log lines from "info" on, in the format `form`."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form, dates))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
