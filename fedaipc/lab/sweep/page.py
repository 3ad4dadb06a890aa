"""A whole sweep on one page: no network, no script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc.lab.sweep.cells import shown
from fedaipc.lab.sweep.cost import composed_epsilon, selected_epsilon
from fedaipc.lab.sweep.plots import figures
from fedaipc.lab.sweep.table import points_of
from fedaipc.report import formatting, plot_style
from fedaipc.report.markup import escape, folded, inline_svg, page, section, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.lab.sweep.table import Row

CUT_SHORT = (
    "ended before the last round: a round that was interrupted is charged like any other, so the "
    "budget was spent earlier"
)
_TOGETHER = (
    "The {runs} that finished, on the same PCs, would cost epsilon {together} together (RDP, delta "
    "{delta:g}), where the dearest one alone costs {alone}: that is what a coordinator sees, who "
    "gets all updates."
)
_SHOWN_ONCE = (
    "Were only the best model ever shown, the number of runs drawn at random beforehand with mean "
    "{count}, and each run's settings drawn without a look at other results, which a tuner does "
    "not do, it would cost epsilon {epsilon} (Papernot and Steinke 2022, theorem 2, eta 0)."
)


def sweep_page(name: str, rows: Sequence[Row]) -> str:
    """The whole page, also of a sweep that has not ended."""
    points = points_of(rows)
    counts = {state: sum(row.state == state for row in rows) for state in ("done", "open")}
    failed = [row for row in rows if row.state == "failed"]
    with plot_style.drawing():
        drawn = [
            inline_svg(plot_style.svg_bytes(figure, key).decode(), key, f"Plot: {key}")
            for key, figure in figures(points, majority_of(rows)).items()
        ]
    lead = f"{formatting.count_text(len(rows), 'cell')}: {counts['done']} done"
    lead += f", {counts['open']} open" if counts["open"] else ""
    lead += f", {len(failed)} failed" if failed else ""
    best = table(
        ("settings", "runs", "cut short", "test accuracy", "deviation", "validation",
         "epsilon charged"),
        [
            (
                shown(p.values), p.runs, p.cut_short, f"{p.test_mean:.4f}",
                formatting.UNKNOWN if p.test_deviation is None else f"{p.test_deviation:.4f}",
                f"{p.validation_mean:.4f}",
                formatting.epsilon_text(p.epsilon) if p.private else formatting.NOT_PRIVATE,
            )
            for p in points
        ],
    )  # fmt: skip
    parts = [section("Results", *(drawn or ["<p>Nothing measured yet.</p>"]), best)]
    short = sum(row.cut_short for row in rows)
    if short:
        parts.append(f"<p>{escape(formatting.count_text(short, 'run'))} {CUT_SHORT}.</p>")
    if failed:
        parts.append(
            section(
                "Failed cells",
                table(
                    ("settings", "seed", "why"),
                    [(shown(row.values), row.seed, row.error) for row in failed],
                    words_in=(0, 2),
                ),
            )
        )
    parts.append(section("What choosing costs", *(f"<p>{escape(s)}</p>" for s in warning(rows))))
    parts.append(section("Cells", _cells(rows)))
    title = f"sweep {name}"
    head = f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'
    return page(f"{title} | fedaipc", head, *parts)


def warning(rows: Sequence[Row]) -> list[str]:
    """That tuning on private texts costs privacy, and what, for the private cells of `rows`."""
    private = [(row.schedule, row.delta) for row in rows]
    runs = [schedule for schedule, _ in private if schedule is not None]
    if not runs:
        return ["No private run has finished, so there is nothing to compose."]
    delta = max(delta for schedule, delta in private if schedule is not None and delta is not None)
    alone = max(composed_epsilon([run], delta) for run in runs)
    count = len(runs)
    together, shown_once = composed_epsilon(runs, delta), selected_epsilon(runs, delta, count)
    return [
        "Choosing settings by results on private texts costs privacy: each run is charged.",
        "On public texts, as in a simulation on a published data set, it costs nothing.",
        _TOGETHER.format(
            runs=formatting.count_text(count, "private run"),
            together=formatting.epsilon_text(together),
            alone=formatting.epsilon_text(alone),
            delta=delta,
        ),
        _SHOWN_ONCE.format(count=count, epsilon=formatting.epsilon_text(shown_once))
        + " That is no less than all of them together, which holds then too."
        * (shown_once >= together),
        "Accuracies on the test set are for reporting: choose by the validation column.",
    ]


def majority_of(rows: Sequence[Row]) -> float | None:
    """The commonest label's share of the test set, where all cells have the same."""
    found = {row.majority for row in rows if row.majority is not None}
    return found.pop() if len(found) == 1 else None


def _cells(rows: Sequence[Row]) -> str:
    lines = [
        (
            row.cell, row.status or row.state, row.seed,
            formatting.UNKNOWN if row.test_accuracy is None else f"{row.test_accuracy:.4f}",
            formatting.UNKNOWN if row.noise_multiplier is None else f"{row.noise_multiplier:.3f}",
            formatting.UNKNOWN if row.seconds is None else f"{row.seconds:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    head = ("cell", "state", "seed", "test accuracy", "noise multiplier", "seconds")
    return folded(f"{len(rows)} cells", table(head, lines, words_in=(0, 1)))
