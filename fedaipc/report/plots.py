"""Write the plots of one run, and one plot that compares several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from fedaipc.report import formatting, plot_style
from fedaipc.report.bars import epsilon_figure, examples_figure
from fedaipc.report.plot_style import (
    count_along_x,
    drawing,
    new_axes,
    new_figure,
    plain,
    put_legend,
    put_title,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedaipc.results import Results


@drawing()
def figures(results: Results) -> dict[str, Figure]:
    """Figures by name; a plot without data is left out."""
    out = {}
    if any(one.validation for one in results.rounds):
        out["accuracy"] = accuracy_figure(results)
    if any(pc.epsilon is not None for pc in results.pcs):
        out["epsilon"] = epsilon_figure(results)
    if any(pc.examples is not None for pc in results.pcs):
        out["examples"] = examples_figure(results)
    return out


def accuracy_figure(results: Results) -> Figure:
    """Validation accuracy per round; at its end the test accuracy with its standard error."""
    figure, axes = new_axes()
    numbers, values = _curve(results)
    axes.plot(
        numbers,
        values,
        color=plot_style.BLUE,
        linewidth=2,
        marker="o" if len(numbers) <= 60 else "",
        markersize=4,
        label="validation",
    )
    if results.test is not None:
        axes.errorbar(
            numbers[-1:],
            [results.test.accuracy],
            yerr=results.standard_error,
            color=plot_style.VERMILLION,
            marker="D",
            markersize=7,
            capsize=4,
            linestyle="none",
            zorder=3,
            label=f"test: {formatting.test_text(results)}",
        )
    if results.data.majority is not None:
        axes.axhline(
            results.data.majority,
            color=plot_style.GREY,
            linestyle="--",
            label=f"always the commonest label: {results.data.majority:.3f}",
        )
    _mark_void(axes, results)
    _label_rounds(axes)
    put_legend(figure)
    put_title(axes, f"Accuracy per round: {plain(results.name)}", [results])
    return figure


@drawing()
def comparison(runs: Sequence[Results]) -> Figure:
    """A plot of one run or more; left: validation accuracy per round, right: test accuracy and
    error.
    """
    figure = new_figure(height=max(4.2, 1.8 + 0.32 * len(runs)))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    names = []
    for number, (name, run) in enumerate(zip(formatting.run_names(runs), runs, strict=True)):
        color = plot_style.PALETTE[number % len(plot_style.PALETTE)]
        dashes = plot_style.DASHES[number // len(plot_style.PALETTE) % len(plot_style.DASHES)]
        left.plot(*_curve(run), color=color, linestyle=dashes, linewidth=2)
        if run.test is not None:
            right.errorbar(
                [run.test.accuracy],
                [number],
                xerr=run.standard_error,
                color=color,
                marker="D",
                markersize=7,
                capsize=4,
            )
        # The line beside the name is the legend: same colour, same dashes.
        right.plot([-0.09, -0.01], [number, number], color=color, linestyle=dashes, linewidth=3,
                   transform=right.get_yaxis_transform(), clip_on=False)  # fmt: skip
        cost = formatting.cost_text(run)
        cost = cost if run.not_private else f"epsilon {cost}"
        names.append(f"{plain(name, 26)}\n{cost}")
    _label_rounds(left)
    left.set_ylabel("validation accuracy (share of texts)")
    right.set_yticks(range(len(runs)), names, fontsize=9)
    for tick, run in zip(right.get_yticklabels(), runs, strict=True):
        tick.set_color(plot_style.ALARM if run.not_private else plot_style.INK)
    right.tick_params(axis="y", length=0, pad=26)
    right.set_ylim(len(runs) - 0.5, -0.5)
    right.margins(x=0.15)
    right.xaxis.set_major_locator(MaxNLocator(4))
    right.set_xlabel("test accuracy ± standard error")
    put_title(left, f"Comparison of {formatting.count_text(len(runs), 'run')}", runs)
    return figure


def _curve(results: Results) -> tuple[list[int], list[float]]:
    """Round numbers and validation accuracies of the rounds that were evaluated."""
    points = [(one.round, one.validation.accuracy) for one in results.rounds if one.validation]
    return [number for number, _ in points], [accuracy for _, accuracy in points]


def _mark_void(axes: Axes, results: Results) -> None:
    void = sorted({one.round for one in results.rounds if one.void})
    if void:
        # At the foot of the plot, whatever the scale: a void attempt has no accuracy.
        axes.plot(
            void,
            [0.03] * len(void),
            transform=axes.get_xaxis_transform(),
            color=plot_style.VERMILLION,
            marker="x",
            markersize=7,
            markeredgewidth=2,
            linestyle="none",
            label="void attempt",
        )


def _label_rounds(axes: Axes) -> None:
    axes.margins(y=0.12)
    count_along_x(axes)
    axes.set(xlabel="round", ylabel="accuracy (share of texts)")
