"""A supervised process that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class FakeChild:
    """In place of a process: notes whether it is to be there."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process, self.ended, self.started = None, False, 0.0
        self.kept = 0

    def keep(self, *_: Any) -> None:
        self.kept += 1

    def has_ended(self) -> bool:
        return self.ended

    def stop(self) -> None:
        self.ended = True

    def rotate_log(self) -> None: ...
