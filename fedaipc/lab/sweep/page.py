"""A whole sweep on one page: no network, no script."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fedaipc.lab.sweep.cells import shown
from fedaipc.lab.sweep.cost import composed_epsilon, selected_epsilon
from fedaipc.lab.sweep.plots import figures
from fedaipc.lab.sweep.table import points_of
from fedaipc.report import formatting, plot_style
from fedaipc.report.table import Alarm, Table
from fedaipc.report.template import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.lab.sweep.table import Point, Row

_CUT_SHORT = (
    "ended before the last round: a round that was interrupted is charged like any other, so the "
    "budget was spent earlier"
)


def sweep_page(name: str, rows: Sequence[Row]) -> str:
    """The whole page, also of a sweep that has not ended."""
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{counts[s]} {s}" for s in ("done", "open", "failed")
                       if counts[s] or s == "done")  # fmt: skip
    return render(
        "sweep.html.j2",
        name=name,
        lead=f"{formatting.count_text(len(rows), 'cell')}: {states}",
        plots=plot_style.inline_all(figures(rows)),
        points=point_table(rows),
        failed=Table(
            ("settings", "seed", "why"),
            [(shown(row.values), row.seed, row.error) for row in rows if row.state == "failed"],
            words=(0, 2),
        ),
        warning=warning(rows),
        cells=_cells(rows),
    )


def point_table(rows: Sequence[Row]) -> Table:
    """Each point over its seeds; incomplete runs are marked."""

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
        for point in points_of(rows)
    ]  # fmt: skip
    short = sum(row.cut_short for row in rows)
    return Table(
        ("settings", "runs", "test accuracy ± deviation", "validation", "epsilon charged"), lines,
        notes=[f"{formatting.count_text(short, 'run')} {_CUT_SHORT}"] if short else [],
    )  # fmt: skip


def warning(rows: Sequence[Row]) -> list[str]:
    """Say that tuning on private texts costs privacy, and how much for the cells of `rows`."""
    runs = [row.schedule for row in rows if row.schedule is not None]
    if not runs:
        return ["No private run has finished, so there is nothing to compose."]
    delta = max(row.delta or 0.0 for row in rows if row.schedule is not None)
    count, text = len(runs), formatting.epsilon_text
    alone = max(composed_epsilon([run], delta) for run in runs)
    together, shown_once = composed_epsilon(runs, delta), selected_epsilon(runs, delta, count)
    composed = (
        f"The {formatting.count_text(count, 'private run')} that finished, on the same PCs, would "
        f"cost epsilon {text(together)} together (RDP, delta {delta:g}), where the dearest one "
        f"alone costs {text(alone)}: that is what a coordinator sees, who gets all updates."
    )
    selected = (
        f"It would cost epsilon {text(shown_once)} if only the best model were ever shown and the "
        f"number of runs were drawn at random beforehand, with mean {count}. Each run's settings "
        "must then be drawn without looking at other results, which a tuner does not do (Papernot "
        "and Steinke 2022, theorem 2, eta 0)."
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


def _cells(rows: Sequence[Row]) -> Table:
    def number(value: float | None, digits: int) -> str:
        return formatting.UNKNOWN if value is None else f"{value:.{digits}f}"

    lines = [
        (
            row.cell, row.status or row.state, row.seed, number(row.test_accuracy, 4),
            number(row.noise_multiplier, 3), number(row.seconds, 0),
        )
        for row in rows
    ]  # fmt: skip
    columns = ("cell", "state", "seed", "test accuracy", "noise multiplier", "seconds")
    return Table(columns, lines, words=(0, 1))
