"""`fedaipc privacy sweep`: many runs of one job with other settings, and what they tell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedaipc.cli.output import make_console
from fedaipc.cli.source import as_given
from fedaipc.errors import RoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from fedaipc.lab.sweep.cells import Cell
    from fedaipc.lab.sweep.run import SweepResult


def sweep(
    file: Annotated[Path, typer.Argument(help="what to vary (TOML)", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the sweep (default: runs/NAME in the working directory)"),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="cells at a time (default: as many as there are cores)"),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="only list the cells")] = False,
    insecure_plain_updates: Annotated[
        bool, typer.Option("--insecure-plain-updates", help="allow cells that are NOT SEALED")
    ] = False,
) -> None:
    """Run a grid, a list or a search of settings over several seeds, and compare.

    Each cell is a normal run folder. The same command again continues where it was stopped, and
    runs nothing twice. Leaves sweep.html, sweep.csv, sweep.json and plots.

    Example: fedaipc privacy sweep simulations/sweeps/budget.toml
    """
    from fedaipc.lab.sweep.cells import cells_of, read_sweep
    from fedaipc.lab.sweep.run import run_sweep

    wanted = read_sweep(file)
    base = None if wanted.config is None else file.parent / wanted.config
    folder = out or Path("runs") / wanted.name
    console = make_console(highlight=False)
    if dry:
        _list(console, cells_of(wanted, base), folder)
        return
    found = run_sweep(
        wanted, base, folder, console, parallel=parallel, plain_updates=insecure_plain_updates
    )
    show(console, found)
    if found.failed:
        raise RoundError(
            f"{len(found.failed)} of {len(found.rows)} cells failed, the first because: "
            + as_given(found.failed[0].error)
        )


def _list(console: Console, cells: Sequence[Cell], folder: Path) -> None:
    from fedaipc.lab.sweep.cells import shown
    from fedaipc.lab.sweep.runner import state_of
    from fedaipc.report.table import Table

    rows = [(shown(one.values), one.seed, one.error or state_of(folder, one)) for one in cells]
    console.print(Table(("cell", "seed", "state"), rows, words=(0, 2)))
    console.print(f"{len(cells)} cells, in {folder}", markup=False)


def show(console: Console, found: SweepResult) -> None:
    """The points, the cells that failed, and what choosing costs."""
    from fedaipc.lab.sweep.cells import shown

    if found.points:
        console.print(found.table)
    lines = [f"failed: {shown(one.values)}, seed {one.seed}: {one.error}" for one in found.failed]
    if found.best is not None:
        lines.append(f"best by validation accuracy: {shown(found.best)}")
    for line in (*lines, *found.cost(), f"all of it: {found.folder / 'sweep.html'}"):
        console.print(as_given(line), markup=False)
