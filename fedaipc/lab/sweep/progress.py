"""How far a sweep has come, and how that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from fedaipc.lab.sweep.cells import shown
from fedaipc.report.formatting import duration_text

if TYPE_CHECKING:
    from typing import Self

    from rich.console import Console

    from fedaipc.lab.sweep.cells import Cell


@dataclass(slots=True)
class Progress:
    """`seconds` are those of cells that finished in this call; `running` how many run now."""

    total: int
    done: int
    failed: int
    running: int
    seconds: list[float]

    @property
    def left(self) -> int:
        return self.total - self.done - self.failed

    def remaining(self, parallel: int) -> float | None:
        """Seconds until the end at the pace so far; None before the first cell has finished."""
        if not self.seconds:
            return None
        return self.left / parallel * sum(self.seconds) / len(self.seconds)


class Display:
    """A live bar on a terminal, a line for each finished cell elsewhere; both with what is left."""

    def __init__(self, console: Console, parallel: int) -> None:
        self._console, self._parallel = console, parallel
        self._bar = Bar(
            TextColumn("cells"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.description}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_change(self, progress: Progress, ended: Cell | None) -> None:
        left = progress.remaining(self._parallel)
        time_left = "" if left is None else f", about {duration_text(left)} left"
        failed = f", {progress.failed} failed" if progress.failed else ""
        words = f"{failed}{time_left}".removeprefix(", ")
        self._bar.update(
            self._task, total=progress.total, completed=progress.done + progress.failed,
            description=words,
        )  # fmt: skip
        if not self._console.is_terminal:
            what = "start" if ended is None else f"{shown(ended.values)}, seed {ended.seed}"
            done = f"{progress.done + progress.failed}/{progress.total}"
            self._console.print(f"{done} {what}{failed}{time_left}", markup=False)
