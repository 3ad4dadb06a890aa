"""`fedaipc report RUN...`: show one run, or compare several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedaipc.cli.output import make_console, say, say_json
from fedaipc.report import run_tables
from fedaipc.results import Results


def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print the results as JSON")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="write plots/ and report.html of each run again")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="compare the runs in one plot, .png or .svg; in a folder: comparison.png",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the results of one run, or compare several in one table.

    Example: fedaipc report runs/demo-1 runs/demo-2 --plot comparison.png
    """
    # Nothing is drawn or written before every run has been read.
    results = [Results.load(run) for run in runs]
    written: list[Path] = []
    if write:
        from fedaipc.report.html import write_all

        for run, one in zip(runs, results, strict=True):
            written += write_all(one, run)
    if plot is not None:
        from fedaipc.report.plot_style import save
        from fedaipc.report.plots import comparison

        path = plot / "comparison.png" if plot.is_dir() else plot
        save(comparison(results), path)
        written.append(path)
    if as_json:
        trees = [one.model_dump(mode="json") for one in results]
        say_json(trees if len(trees) > 1 else trees[0])
        return
    _show(results)
    for run, one in zip(runs, results, strict=True):
        if one.status == "interrupted":
            resume = (
                "server train --resume NAME --server FOLDER"
                if one.engine == "fleet"
                else f"simulate --resume {run}"
            )
            say(f"{run}: was interrupted; `fedaipc {resume}` continues it")
    for path in written:
        say(f"wrote {path}")


def _show(results: list[Results]) -> None:
    console = make_console()
    if len(results) > 1:
        console.print(run_tables.compare(results))
        return
    console.print(run_tables.summary(results[0]))
    console.print()
    console.print(run_tables.classes(results[0]))
