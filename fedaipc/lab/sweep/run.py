"""A whole sweep: run its cells, or those that a tuner chooses, and write what they tell."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from fedaipc.config import Settings
from fedaipc.errors import ConfigError
from fedaipc.lab.sweep.cells import Sweep, Values, cells_of, shown
from fedaipc.lab.sweep.cost import composed_epsilon, selected_epsilon
from fedaipc.lab.sweep.plots import figures
from fedaipc.lab.sweep.progress import Display, Progress
from fedaipc.lab.sweep.runner import CACHE_FOLDER, Runner, locked
from fedaipc.lab.sweep.search import check_kind, search
from fedaipc.lab.sweep.table import Point, Row, measured, points_of, rows_of, to_json
from fedaipc.machine import cpus
from fedaipc.report import formatting
from fedaipc.report.plot_style import inline_all, save_all
from fedaipc.report.table import Alarm, Table
from fedaipc.report.template import render
from fedaipc.results import write_file

_CUT_SHORT = (
    "ended before the last round: a round that was interrupted is charged like any other, so the "
    "budget was spent earlier"
)


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
        """The points, to be printed; those with incomplete runs are marked."""

        def accuracy(point: Point) -> str:
            deviation = "" if point.test_deviation is None else f" ± {point.test_deviation:.4f}"
            return f"{point.test_mean:.4f}{deviation}"

        lines = [
            (
                shown(point.values) or formatting.UNKNOWN,
                f"{point.runs}" + f", {point.cut_short} cut short" * bool(point.cut_short),
                accuracy(point), f"{point.validation_mean:.4f}",
                formatting.epsilon_text(point.epsilon)
                if point.private else Alarm(formatting.NOT_PRIVATE),
            )
            for point in self.points
        ]  # fmt: skip
        short = sum(row.cut_short for row in self.rows)
        return Table(
            ("settings", "runs", "test accuracy ± deviation", "validation", "epsilon charged"),
            lines,
            notes=[f"{formatting.count_text(short, 'run')} {_CUT_SHORT}"] if short else [],
        )  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        """A cell each, with what varies as columns of their own: for `pandas.DataFrame`."""
        keys = dict.fromkeys(key for row in self.rows for key in row.values)
        return [
            {key: row.values.get(key, "") for key in keys} | measured(row, "values")
            for row in self.rows
        ]

    def cost(self) -> list[str]:
        """What choosing among these runs costs in privacy, in sentences."""
        runs = [row.schedule for row in self.rows if row.schedule is not None]
        if not runs:
            return ["No private run has finished, so there is nothing to compose."]
        delta = max(row.delta or 0.0 for row in self.rows if row.schedule is not None)
        count, text = len(runs), formatting.epsilon_text
        alone = max(composed_epsilon([run], delta) for run in runs)
        together, shown_once = composed_epsilon(runs, delta), selected_epsilon(runs, delta, count)
        composed = (
            f"The {formatting.count_text(count, 'private run')} that finished, on the same PCs, "
            f"would cost epsilon {text(together)} together (RDP, delta {delta:g}), where the "
            f"dearest one alone costs {text(alone)}: that is what a coordinator sees, who gets all "
            "updates."
        )
        selected = (
            f"It would cost epsilon {text(shown_once)} if only the best model were ever shown and "
            f"the number of runs were drawn at random beforehand, with mean {count}. Each run's "
            "settings must then be drawn without looking at other results, which a tuner does not "
            "do (Papernot and Steinke 2022, theorem 2, eta 0)."
        )
        if shown_once >= together:
            selected += " That is no less than all of them together, which holds then too."
        return [
            "Choosing settings by results on private texts costs privacy: each run is charged.",
            "On public texts, as in a simulation on a published data set, it costs nothing.",
            composed,
            selected,
            "Accuracies on the test set are for reporting: choose by the validation column.",
        ]

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
        write_file(self.folder / "sweep.csv", Table.of_records(self.records()).to_csv().encode())
        write_file(self.folder / "sweep.json", to_json(self.name, self.rows).encode())
        save_all(figures(self.rows), self.folder / "plots")
        write_file(self.folder / "sweep.html", sweep_page(self).encode())

    def __repr__(self) -> str:
        best = "" if self.best is None else f", best: {shown(self.best)}"
        return f"<SweepResult {self.name}: {len(self.rows)} cells, {len(self.failed)} failed{best}>"

    def _repr_html_(self) -> str:
        return self.table.__html__()


def sweep_page(found: SweepResult) -> str:
    """The whole sweep on one page, also of one that has not ended: no network, no script."""
    counts: Counter[str] = Counter(row.state for row in found.rows)
    states = [state for state in ("done", "open", "failed") if counts[state] or state == "done"]
    lead = ", ".join(f"{counts[state]} {state}" for state in states)
    failed = [(shown(row.values), row.seed, row.error) for row in found.failed]

    def number(value: float | None, digits: int) -> str:
        return formatting.UNKNOWN if value is None else f"{value:.{digits}f}"

    cells = [
        (
            row.cell, row.status or row.state, row.seed, number(row.test_accuracy, 4),
            number(row.noise_multiplier, 3), number(row.seconds, 0),
        )
        for row in found.rows
    ]  # fmt: skip
    columns = ("cell", "state", "seed", "test accuracy", "noise multiplier", "seconds")
    return render(
        "sweep.html.j2",
        name=found.name,
        lead=f"{formatting.count_text(len(found.rows), 'cell')}: {lead}",
        plots=inline_all(figures(found.rows)),
        points=found.table,
        failed=Table(("settings", "seed", "why"), failed, words=(0, 2)),
        warning=found.cost(),
        cells=Table(columns, cells, words=(0, 1)),
    )


def run_sweep(
    sweep: Sweep,
    base: Path | Settings | None,
    folder: Path,
    console: Console,
    *,
    parallel: int | None,
    plain_updates: bool,
) -> SweepResult:
    """Run the unfinished cells in `folder`, on top of a job or its config file, and write.

    `parallel` cells at a time, as many as there are cores without it; the console shows how far it
    is. Other cells go on where one fails. Raises ConfigError, or OutputError where the folder is in
    use or cannot be written.
    """
    cells, best = cells_of(sweep, base), None
    check_kind(folder, search=sweep.search is not None)
    parallel = parallel or cpus()
    with Display(console, parallel) as display:
        runner = Runner(folder, parallel, display.on_change, plain_updates)
        runner.check(cells)
        with locked(folder):
            if sweep.search is None:
                runner.run(cells, Progress(len(cells)))
            else:
                cells, best = search(sweep, sweep.search, base, runner)
            found = SweepResult(sweep.name, folder, rows_of(folder, cells), best)
            if all(row.state == "done" for row in found.rows):  # no more cells are to share it
                shutil.rmtree(folder / CACHE_FOLDER, ignore_errors=True)
            found.write()
    return found
