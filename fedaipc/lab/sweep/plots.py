"""Plots of a sweep: utility against epsilon with error bars, and heat maps of two settings."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from fedaipc.lab.sweep.cells import EPSILON, shown
from fedaipc.lab.sweep.table import Point, Row, points_of
from fedaipc.report import plot_style
from fedaipc.report.plot_style import drawing, new_axes, plain, put_legend

_MAX_LINES, _MAX_MAPS = 7, 3


@drawing()
def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """All plots by their names; those without data are left out."""
    points = points_of(rows)
    out: dict[str, Figure] = {}
    if len(_epsilons(points)) > 1:
        out["utility"] = utility_figure(points, _majority(rows))
    for first, second in itertools.islice(itertools.combinations(_varied(points), 2), _MAX_MAPS):
        name = f"map-{first.partition('.')[2]}-{second.partition('.')[2]}"
        out[name] = heat_map(points, first, second)
    return out


def utility_figure(points: Sequence[Point], majority: float | None) -> Figure:
    """Test accuracy by epsilon: mean over the seeds, with their standard deviation.

    A dashed line for the same settings without privacy; a dotted one for the commonest label, where
    that is near.
    """
    figure, axes = new_axes("what a privacy budget costs", "epsilon of one record", "test accuracy")
    groups: dict[str, list[Point]] = {}
    for point in points:
        rest = {key: value for key, value in point.values.items() if key != EPSILON}
        groups.setdefault(shown(rest) or "private", []).append(point)
    for place, (name, group) in enumerate(itertools.islice(groups.items(), _MAX_LINES)):
        colour = plot_style.PALETTE[place]
        private = sorted((p for p in group if _has_epsilon(p)), key=lambda p: p.values[EPSILON])
        if private:
            axes.errorbar(
                [p.values[EPSILON] for p in private],
                [p.test_mean for p in private],
                yerr=[p.test_deviation or 0.0 for p in private],
                color=colour, marker="osD^vPX"[place], capsize=3, linewidth=2, label=plain(name),
            )  # fmt: skip
        for open_point in (p for p in group if not p.private):
            axes.axhline(
                open_point.test_mean, color=colour, linestyle="--", linewidth=1.4,
                label=plain(f"not private, {name}" if len(groups) > 1 else "not private"),
            )  # fmt: skip
    low, high = axes.get_ylim()
    # Further below it would flatten everything else.
    if majority is not None and majority > low - (high - low):
        axes.axhline(majority, color=plot_style.GREY, linestyle=":", label="commonest label")
    axes.set_xscale("log")
    axes.set_xticks(_epsilons(points))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    put_legend(figure)
    return figure


def heat_map(points: Sequence[Point], first: str, second: str) -> Figure:
    """Mean test accuracy by two settings; where others vary too, over them as well."""
    rows, columns = _ordered(points, first), _ordered(points, second)

    def mean(row: Any, column: Any) -> float:
        found = [p.test_mean for p in points
                 if p.values.get(first) == row and p.values.get(second) == column]  # fmt: skip
        return statistics.mean(found) if found else math.nan

    means = [[mean(row, column) for column in columns] for row in rows]
    figure, axes = new_axes("test accuracy", second, first, height=1.4 + 0.55 * len(rows))
    image = axes.imshow(means, cmap="cividis", aspect="auto")
    finite = [value for line in means for value in line if math.isfinite(value)]
    middle = (min(finite) + max(finite)) / 2 if finite else 0.0
    for y, x in itertools.product(range(len(rows)), range(len(columns))):
        if math.isfinite(means[y][x]):
            ink = plot_style.PAPER if means[y][x] < middle else plot_style.INK
            axes.text(x, y, f"{means[y][x]:.3f}", ha="center", va="center", color=ink)
    axes.set_xticks(range(len(columns)), [plain(shown(value), 16) for value in columns])
    axes.set_yticks(range(len(rows)), [plain(shown(value), 16) for value in rows])
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes)
    return figure


def _epsilons(points: Sequence[Point]) -> list[float]:
    return sorted({p.values[EPSILON] for p in points if _has_epsilon(p)})


def _has_epsilon(point: Point) -> bool:
    value = point.values.get(EPSILON)
    return isinstance(value, float | int) and math.isfinite(value) and point.private


def _varied(points: Sequence[Point]) -> list[str]:
    keys = dict.fromkeys(key for point in points for key in point.values)
    return [k for k in keys if len({str(p.values.get(k)) for p in points}) > 1]


def _ordered(points: Sequence[Point], key: str) -> list[Any]:
    """What a setting was, each value once: numbers by their size, before words and lists."""
    values = {str(p.values[key]): p.values[key] for p in points if key in p.values}
    return sorted(
        values.values(), key=lambda v: (0, v, "") if isinstance(v, float | int) else (1, 0, str(v))
    )


def _majority(rows: Sequence[Row]) -> float | None:
    """The commonest label's share of the test set, where all cells have the same."""
    found = {row.majority for row in rows if row.majority is not None}
    return found.pop() if len(found) == 1 else None
