"""A whole sweep on one page: no network, no script."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fedaipc.lab.sweep.cells import shown
from fedaipc.lab.sweep.plots import figures
from fedaipc.report import formatting, plot_style
from fedaipc.report.table import Table
from fedaipc.report.template import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.lab.sweep.run import SweepResult
    from fedaipc.lab.sweep.table import Row


def sweep_page(found: SweepResult) -> str:
    """The whole page, also of a sweep that has not ended."""
    counts = Counter(row.state for row in found.rows)
    states = ", ".join(f"{counts[s]} {s}" for s in ("done", "open", "failed")
                       if counts[s] or s == "done")  # fmt: skip
    return render(
        "sweep.html.j2",
        name=found.name,
        lead=f"{formatting.count_text(len(found.rows), 'cell')}: {states}",
        plots=plot_style.inline_all(figures(found.rows)),
        points=found.table,
        failed=Table(
            ("settings", "seed", "why"),
            [(shown(row.values), row.seed, row.error) for row in found.failed],
            words=(0, 2),
        ),
        warning=found.cost(),
        cells=_cells(found.rows),
    )


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
