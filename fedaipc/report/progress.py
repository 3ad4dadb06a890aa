"""Progress of a run: a live bar on a terminal and in a notebook, a line per round elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console

    from fedaipc.config import Settings
    from fedaipc.results import RoundResult


class WarmUpBar:
    """Shows that the base is trained on public texts first, if it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = False
        self._bar = Progress(
            TextColumn("warm-up on public texts"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step(self, step: int, total: int) -> None:
        if not self._said:
            self._said = True
            self._console.print("warm-up: the base is trained on public texts, once", markup=False)
            self._bar.start()
            self._bar.add_task("", total=total)
        self._bar.update(self._bar.task_ids[0], completed=step)


class Display:
    """A live bar on a terminal, a line per round elsewhere; both with the time that is left."""

    def __init__(self, console: Console, settings: Settings) -> None:
        self._console = console
        self._rounds = settings.rounds
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("first round: frozen layers", total=self._rounds)
        self._accuracy = ""
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._live:
            self._console.print(
                "round 1 takes longest: frozen layers are computed once for every text"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_round(self, result: RoundResult) -> None:
        """Show one finished attempt."""
        if result.validation is not None:
            self._accuracy = f"accuracy {result.validation.accuracy:.3f}"
        spent = "NOT PRIVATE" if result.epsilon is None else f"epsilon {result.epsilon:.2f}"
        pcs = f"{result.arrived} of {result.asked} PCs"
        words = [pcs, self._accuracy, spent] + (["void"] if result.void else [])
        line = ", ".join(word for word in words if word)
        done = result.round - result.void
        self._bar.update(self._task, completed=done, description=line)
        self._seconds.append(result.seconds)
        if not self._live:
            line += self._left(self._rounds - done)
            self._console.print(f"round {result.round}/{self._rounds}: {line}", highlight=False)

    def _left(self, rounds: int) -> str:
        """Of the last rounds, since the first one takes longest."""
        from fedaipc.report.formatting import duration_text

        if not rounds:
            return ""
        recent = self._seconds[1:][-20:] or self._seconds
        return f", about {duration_text(rounds * sum(recent) / len(recent))} left"
