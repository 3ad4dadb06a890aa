"""A plan as a plot: what it spends round by round, and the noise that other budgets need."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedaipc.lab.planner import Plan
from fedaipc.report import plot_style
from fedaipc.report.plot_style import count_along_x, drawing, new_figure


@drawing()
def plan_figure(plan: Plan, points: Sequence[tuple[int, float]], others: Sequence[Plan]) -> Figure:
    """`points` are rounds and what they spend; `others` the same schedule for other budgets."""
    figure = new_figure()
    spent, noise = figure.subplots(1, 2)
    spent.plot(*zip(*points, strict=True), color=plot_style.BLUE, marker="o", markersize=3)
    spent.set(title="spent, round by round", xlabel="rounds",
              ylabel=f"epsilon at delta {plan.delta:g}")  # fmt: skip
    count_along_x(spent)
    spent.set_ylim(bottom=0)
    noise.plot(
        [other.epsilon for other in others], [other.relative_noise for other in others],
        color=plot_style.ORANGE, marker="s", markersize=4,
    )  # fmt: skip
    noise.plot(plan.epsilon, plan.relative_noise, color=plot_style.INK, marker="*", markersize=11)
    noise.set(title="noise that a budget takes", xlabel="epsilon of the whole schedule",
              ylabel="noise on the mean gradient, in clip bounds", yscale="log")  # fmt: skip
    noise.yaxis.set_major_formatter("{x:g}")
    return figure
