"""What simulated PCs hold, drawn before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from fedaipc.report import plot_style
from fedaipc.results import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def write_holdings(labels: Sequence[str], counts: Sequence[Mapping[str, int]], path: Path) -> None:
    """Stacked bars: records per PC by label. Raises OutputError."""
    plot_style.check_ending(path.suffix)
    with plot_style.drawing():
        figure = plot_style.new_figure()
        axes = figure.add_subplot()
        bottom = np.zeros(len(counts))
        for number, label in enumerate(labels):
            heights = np.array([row[label] for row in counts], dtype=float)
            color = plot_style.PALETTE[number % len(plot_style.PALETTE)]
            axes.bar(range(len(counts)), heights, bottom=bottom, color=color, width=0.9,
                     label=plot_style.plain(label))  # fmt: skip
            bottom += heights
        axes.set_xlabel(f"{len(counts)} simulated PCs")
        axes.set_ylabel("records (texts)")
        axes.set_title("Records per PC by label")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(labels) <= 12:
            plot_style.put_legend(figure, axes.get_legend_handles_labels()[0])
        write_file(path, plot_style.figure_bytes(figure, path.suffix, "holdings"))
