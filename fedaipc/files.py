"""Durable files: a file survives a crash complete, or was never there."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Stamp = tuple[int, int, int]
_flush: ContextVar[bool] = ContextVar("flush", default=True)


@contextmanager
def unflushed() -> Iterator[None]:
    """Within, files are replaced in one step but not flushed, so that a power cut may lose them.

    For simulated PCs, whose server is this machine. What is appended (a ledger) is flushed always.
    """
    token = _flush.set(False)
    try:
        yield
    finally:
        _flush.reset(token)


def write_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replace `path` by `content` in one step that survives a power cut.

    `private` gives the file owner-only rights. Raises OSError; then the old file is untouched.
    """
    replace_atomic(path, lambda temporary: temporary.write_bytes(content), private=private)


def replace_atomic(path: Path, write: Callable[[Path], object], *, private: bool = False) -> None:
    """As `write_atomic`, where `write` fills the file that is to be `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        if _flush.get():
            with Path(name).open("r+b") as file:
                os.fsync(file.fileno())
        Path(name).chmod(0o600 if private else 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; a crash may cut it off. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a file of lines. Raises OSError."""
    path.write_text(text + "\n", encoding="utf-8")


def keep_out_of_git(folder: Path) -> None:
    """Let git pass over a folder that holds secret keys. Raises OSError."""
    write_text(folder / ".gitignore", "*")


def append_durable(path: Path, line: bytes) -> None:
    """Append `line`; when this returns, it is on the disk. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
    try:
        written = os.write(handle, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes written")
        os.fsync(handle)
    finally:
        os.close(handle)


def stamp(path: Path) -> Stamp:
    """A mark that changes when a file is replaced. Raises OSError."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size, state.st_ino


def expanded(path: str) -> Path:
    """`path` with "~" as the home folder; as it stands where that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system has a way to ask for it."""
    if (
        os.name == "nt" or not _flush.get()
    ):  # Windows has no handle to a folder; its renames are journaled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
