"""Plots with one mark per PC, readable for five PCs and, of a run, for a hundred thousand."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedaipc.report import formatting, plot_style
from fedaipc.report.plot_style import (
    count_along_x,
    drawing,
    new_axes,
    plain,
    put_legend,
    put_title,
)

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


def epsilon_figure(results: Results) -> Figure:
    """Epsilon spent by each PC against its lifetime budget. Needs one PC with an epsilon."""
    figure, axes = new_axes(y="epsilon spent over the PC's life")
    pcs = [pc for pc in results.pcs if pc.epsilon is not None]
    blocks = {state: [pc for pc in pcs if pc.state == state] for state in STATES}
    handles: list[Artist] = []
    for state, block in blocks.items():
        if block:
            color, hatch = STATES[state]
            hatch = hatch if len(pcs) <= NAMED_BARS else ""
            label = f"{state}: {formatting.count_text(len(block), 'PC')}"
            handles.append(
                Patch(facecolor=color, hatch=hatch, edgecolor=plot_style.PAPER, label=label)
            )
    if len(pcs) <= NAMED_BARS:
        edges = np.arange(len(pcs) + 1) - 0.5
        axes.bar(
            range(len(pcs)),
            _spent(pcs),
            color=[STATES[pc.state][0] for pc in pcs],
            hatch=[STATES[pc.state][1] for pc in pcs],
            edgecolor=plot_style.PAPER,
            linewidth=0,
        )
        _name_bars(axes, pcs)
    else:
        pcs, edges = _sorted_blocks(axes, blocks)
        axes.set_xlabel(f"{_total(results)} PCs, sorted by state and by what they have spent")
    handles += _lifetime(axes, edges, pcs)
    _finish(figure, axes, handles)
    delta = formatting.delta_text(results.privacy.delta)
    put_title(axes, f"Epsilon per PC at delta {delta}: {plain(results.name)}", [results])
    return figure


def _sorted_blocks(
    axes: Axes, blocks: Mapping[str, Sequence[PcResult]]
) -> tuple[list[PcResult], NDArray[np.floating]]:
    """Draw one falling block per state; return the PCs drawn and the edges of their steps."""
    drawn: list[PcResult] = []
    edges, start = [np.array([-0.5])], -0.5
    for state, members in blocks.items():
        if not members:
            continue
        block = sorted(members, key=lambda pc: -(pc.epsilon or 0))
        picked = [block[k] for k in _picks(len(block))]
        steps = np.linspace(start, start + len(block), len(picked) + 1)
        axes.stairs(_spent(picked), steps, fill=True, color=STATES[state][0])
        drawn += picked
        edges.append(steps[1:])
        start += len(block)
    return drawn, np.concatenate(edges)


def examples_figure(results: Results) -> Figure:
    """Examples on each PC, coloured by its group. Needs one PC whose number is known."""
    figure, axes = new_axes()
    pcs = [pc for pc in results.pcs if pc.examples is not None]
    groups = _groups(pcs)
    colors = {
        group: plot_style.GREY
        if group == OTHER
        else plot_style.PALETTE[number % len(plot_style.PALETTE)]
        for number, group in enumerate(dict.fromkeys(sorted(groups, key=lambda g: g == OTHER)))
    }
    order = list(range(len(pcs)))
    if len(pcs) > NAMED_BARS:
        rank = {group: number for number, group in enumerate(colors)}
        order.sort(key=lambda k: (rank[groups[k]], -(pcs[k].examples or 0)))
    if len(pcs) <= SORTED_BARS:
        axes.bar(
            range(len(pcs)),
            [pcs[k].examples or 0 for k in order],
            color=[colors[groups[k]] for k in order],
            width=0.8 if len(pcs) <= NAMED_BARS else 1.0,
        )
        axes.set_ylabel("examples (texts)")
        if len(pcs) <= NAMED_BARS:
            _name_bars(axes, pcs)
        else:
            by = " by group and" if len(colors) > 1 else " by"
            axes.set_xlabel(f"{_total(results)} PCs, sorted{by} size")
    else:
        sizes = {group: [pcs[k].examples or 0 for k in order if groups[k] == group]
                 for group in colors}  # fmt: skip
        axes.hist(list(sizes.values()), bins=40, stacked=True, color=list(colors.values()))
        axes.set_xlabel("examples on a PC (texts)")
        axes.set_ylabel(f"number of PCs (of {_total(results)})")
    named = [Patch(facecolor=colors[group], label=plain(group)) for group in colors if group]
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
        color = plot_style.PALETTE[number % len(plot_style.PALETTE)]
        axes.bar(range(len(counts)), heights, bottom=bottom, color=color, width=0.9,
                 label=plain(label))  # fmt: skip
        bottom += heights
    count_along_x(axes)
    if len(labels) <= 12:
        put_legend(figure)
    return figure


def _picks(count: int) -> list[int]:
    """All of 0..count-1 where they are few, otherwise evenly spaced ones with first and last."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, POINTS))]


def _spent(pcs: Sequence[PcResult]) -> NDArray[np.floating]:
    return np.array([pc.epsilon or 0.0 for pc in pcs])


def _total(results: Results) -> str:
    return f"{len(results.pcs):,}"


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
    upright = len(pcs) <= 8
    axes.set_xticks(
        range(len(pcs)),
        [plain(pc.name, 14) for pc in pcs],
        rotation=0 if upright else 90,
        fontsize=10 if len(pcs) <= 24 else 8,
    )
    axes.tick_params(axis="x", length=0)


def _lifetime(axes: Axes, edges: NDArray[np.floating], pcs: Sequence[PcResult]) -> list[Artist]:
    """Draw the lifetime budgets: one line where all agree, otherwise a step above each PC."""
    heights = np.array([np.nan if pc.lifetime_epsilon is None else pc.lifetime_epsilon
                        for pc in pcs])  # fmt: skip
    if np.isnan(heights).all():
        return []
    low, high, highest = np.nanmin(heights), np.nanmax(heights), _spent(pcs).max()
    if low > 4 * highest > 0:
        # To scale, the bars would vanish.
        shown = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return [
            Line2D([], [], linestyle="none", label=f"lifetime budget: {shown} (above the plot)")
        ]
    axes.set_ylim(0, max(high, highest) * 1.06 or 1)
    style: dict[str, Any] = {"color": plot_style.INK, "linestyle": "--", "linewidth": 1.5}
    if low == high and not np.isnan(heights).any():
        return [axes.axhline(high, label=f"lifetime budget: {high:g}", **style)]
    axes.hlines(heights, edges[:-1], edges[1:], color=plot_style.INK, linewidth=2)
    return [Line2D([], [], color=plot_style.INK, linewidth=2, label="lifetime budget")]


def _finish(figure: Figure, axes: Axes, handles: Sequence[Artist]) -> None:
    """No grid lines between bars, little margin beside them, and the legend below the plot."""
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.01)
    put_legend(figure, handles)
