"""`fedaipc privacy`: what a budget buys, what PCs have spent, and proof of that."""

from __future__ import annotations

import typer

from fedaipc.cli import certificate, ledger
from fedaipc.cli.audit import audit
from fedaipc.cli.plan import plan
from fedaipc.cli.sweep import sweep

app = typer.Typer(help="Privacy budgets, ledgers and certificates.", no_args_is_help=True)
app.command("plan")(plan)
app.command("sweep")(sweep)
app.command("audit")(audit)
app.add_typer(certificate.app, name="certificate")
app.add_typer(ledger.app, name="ledger")
