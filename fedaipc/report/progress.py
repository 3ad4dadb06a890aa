"""Progress of a run: a live bar on a terminal, one changing line in a notebook, or lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedaipc.report.formatting import NOT_PRIVATE, at_most, duration_text
from fedaipc.terminal import printable

if TYPE_CHECKING:
    from typing import Self

    from rich.console import Console

    from fedaipc.config import Settings
    from fedaipc.results import RoundResult


class _Shown:
    """A bar of Rich's where the console is a terminal; in a notebook, one line below a cell.

    What Rich prints in a notebook would be an output of its own for each line.
    """

    def __init__(
        self, console: Console, what: str, *more: TextColumn, transient: bool = False
    ) -> None:
        self._console = console
        self._in_notebook = console.is_jupyter and not console.quiet
        self._output: Any = None
        self._bar = Progress(
            TextColumn(what), BarColumn(), MofNCompleteColumn(), *more, TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, transient=transient,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show_in_notebook(self, text: str, done: int, total: int) -> None:
        """The line with a bar, which is replaced while the work continues."""
        from IPython.display import display as show
        from markupsafe import escape

        bar = f'<progress value="{done}" max="{total}"></progress>'
        content = {"text/plain": text, "text/html": f"{bar} {escape(printable(text))}"}
        if self._output is None:
            self._output = show(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)


class WarmUpBar(_Shown):
    """Shows that the base is trained on public texts first, if it is."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "warm-up on public texts", transient=True)

    def on_step(self, step: int, total: int) -> None:
        if self._in_notebook:
            text = f"warm-up on public texts: step {step}/{total}"
            self._show_in_notebook(text, step, total)
            return
        if not self._bar.task_ids:
            self._console.print("warm-up: the base is trained on public texts, once", markup=False)
            self._bar.start()
            self._bar.add_task("", total=total)
        self._bar.update(self._bar.task_ids[0], completed=step)


class Display(_Shown):
    """A live bar on a terminal, one line in a notebook, a line per round elsewhere.

    From the second round on with the time that is left.
    """

    def __init__(self, console: Console, settings: Settings) -> None:
        super().__init__(console, "rounds", TextColumn("{task.description}"))
        self._rounds = settings.rounds
        self._task = self._bar.add_task("first round: frozen layers", total=self._rounds)
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        self._bar.start()
        self._say("first the frozen layers see every text once, which takes longest", 0)
        return self

    def on_round(self, result: RoundResult) -> None:
        """Show one finished attempt."""
        words = [f"{result.arrived} of {result.asked} PCs"]
        if result.validation is not None:
            words.append(f"validation accuracy {result.validation.accuracy:.3f}")
        words.append(
            NOT_PRIVATE if result.epsilon is None else f"epsilon {at_most(result.epsilon, 2)}"
        )
        if result.void:
            words.append("void")
        line = ", ".join(words)
        done = result.round - result.void
        self._bar.update(self._task, completed=done, description=line)
        self._seconds.append(result.seconds)
        left = self._left(self._rounds - done)
        self._say(f"round {result.round}/{self._rounds}: {line}{left}", done)

    def _say(self, line: str, done: int) -> None:
        """Where no bar says it."""
        if self._in_notebook:
            self._show_in_notebook(line, done, self._rounds)
        elif not self._console.is_terminal:
            self._console.print(line, highlight=False)

    def _left(self, rounds: int) -> str:
        """The time that is left, by the pace of the last rounds; the first one says nothing."""
        recent = self._seconds[1:][-20:]
        if not rounds or not recent:
            return ""
        return f", about {duration_text(rounds * sum(recent) / len(recent))} left"
