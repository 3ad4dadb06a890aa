"""Plots of a run, one that compares several, and one of what simulated PCs hold.

Those with one mark per PC are readable for five PCs and, of a run, for a hundred thousand.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedaipc.report import formatting, plot_style
from fedaipc.report.plot_style import count_along_x, drawing, new_axes, plain, put_legend, put_title

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fedaipc.results import PcResult, Results

NAMED_BARS = 40  # more PCs than this: no names, sorted
SORTED_BARS = 400  # more PCs than this: a histogram of their sizes
POINTS = 1000  # more PCs than this: evenly picked ones of the sorted list stand for all
STATES = {
    "active": (plot_style.BLUE, ""),
    "exhausted": (plot_style.VERMILLION, "///"),
    "absent": (plot_style.GREY, r"\\"),
}
OTHER = "other groups"
_TEST_MARK: dict[str, Any] = {"marker": "D", "markersize": 7, "capsize": 4}


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
    marker = "o" if len(numbers) <= 60 else ""
    axes.plot(numbers, values, color=plot_style.BLUE, linewidth=2, marker=marker, markersize=4,
              label="validation")  # fmt: skip
    if results.test is not None:
        axes.errorbar(
            numbers[-1:], [results.test.accuracy], yerr=results.standard_error, **_TEST_MARK,
            color=plot_style.VERMILLION, linestyle="none", zorder=3,
            label=f"test: {formatting.test_text(results)}",
        )  # fmt: skip
    if results.data.majority is not None:
        label = formatting.majority_text(results.data.majority)
        axes.axhline(results.data.majority, color=plot_style.GREY, linestyle="--", label=label)
    if void := sorted({one.round for one in results.rounds if one.void}):
        # At the foot of the plot, whatever the scale: a void attempt has no accuracy.
        axes.plot(
            void, [0.03] * len(void), transform=axes.get_xaxis_transform(), linestyle="none",
            color=plot_style.VERMILLION, marker="x", markersize=7, markeredgewidth=2,
            label="void attempt",
        )  # fmt: skip
    _label_rounds(axes, "accuracy (share of texts)")
    put_legend(figure)
    put_title(axes, f"Accuracy per round: {plain(results.name)}", [results])
    return figure


@drawing()
def comparison(runs: Sequence[Results]) -> Figure:
    """A plot of one run or more; left: validation accuracy per round, right: test accuracy and
    error.
    """
    figure = plot_style.new_figure(height=max(4.2, 1.8 + 0.32 * len(runs)))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    names = []
    for number, (name, run) in enumerate(zip(formatting.run_names(runs), runs, strict=True)):
        color = plot_style.color(number)
        dashes = plot_style.DASHES[number // len(plot_style.PALETTE) % len(plot_style.DASHES)]
        left.plot(*_curve(run), color=color, linestyle=dashes, linewidth=2)
        if run.test is not None:
            right.errorbar([run.test.accuracy], [number], xerr=run.standard_error, color=color,
                           **_TEST_MARK)  # fmt: skip
        # The line beside the name is the legend: same colour, same dashes.
        right.plot([-0.09, -0.01], [number, number], color=color, linestyle=dashes, linewidth=3,
                   transform=right.get_yaxis_transform(), clip_on=False)  # fmt: skip
        cost = formatting.cost_text(run)
        cost = cost if run.not_private else f"epsilon {cost}"
        names.append(f"{plain(name, 26)}\n{cost}")
    _label_rounds(left, "validation accuracy (share of texts)")
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


def epsilon_figure(results: Results) -> Figure:
    """Epsilon spent by each PC against its lifetime budget. Needs one PC with an epsilon."""
    figure, axes = new_axes(y="epsilon spent over the PC's life")
    pcs = [pc for pc in results.pcs if pc.epsilon is not None]
    few = len(pcs) <= NAMED_BARS
    blocks = {
        state: block for state in STATES if (block := [pc for pc in pcs if pc.state == state])
    }
    handles: list[Artist] = []
    for state, block in blocks.items():
        color, hatch = STATES[state]
        handles.append(
            Patch(
                facecolor=color, hatch=hatch if few else "", edgecolor=plot_style.PAPER,
                label=f"{state}: {formatting.count_text(len(block), 'PC')}",
            )
        )  # fmt: skip
    if few:
        edges = np.arange(len(pcs) + 1) - 0.5
        colors, hatches = zip(*(STATES[pc.state] for pc in pcs), strict=True)
        axes.bar(range(len(pcs)), _spent(pcs), color=colors, hatch=hatches,
                 edgecolor=plot_style.PAPER, linewidth=0)  # fmt: skip
        _name_bars(axes, pcs)
    else:
        pcs, edges = _sorted_blocks(axes, blocks)
        axes.set_xlabel(f"{len(results.pcs):,} PCs, sorted by state and by what they have spent")
    handles += _lifetime(axes, edges, pcs)
    _finish(figure, axes, handles)
    delta = formatting.delta_text(results.privacy.delta)
    put_title(axes, f"Epsilon per PC at delta {delta}: {plain(results.name)}", [results])
    return figure


def examples_figure(results: Results) -> Figure:
    """Examples on each PC, coloured by its group. Needs one PC whose number is known."""
    figure, axes = new_axes(y="examples (texts)")
    pcs = [pc for pc in results.pcs if pc.examples is not None]
    bars = [(group, pc.examples or 0) for group, pc in zip(_groups(pcs), pcs, strict=True)]
    groups = sorted(dict.fromkeys(group for group, _ in bars), key=lambda group: group == OTHER)
    colors = {
        group: plot_style.GREY if group == OTHER else plot_style.color(number)
        for number, group in enumerate(groups)
    }
    few = len(pcs) <= NAMED_BARS
    if few:
        _name_bars(axes, pcs)
    else:
        bars.sort(key=lambda bar: (groups.index(bar[0]), -bar[1]))
        by = "group and size" if len(groups) > 1 else "size"
        axes.set_xlabel(f"{len(results.pcs):,} PCs, sorted by {by}")
    if len(pcs) <= SORTED_BARS:
        heights, shades = [size for _, size in bars], [colors[group] for group, _ in bars]
        axes.bar(range(len(bars)), heights, color=shades, width=0.8 if few else 1.0)
    else:
        sizes = [[size for own, size in bars if own == group] for group in groups]
        axes.hist(sizes, bins=40, stacked=True, color=list(colors.values()))
        axes.set(xlabel="examples on a PC (texts)",
                 ylabel=f"number of PCs (of {len(results.pcs):,})")  # fmt: skip
    named = [Patch(facecolor=colors[group], label=plain(group)) for group in groups if group]
    _finish(figure, axes, named)
    put_title(axes, f"Examples per PC: {plain(results.name)}", [results])
    return figure


@drawing()
def holdings_figure(labels: Sequence[str], counts: Sequence[Mapping[str, int]]) -> Figure:
    """What simulated PCs hold before a run: stacked bars, records per PC by label."""
    figure, axes = new_axes(
        "Records per PC by label", f"{len(counts)} simulated PCs", "records (texts)"
    )
    bottom = np.zeros(len(counts))
    for number, label in enumerate(labels):
        heights = np.array([row[label] for row in counts], dtype=float)
        axes.bar(range(len(counts)), heights, bottom=bottom, color=plot_style.color(number),
                 width=0.9, label=plain(label))  # fmt: skip
        bottom += heights
    count_along_x(axes)
    if len(labels) <= 12:
        put_legend(figure)
    return figure


def _curve(results: Results) -> tuple[list[int], list[float]]:
    """Round numbers and validation accuracies of the rounds that were evaluated."""
    points = [(one.round, one.validation.accuracy) for one in results.rounds if one.validation]
    return [number for number, _ in points], [accuracy for _, accuracy in points]


def _label_rounds(axes: Axes, y: str) -> None:
    axes.margins(y=0.12)
    count_along_x(axes)
    axes.set(xlabel="round", ylabel=y)


def _sorted_blocks(
    axes: Axes, blocks: Mapping[str, Sequence[PcResult]]
) -> tuple[list[PcResult], NDArray[np.floating]]:
    """Draw one falling block per state; return the PCs drawn and the edges of their steps."""
    drawn: list[PcResult] = []
    edges, start = [np.array([-0.5])], -0.5
    for state, members in blocks.items():
        block = sorted(members, key=lambda pc: -(pc.epsilon or 0))
        # All where they are few, otherwise evenly spaced ones with the first and the last.
        places = np.linspace(0, len(block) - 1, min(len(block), POINTS))
        picked = [block[round(place)] for place in places]
        steps = np.linspace(start, start + len(block), len(picked) + 1)
        axes.stairs(_spent(picked), steps, fill=True, color=STATES[state][0])
        drawn += picked
        edges.append(steps[1:])
        start += len(block)
    return drawn, np.concatenate(edges)


def _spent(pcs: Sequence[PcResult]) -> NDArray[np.floating]:
    return np.array([pc.epsilon or 0.0 for pc in pcs])


def _groups(pcs: Sequence[PcResult]) -> list[str]:
    """One group name per PC, no more names than colours. "" where groups tell nothing."""
    names = [", ".join(pc.groups) for pc in pcs]
    common = Counter(names).most_common()
    if len(common) <= len(plot_style.PALETTE):
        return names
    if common[0][1] == 1:
        # Each PC is a group of its own (split by user): its bar is name enough.
        return [""] * len(names)
    kept = {name for name, _ in common[: len(plot_style.PALETTE) - 1]}
    return [name if name in kept else OTHER for name in names]


def _name_bars(axes: Axes, pcs: Sequence[PcResult]) -> None:
    rotation, size = 0 if len(pcs) <= 8 else 90, 10 if len(pcs) <= 24 else 8
    names = [plain(pc.name, 14) for pc in pcs]
    axes.set_xticks(range(len(pcs)), names, rotation=rotation, fontsize=size)
    axes.tick_params(axis="x", length=0)


def _lifetime(axes: Axes, edges: NDArray[np.floating], pcs: Sequence[PcResult]) -> list[Artist]:
    """Draw the lifetime budgets: one line where all agree, otherwise a step above each PC."""
    heights = np.array([pc.lifetime_epsilon for pc in pcs], dtype=float)  # NaN where not known
    if np.isnan(heights).all():
        return []
    low, high, highest = np.nanmin(heights), np.nanmax(heights), _spent(pcs).max()
    if low > 4 * highest > 0:
        # To scale, the bars would vanish.
        shown = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        label = f"lifetime budget: {shown} (above the plot)"
        return [Line2D([], [], linestyle="none", label=label)]
    axes.set_ylim(0, max(high, highest) * 1.06 or 1)
    if low == high and not np.isnan(heights).any():
        label = f"lifetime budget: {high:g}"
        return [axes.axhline(high, color=plot_style.INK, linestyle="--", linewidth=1.5,
                             label=label)]  # fmt: skip
    axes.hlines(heights, edges[:-1], edges[1:], color=plot_style.INK, linewidth=2)
    return [Line2D([], [], color=plot_style.INK, linewidth=2, label="lifetime budget")]


def _finish(figure: Figure, axes: Axes, handles: Sequence[Artist]) -> None:
    """No grid lines between bars, little margin beside them, and the legend below the plot."""
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.01)
    put_legend(figure, handles)
