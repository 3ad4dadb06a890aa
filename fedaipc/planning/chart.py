"""A fleet plan as a picture: wall-clock time and cost over the number of PCs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import StrMethodFormatter

from fedaipc.report import plot_style
from fedaipc.report.plot_style import drawing, new_figure, plain, put_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedaipc.planning.forecast import FleetForecast, FleetPlan, Spread


@drawing()
def fleet_figure(plan: FleetPlan) -> Figure:
    """Median and 5 to 95 % of the runs that finished; dashed lines are GPUs with a known speed."""
    figure = new_figure()
    time, cost = figure.subplots(1, 2)
    done = sorted((one for one in plan.fleets if one.finished), key=lambda one: one.clients)
    for axes, title, unit, per, field in (
        (time, f"{plan.rounds:,} rounds, wall-clock", "hours", 3600, "run_seconds"),
        (cost, "cost of all rounds", "dollars", 1, "dollars"),
    ):
        axes.set(title=title, xlabel="PCs", ylabel=unit, xscale="log")
        spreads: list[Spread] = [getattr(one, field) for one in done]
        if any(spread.median > 0 for spread in spreads):
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        pcs = [one.clients for one in done]
        axes.plot(
            pcs,
            [spread.median / per for spread in spreads],
            color=plot_style.BLUE,
            marker="o",
            markersize=4,
            label="fleet" if axes is time else None,
        )
        axes.fill_between(
            pcs,
            [spread.low / per for spread in spreads],
            [spread.high / per for spread in spreads],
            color=plot_style.BLUE,
            alpha=0.2,
            linewidth=0,
        )
    _gpu_lines(time, done, "hours", label=True)
    _gpu_lines(cost, done, "dollars", label=False)
    put_legend(figure)
    return figure


def _gpu_lines(axes: Axes, fleets: list[FleetForecast], field: str, *, label: bool) -> None:
    if not fleets:
        return
    for number, gpu in enumerate(fleets[0].gpus):
        points = [(one.clients, getattr(one.gpus[number], field)) for one in fleets]
        if all(value for _, value in points):
            axes.plot(
                *zip(*points, strict=True),
                color=plot_style.PALETTE[1 + number % (len(plot_style.PALETTE) - 1)],
                linestyle=plot_style.DASHES[1 + number % (len(plot_style.DASHES) - 1)],
                label=plain(f"GPU: {gpu.name}") if label else None,
            )
