"""What left this PC: one line for every answer, written before the answer leaves.

With it the owner can show what the PC gave away: when, how many bytes with which hash, for which
run and round. Each line also says what the ledger had been charged by then. The log holds only
what the answers hold.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedaipc import bounds
from fedaipc.config import Frozen
from fedaipc.errors import OutputError
from fedaipc.files import append_durable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FILE = "sent.jsonl"


class Disclosure(Frozen):
    """One answer. `number` is the round's attempt or key epoch; `epsilon` of the life so far."""

    time: str
    kind: str
    run: str | None
    number: int | None
    bytes: int
    sha256: str
    epsilon: float | None


def note(
    folder: Path,
    kind: str,
    run: str | None,
    number: int | None,
    content: Iterable[bytes],
    epsilon: float | None,
) -> None:
    """Durable when this returns. Where it raises OSError, the answer must not leave."""
    digest, size = hashlib.sha256(), 0
    for part in content:
        digest.update(part)
        size += len(part)
    line = Disclosure(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
        run=run,
        number=number,
        bytes=size,
        sha256=digest.hexdigest(),
        epsilon=epsilon,
    )
    path = folder / FILE
    if not path.is_file():
        path.touch(mode=0o600)
    append_durable(path, line.model_dump_json().encode() + b"\n")


def read(folder: Path) -> list[Disclosure]:
    """All lines; an incomplete last one, which a crash left, is skipped. Raises OutputError."""
    path = folder / FILE
    try:
        lines: list[Any] = bounds.read_text(path, bounds.MAX_LEDGER).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(Disclosure.from_json(line))
        except ValueError:
            if number < len(lines) - 1:
                raise OutputError(f"{path}, line {number + 1}: damaged") from None
    return found
