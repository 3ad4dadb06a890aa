"""`fedaipc privacy`: what a budget buys, and what PCs have spent."""

from __future__ import annotations

import typer

from fedaipc.cli import ledger
from fedaipc.cli.plan import plan

app = typer.Typer(help="Privacy budgets and ledgers.", no_args_is_help=True)
app.command("plan")(plan)
app.add_typer(ledger.app, name="ledger")
