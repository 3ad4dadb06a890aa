"""Progress of a run: a live bar on a terminal, one changing line in a notebook, or lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from typing import Self

    from rich.console import Console

    from fedaipc.config import Settings
    from fedaipc.results import RoundResult


class NotebookLine:
    """One line with a bar below a cell, replaced while the work continues.

    What Rich prints in a notebook would be an output of its own for each line.
    """

    def __init__(self) -> None:
        self._shown: Any = None

    @classmethod
    def of(cls, console: Console) -> NotebookLine | None:
        """None where the console is not a notebook, or quiet."""
        return cls() if console.is_jupyter and not console.quiet else None

    def show(self, text: str, done: int, total: int) -> None:
        from IPython.display import display as show
        from markupsafe import escape

        from fedaipc.terminal import printable

        bar = f'<progress value="{done}" max="{total}"></progress>'
        content = {"text/plain": text, "text/html": f"{bar} {escape(printable(text))}"}
        if self._shown is None:
            self._shown = show(content, raw=True, display_id=True)
        else:
            self._shown.update(content, raw=True)


class WarmUpBar:
    """Shows that the base is trained on public texts first, if it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._notebook = NotebookLine.of(console)
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
        if self._notebook is not None:
            self._notebook.show(f"warm-up on public texts: step {step}/{total}", step, total)
            return
        if not self._said:
            self._said = True
            self._console.print("warm-up: the base is trained on public texts, once", markup=False)
            self._bar.start()
            self._bar.add_task("", total=total)
        self._bar.update(self._bar.task_ids[0], completed=step)


class Display:
    """A live bar on a terminal, one line in a notebook, a line per round elsewhere.

    From the second round on with the time that is left.
    """

    def __init__(self, console: Console, settings: Settings) -> None:
        self._console = console
        self._rounds = settings.rounds
        self._live = console.is_terminal
        self._notebook = NotebookLine.of(console)
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
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._live:
            self._say("round 1 takes longest: frozen layers are computed once for every text", 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_round(self, result: RoundResult) -> None:
        """Show one finished attempt."""
        score = result.validation
        accuracy = "" if score is None else f"validation accuracy {score.accuracy:.3f}"
        spent = "NOT PRIVATE" if result.epsilon is None else f"epsilon {result.epsilon:.2f}"
        pcs = f"{result.arrived} of {result.asked} PCs"
        words = [pcs, accuracy, spent] + (["void"] if result.void else [])
        line = ", ".join(word for word in words if word)
        done = result.round - result.void
        self._bar.update(self._task, completed=done, description=line)
        self._seconds.append(result.seconds)
        if not self._live:
            line += self._left(self._rounds - done)
            self._say(f"round {result.round}/{self._rounds}: {line}", done)

    def _say(self, line: str, done: int) -> None:
        if self._notebook is None:
            self._console.print(line, highlight=False)
        else:
            self._notebook.show(line, done, self._rounds)

    def _left(self, rounds: int) -> str:
        """The time that is left, by the pace of the last rounds; the first one says nothing."""
        from fedaipc.report.formatting import duration_text

        recent = self._seconds[1:][-20:]
        if not rounds or not recent:
            return ""
        return f", about {duration_text(rounds * sum(recent) / len(recent))} left"
