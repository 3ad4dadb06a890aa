"""One self-contained page per run: no network, no script, readable in ten years."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from fedaipc import bounds
from fedaipc.report import formatting, plot_style, run_tables
from fedaipc.report.plots import figures
from fedaipc.report.template import render
from fedaipc.results import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.results import Results

REPORT_FILE = "report.html"
CONFIG_FILE = "config.toml"
PLOTS_FOLDER = "plots"
_ALT = {
    "accuracy": "Line plot: accuracy on the validation set by round",
    "epsilon": "Bar plot: epsilon spent by each PC beside its lifetime budget",
    "examples": "Bar plot: number of examples on each PC",
}


def write_report(results: Results, run_folder: Path) -> Path:
    """Write `report.html` into the run's folder, with its `config.toml` if there; return the path.

    Raises OutputError: the folder cannot be written.
    """
    try:
        config = bounds.read_text(run_folder / CONFIG_FILE, bounds.MAX_SETTINGS, errors="replace")
    except OSError:
        # The report is worth having without it: an old run may have been moved by hand.
        config = None
    path = run_folder / REPORT_FILE
    write_file(path, report_page(results, config).encode())
    return path


def write_all(results: Results, run_folder: Path) -> list[Path]:
    """Write `plots/` and `report.html` into the run's folder. Raises OutputError."""
    plots = plot_style.save_all(figures(results), run_folder / PLOTS_FOLDER)
    return [*plots, write_report(results, run_folder)]


def report_page(results: Results, config: str | None) -> str:
    """The whole page; `config` is the text of the resolved config.toml."""
    notes = (*results.data.notes, *formatting.results_warnings(results))
    return render(
        "report.html.j2", results=results, config=config, notes=[("note", one) for one in notes],
        plots=plot_style.inline_all(figures(results), _ALT),
        classes=run_tables.classes(results), pcs=run_tables.pcs(results),
        rounds=run_tables.rounds(results),
    )  # fmt: skip


def summary_html(results: Results) -> str:
    """What a notebook shows of a run: the headline, the numbers, the plots as pictures."""
    pictures = {}
    for name, figure in figures(results).items():
        png = plot_style.figure_bytes(figure, ".png", name, plot_style.SCREEN_DOTS)
        pictures[_ALT[name]] = b64encode(png).decode()
    return render("summary.html.j2", results=results, pictures=pictures)
