"""`fedaipc data`: what simulated PCs would hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedaipc.cli.config import Overrides
from fedaipc.cli.output import AsJson, make_console, say_json
from fedaipc.cli.source import (
    By,
    Encoding,
    Label,
    NoHeader,
    Pcs,
    Quoting,
    SkipUnusable,
    Source,
    SourceCommand,
    Text,
    as_given,
    read_settings,
)
from fedaipc.report.table import Table

if TYPE_CHECKING:
    from fedaipc.config import Settings
    from fedaipc.data.prepare import SimulatedData

_MAX_ROWS = 50
_MAX_LABELS = 8

app = typer.Typer(help="Look at simulated data.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `describe` a sub-command."""


@app.command(cls=SourceCommand)
def describe(
    source: Source = None,
    text: Text = None,
    label: Label = None,
    by: By = None,
    pcs: Pcs = None,
    encoding: Encoding = None,
    quoting: Quoting = None,
    no_header: NoHeader = False,
    skip_unusable: SkipUnusable = False,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="also draw it, .png or .svg")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each simulated PC holds (a real PC tells nobody).

    Example: fedaipc data describe reviews.csv --text body --label stars --by customer
    """
    from fedaipc.data.prepare import prepare_simulation

    settings = read_settings(
        source, overrides, {}, text=text, label=label, by=by, pcs=pcs, encoding=encoding,
        quoting=quoting, no_header=no_header, skip_unusable=skip_unusable,
    )  # fmt: skip
    data = prepare_simulation(settings.data, settings.federation.clients)
    rows = [_row(data, number) for number in range(len(data.parts))]
    if plot is not None:
        from fedaipc.report.plot_style import save
        from fedaipc.report.plots import holdings_figure

        save(holdings_figure(data.labels, [row["labels"] for row in rows]), plot)
    if as_json:
        say_json(rows)
        return
    console = make_console()
    console.print(_table(data.labels, rows))
    if len(rows) > _MAX_ROWS:
        console.print(f"... and {len(rows) - _MAX_ROWS:,} more (--json shows all)")
    sizes = (
        f"{len(data.train):,} training, {len(data.validation):,} validation and "
        f"{len(data.test):,} test texts"
    )
    console.print(sizes, highlight=False)
    for line in (*data.notes, *_fit_lines(settings, data)):
        console.print(as_given(line), highlight=False, markup=False)


def _fit_lines(settings: Settings, data: SimulatedData) -> list[str]:
    """How the texts fit the model; why it is not known, where the model cannot be loaded."""
    from fedaipc.errors import AssetError, ModelError
    from fedaipc.model.fit import measure_fit
    from fedaipc.model.load import load_tokenizer
    from fedaipc.report.formatting import fit_text, fit_warnings

    try:
        tokenizer = load_tokenizer(settings.model)
    except (AssetError, ModelError) as error:
        return [f"how the texts fit the model is not known: {error}"]
    fit = measure_fit(tokenizer, data.train.texts, settings.model.max_length)
    shown = f"{fit_text(fit)} at model.max_length = {settings.model.max_length}"
    return [f"{settings.model.base}: {shown}", *(f"note: {w}" for w in fit_warnings(training=fit))]


def _table(labels: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    """A line per PC; with many labels only how many of them it holds."""
    shown = labels if len(labels) <= _MAX_LABELS else ()
    lines = []
    for row in rows[:_MAX_ROWS]:
        counts = row["labels"]
        cells = [counts[label] for label in shown] or [sum(n > 0 for n in counts.values())]
        groups = ", ".join(row["groups"][:6]) + (", ..." if len(row["groups"]) > 6 else "")
        lines.append([row["pc"], row["records"], *cells, groups])
    columns = ("PC", "records", *(shown or ("labels held",)), "groups")
    return Table(columns, lines, words=(0, len(columns) - 1))


def _row(data: SimulatedData, number: int) -> dict[str, Any]:
    part = data.train.take(data.parts[number])
    labels = Counter(part.labels)
    return {
        "pc": f"pc-{number:04d}",
        "records": len(part),
        "labels": {label: labels[label] for label in data.labels},
        "groups": sorted(set(part.groups or ())),
    }
