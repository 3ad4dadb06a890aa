"""A whole sweep: run its cells, or those that a tuner chooses, and write what they tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.errors import ConfigError
from fedaipc.lab.sweep.cells import cells_of, shown
from fedaipc.lab.sweep.page import point_table, sweep_page, warning
from fedaipc.lab.sweep.plots import figures
from fedaipc.lab.sweep.progress import Progress
from fedaipc.lab.sweep.runner import Runner
from fedaipc.lab.sweep.search import check_kind, search
from fedaipc.lab.sweep.table import points_of, records, rows_of, to_csv, to_json
from fedaipc.report.plot_style import save_all
from fedaipc.results import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from fedaipc.config import Settings
    from fedaipc.lab.sweep.cells import Cell, Sweep, Values
    from fedaipc.lab.sweep.table import Point, Row
    from fedaipc.report.table import Table


@dataclass(frozen=True, slots=True, repr=False)
class SweepResult:
    """What a sweep measured: `rows` has every cell, `points` each point over its seeds.

    `folder` holds a run folder for each cell; `best` are the values of a search's best trial, by
    accuracy on the validation set.
    """

    name: str
    folder: Path
    rows: Sequence[Row]
    best: Values | None = None
    keep: object = None  # a temporary folder, kept as long as the SweepResult object exists

    @property
    def points(self) -> list[Point]:
        """Mean and standard deviation over the seeds; points that failed are left out."""
        return points_of(self.rows)

    @property
    def failed(self) -> list[Row]:
        """Cells that failed; `error` says why."""
        return [row for row in self.rows if row.state == "failed"]

    @property
    def table(self) -> Table:
        """The points, to be printed."""
        return point_table(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """A cell each, with what varies as columns of their own: for `pandas.DataFrame`."""
        return records(self.rows)

    def cost(self) -> list[str]:
        """What choosing among these runs costs in privacy, in sentences."""
        return warning(self.rows)

    def plot(self, name: str = "utility") -> Figure:
        """A matplotlib figure: test accuracy by epsilon, or a map of two settings.

        Raises ConfigError where there is none of that name.
        """
        found = figures(self.rows)
        if name not in found:
            raise ConfigError(f"no plot {name}; this sweep has {', '.join(found) or 'none'}")
        return found[name]

    def write(self) -> None:
        """Write sweep.csv, sweep.json, sweep.html and plots/. Raises OutputError."""
        write_file(self.folder / "sweep.csv", to_csv(self.rows).encode())
        write_file(self.folder / "sweep.json", to_json(self.name, self.rows).encode())
        save_all(figures(self.rows), self.folder / "plots")
        write_file(self.folder / "sweep.html", sweep_page(self.name, self.rows).encode())

    def __repr__(self) -> str:
        best = "" if self.best is None else f", best: {shown(self.best)}"
        return f"<SweepResult {self.name}: {len(self.rows)} cells, {len(self.failed)} failed{best}>"

    def _repr_html_(self) -> str:
        return self.table.__html__()


def run_sweep(
    sweep: Sweep,
    base: Path | Settings | None,
    folder: Path,
    *,
    parallel: int,
    plain_updates: bool,
    on_change: Callable[[Progress, Cell | None], None],
) -> SweepResult:
    """Run the unfinished cells in `folder`, on top of a job or its config file, and write.

    `parallel` cells at a time. Other cells go on where one fails. Raises ConfigError, OutputError.
    """
    cells, best = cells_of(sweep, base), None
    check_kind(folder, search=sweep.search is not None)
    runner = Runner(folder, parallel, on_change, plain_updates=plain_updates)
    if sweep.search is None:
        runner.run(cells, Progress(len(cells)))
    else:
        cells, best = search(sweep, sweep.search, base, folder, runner)
    found = SweepResult(sweep.name, folder, rows_of(folder, cells), best)
    if all(row.state == "done" for row in found.rows):
        runner.clear()
    found.write()
    return found
