"""Files that come from somebody else: no more is read than their format may hold.

Each format has its own bound, beside the code that reads it; those that several share are here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAX_SETTINGS = 1 << 20  # TOML that people write
MAX_KEY = 1 << 16  # a key or a certificate
MAX_TOKEN = 1 << 20  # an invite lists labels
MAX_JOB = 1 << 20  # one file of a signed job, texts aside
MAX_ROSTER = 1 << 23  # a key for each of 100,000 members
MAX_NODES = 1 << 26  # the same with names and keys of their machines
MAX_TEXTS = 1 << 30  # a job's held-back texts
MAX_LEDGER = 1 << 28  # 400,000 charges: more than a life has


class TooLarge(OSError):  # noqa: N818 - whoever handles a file that cannot be read handles this
    """`strerror` says so in words."""

    def __init__(self, most: int) -> None:
        super().__init__(None, f"too large: it may have at most {most:,} bytes")


def read_bytes(path: Path, most: int) -> bytes:
    """What is there, at most `most` bytes. Raises OSError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise TooLarge(most)
        content = file.read(most + 1)  # a pipe has no size
    if len(content) > most:
        raise TooLarge(most)
    return content


def read_text(path: Path, most: int, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """As `read_bytes`, with one kind of line ends. Raises OSError or UnicodeDecodeError."""
    text = read_bytes(path, most).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")
