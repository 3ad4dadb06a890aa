"""A plan as a picture: what it spends round by round, and the noise that other budgets take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fedaipc.report import plot_style
from fedaipc.report.plot_style import drawing, new_figure
from fedaipc.results import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from fedaipc.lab.planner import Plan


def write_chart(
    path: Path,
    plan: Plan,
    points: Sequence[tuple[int, float]],
    others: Sequence[Plan],
) -> None:
    """Write .png or .svg. Raises OutputError: another ending, or the file cannot be written."""
    plot_style.check_ending(path.suffix)
    with drawing():
        content = plot_style.figure_bytes(_figure(plan, points, others), path.suffix, "plan")
    write_file(path, content)


def _figure(plan: Plan, points: Sequence[tuple[int, float]], others: Sequence[Plan]) -> Figure:
    figure = new_figure()
    spent, noise = figure.subplots(1, 2)
    spent.plot(*zip(*points, strict=True), color=plot_style.BLUE, marker="o", markersize=3)
    spent.set_title("spent, round by round")
    spent.set_xlabel("rounds")
    spent.set_ylabel(f"epsilon at delta {plan.delta:g}")
    spent.xaxis.set_major_locator(MaxNLocator(integer=True))
    spent.set_ylim(bottom=0)
    noise.plot(
        [other.epsilon for other in others],
        [other.relative_noise for other in others],
        color=plot_style.ORANGE,
        marker="s",
        markersize=4,
    )
    noise.plot(plan.epsilon, plan.relative_noise, color=plot_style.INK, marker="*", markersize=11)
    noise.set_title("noise that a budget takes")
    noise.set_xlabel("epsilon of the whole schedule")
    noise.set_ylabel("noise on the mean gradient, in clip bounds")
    noise.set_yscale("log")
    noise.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return figure
