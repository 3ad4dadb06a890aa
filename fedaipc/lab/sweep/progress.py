"""How far a sweep has come, and how that is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from fedaipc.lab.sweep.cells import Cell, shown
from fedaipc.report.formatting import duration_text


@dataclass(slots=True)
class Progress:
    """`seconds` are those of cells that finished in this call."""

    total: int
    done: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def ended(self) -> int:
        return self.done + self.failed

    def remaining(self, parallel: int) -> float | None:
        """Seconds until the end at the pace so far; None before the first cell has finished."""
        if not self.seconds:
            return None
        return (self.total - self.ended) / parallel * sum(self.seconds) / len(self.seconds)


class Display:
    """A live bar on a terminal, a line for each finished cell elsewhere; both with what is left."""

    def __init__(self, console: Console, parallel: int) -> None:
        self._console, self._parallel = console, parallel
        self._bar = Bar(
            TextColumn("cells"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.description}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("")
        self._started = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_change(self, progress: Progress, ended: Cell | None) -> None:
        left = progress.remaining(self._parallel)
        time_left = "" if left is None else f", about {duration_text(left)} left"
        more = f", {progress.failed} failed" * bool(progress.failed) + time_left
        self._bar.update(
            self._task, total=progress.total, completed=progress.ended,
            description=more.removeprefix(", "),
        )  # fmt: skip
        again = ended is None and self._started  # each trial of a search has a start of its own
        if not self._console.is_terminal and not again:
            what = "start" if ended is None else f"{shown(ended.values)}, seed {ended.seed}"
            line = f"{progress.ended}/{progress.total} {what}{more}"
            self._console.print(line, markup=False)
        self._started = True
