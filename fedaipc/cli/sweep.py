"""`fedaipc privacy sweep`: many runs of one job with other settings, and what they tell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fedaipc.cli.output import make_console
from fedaipc.cli.source import as_given
from fedaipc.errors import RoundError
from fedaipc.machine import cpus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from fedaipc.lab.sweep.cells import Cell
    from fedaipc.lab.sweep.runner import Progress as Done
    from fedaipc.lab.sweep.table import Row


def sweep(
    file: Annotated[Path, typer.Argument(help="what to vary (TOML)", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="folder of the sweep; else runs/NAME, from where you are")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="cells at a time; else as many as there are cores")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="only list the cells")] = False,
    insecure_plain_updates: Annotated[
        bool, typer.Option("--insecure-plain-updates", help="allow cells that are NOT SEALED")
    ] = False,
) -> None:
    """Run a grid, a list or a search of settings over several seeds, and compare.

    Each cell is a normal run folder. The same command again goes on where it was stopped, and
    runs nothing twice. Leaves sweep.html, sweep.csv, sweep.json and plots.

    Example: fedaipc privacy sweep simulations/sweeps/budget.toml
    """
    from fedaipc.lab.sweep.cells import cells_of, read_sweep, shown
    from fedaipc.lab.sweep.page import majority_of, sweep_page, warning
    from fedaipc.lab.sweep.plots import figures
    from fedaipc.lab.sweep.runner import Runner
    from fedaipc.lab.sweep.search import check_kind, search
    from fedaipc.lab.sweep.table import points_of, rows_of, to_csv, to_json
    from fedaipc.report.plot_style import save_all
    from fedaipc.results import write_file

    wanted = read_sweep(file)
    base = None if wanted.config is None else file.parent / wanted.config
    cells = cells_of(wanted, base)
    console = make_console(highlight=False)
    folder = out or Path("runs") / wanted.name
    if dry:
        _list(console, cells, folder)
        return
    count = parallel or cpus()
    check_kind(folder, search=wanted.search is not None)
    runner = Runner(folder, count, plain_updates=insecure_plain_updates)
    best = None
    with _Display(console, count) as display:
        if wanted.search is None:
            runner.run(cells, display.on_change)
        else:
            cells, best = search(wanted, wanted.search, base, folder, runner, display.on_change)
    rows = rows_of(folder, cells)
    if all(row.state == "done" for row in rows):
        runner.clear()
    write_file(folder / "sweep.csv", to_csv(rows).encode())
    write_file(folder / "sweep.json", to_json(wanted.name, rows).encode())
    save_all(figures(points_of(rows), majority_of(rows)), folder / "plots")
    write_file(folder / "sweep.html", sweep_page(wanted.name, rows).encode())
    _show(console, rows)
    if best is not None:
        console.print(f"best by validation accuracy: {shown(best)}", markup=False)
    for sentence in warning(rows):
        console.print(sentence, markup=False)
    console.print(f"all of it: {folder / 'sweep.html'}", markup=False)
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        raise RoundError(
            f"{len(failed)} of {len(rows)} cells failed, the first because: "
            + as_given(failed[0].error)
        )


def _list(console: Console, cells: Sequence[Cell], folder: Path) -> None:
    from fedaipc.lab.sweep.cells import shown
    from fedaipc.lab.sweep.runner import state_of
    from fedaipc.report.table import Table

    rows = [(shown(one.values), one.seed, one.error or state_of(folder, one)) for one in cells]
    console.print(Table(("cell", "seed", "state"), rows, words=(0, 2)))
    console.print(f"{len(cells)} cells, in {folder}", markup=False)


def _show(console: Console, rows: Sequence[Row]) -> None:
    from fedaipc.lab.sweep.cells import shown
    from fedaipc.lab.sweep.page import point_table

    table = point_table(rows)
    if table.rows:
        console.print(table)
    for row in rows:
        if row.state == "failed":
            line = f"failed: {shown(row.values)}, seed {row.seed}: {row.error}"
            console.print(as_given(line), markup=False)


class _Display:
    """A live bar on a terminal, a line for each finished cell elsewhere; both with what is left."""

    def __init__(self, console: Console, parallel: int) -> None:
        self._console, self._parallel = console, parallel
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("cells"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.description}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_change(self, progress: Done, ended: Cell | None) -> None:
        from fedaipc.lab.sweep.cells import shown

        left = progress.remaining(self._parallel)
        time_left = "" if left is None else f", about {_minutes(left)} left"
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


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
