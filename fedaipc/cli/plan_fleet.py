"""`fedaipc plan fleet`: what a job takes on a fleet that is not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedaipc.cli.config import ConfigFile, Overrides
from fedaipc.cli.output import AsJson, make_console, say, say_json
from fedaipc.config import load_settings
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from fedaipc.planning.forecast import FleetPlan

app = typer.Typer(help="Plan before anything runs.", no_args_is_help=True)


@app.callback()
def _plan() -> None:
    """With one command alone, typer would leave its name out."""


@app.command("fleet")
def plan_fleet(
    fleet: Annotated[
        Path,
        typer.Option(help="the fleet (TOML): speed classes, hours, network", show_default=False),
    ],
    config: ConfigFile = None,
    overrides: Overrides = None,
    clients: Annotated[
        str | None,
        typer.Option(help="numbers of PCs (default: 10,100,1000,10000,100000,1000000)"),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(help="price table; a copy of fedaipc/doctor/prices.toml, edited")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="simulated runs of each")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of the simulation")] = 0,
    plot: Annotated[Path | None, typer.Option(help="file for a plot, .png or .svg")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict time, traffic, energy and cost of a job on 10 to 1,000,000 PCs and on a rented GPU.

    Simulates events, not models: a million PCs take a minute. Reads no data.

    Example: fedaipc plan fleet simulations/demo.toml --fleet simulations/fleets/office.toml
    """
    from fedaipc.doctor.forecast import read_prices
    from fedaipc.planning import forecast
    from fedaipc.planning.fleet import read_fleet
    from fedaipc.planning.load import trained_values
    from fedaipc.report.plot_style import save

    settings, described = load_settings(config, overrides or ()), read_fleet(fleet)
    table = read_prices(prices)
    counts = forecast.CLIENTS if clients is None else _counts(clients)
    with make_console(stderr=True).status("simulating") as status:
        found = forecast.plan_fleet(
            settings, described, table, parameters=lambda: trained_values(settings),
            folder=fleet.parent, clients=counts, repeats=repeats, seed=seed, say=status.update,
        )  # fmt: skip
    if plot is not None:
        save(found.figure(), plot)
    if as_json:
        say_json(found.to_dict())
        return
    _show(make_console(highlight=False), found)
    if plot is not None:
        say(f"wrote {plot}")


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part.replace("_", "")) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--clients {text}: give whole numbers with commas between them, as in 10,100,1000"
        ) from None


def _show(console: Console, found: FleetPlan) -> None:
    console.print(
        f"{found.rounds:,} rounds, {found.parameters:,} trained values; medians of "
        f"{found.repeats:,} simulated runs, seed {found.seed}"
    )
    for table in found.tables():
        console.print()
        console.print(table)
    console.print()
    for line in found.lines():
        console.print(line, markup=False)
