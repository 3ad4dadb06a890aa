"""`fedaipc config`: see what a config means before running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fedaipc.config import Settings, describe_fields, load_settings, to_toml

app = typer.Typer(help="Show or check a configuration.", no_args_is_help=True)
ConfigFile = Annotated[
    Path | None, typer.Argument(help="TOML file; defaults without one", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, may be repeated", show_default=False),
]


@app.command()
def show(
    config: ConfigFile = None,
    overrides: Overrides = None,
    keys: Annotated[bool, typer.Option("--keys", help="list all keys instead")] = False,
) -> None:
    """Print the resolved settings as TOML.

    Example: fedaipc config show --set privacy.epsilon=3
    """
    settings = load_settings(config, overrides or ())
    if not keys:
        typer.echo(to_toml(settings), nl=False)
        return
    table = Table(Column("key", no_wrap=True), "allowed", "meaning", box=None)
    for row in describe_fields(Settings):
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


@app.command()
def check(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Check a config and say what it promises; exit code 2 if it cannot be used.

    Example: fedaipc config check my.toml
    """
    from fedaipc.federation.round_terms import check_sealing
    from fedaipc.privacy.plan import (
        charged_epsilon,
        covered_rounds,
        filter_order,
        make_plan,
        planned_epsilon,
    )
    from fedaipc.report.words import NOT_SEALED

    settings = load_settings(config, overrides or ())
    plan = make_plan(settings)
    rounds = settings.federation.rounds
    bounds = check_sealing(settings)
    typer.echo("the configuration is valid")
    if settings.sealing.mode == "none":
        typer.echo(f"{NOT_SEALED} (simulate asks for --insecure-plain-updates)")
    else:
        typer.echo(
            f"sealed: no sum of fewer than {bounds.least} PCs is opened; {bounds.colluding} of "
            f"{bounds.count} may be on the server's side, {bounds.shares} must answer to the end"
        )
    if not plan.private:
        typer.echo("NOT PRIVATE: neither clip nor noise")
        return
    lifetime = settings.privacy.lifetime_epsilon
    order = filter_order(plan, rounds, lifetime)
    epsilons = planned_epsilon(plan, rounds)
    charged = charged_epsilon(plan, rounds, order)
    typer.echo(
        f"noise multiplier {plan.noise_multiplier:.4f}, {rounds} rounds of {plan.local_steps} "
        f"steps at rate {plan.sampling_rate:g}: epsilon {charged:.3f} charged at delta "
        f"{plan.delta:g} (RDP {epsilons['rdp']:.3f}, PRV {epsilons['prv']:.3f}, "
        f"PLD {epsilons['pld']:.3f})"
    )
    if (covered := covered_rounds(plan, lifetime, order)) < rounds:
        typer.echo(
            f"PCs will decline after {covered} of {rounds} rounds: privacy.lifetime_epsilon is "
            f"{lifetime:g}"
        )
