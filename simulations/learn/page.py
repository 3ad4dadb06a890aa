"""What a script says: on the screen, and in the .md file beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Page:
    """Lines of Markdown; `write` puts them beside the script."""

    def __init__(self, script: str) -> None:
        self._path = Path(script).with_suffix(".md")
        self._lines: list[str] = []

    def say(self, text: str) -> None:
        """A paragraph or a heading."""
        for line in (text, ""):
            self._lines.append(line)
            sys.stdout.write(line + "\n")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        lines = [head, ["---"] * len(head), *rows]
        self.say("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))

    def write(self) -> None:
        self._path.write_text("\n".join(self._lines).rstrip() + "\n", encoding="utf-8")
