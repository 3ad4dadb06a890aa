"""`fedaipc privacy`: what a budget buys, and what PCs have spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedaipc.cli.plan import plan
from fedaipc.errors import LedgerError

app = typer.Typer(help="Privacy budgets and ledgers.", no_args_is_help=True)
app.command("plan")(plan)


@app.command()
def ledger(
    folder: Annotated[
        Path, typer.Argument(help="run folder, folder of PCs, or one PC", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False,
) -> None:
    """Show what each PC has spent over its life.

    "charged" is what counts against the budget (RDP filter, valid whatever is asked later); RDP
    and PRV are tighter for the schedule as it happened.

    Example: fedaipc privacy ledger runs/demo
    """
    rows = [_row(path) for path in _ledgers(folder)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("PC", "rounds", "charged", "lifetime", "RDP", "PRV", "delta", box=None)
    for row in rows:
        if row["unprotected"]:
            shown = ["[bold red]NOT PRIVATE[/]", f"{row['lifetime_epsilon']:g}", "-", "-"]
        else:
            names = ("charged", "lifetime_epsilon", "rdp", "prv")
            shown = [f"{row[name]:.3f}" for name in names]
        table.add_row(row["pc"], str(row["charges"]), *shown, f"{row['delta']:g}")
    Console().print(table)


def _ledgers(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise LedgerError(f"{folder}: no such folder")
    from fedaipc.pc.pc import LEDGER_FILE

    place = folder / "pc-state.json"
    if place.is_file():
        try:
            folder = folder / json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            raise LedgerError(f"{place}: cannot be read; give the folder of the PCs") from None
    found = sorted(folder.glob(f"*/{LEDGER_FILE}"))
    own = folder / LEDGER_FILE
    if own.is_file():
        found = [own]
    if not found:
        raise LedgerError(f"{folder}: holds no ledger; give a run, a folder of PCs, or one PC")
    return found


def _row(path: Path) -> dict[str, Any]:
    from fedaipc.privacy.ledger import Ledger

    opened = Ledger(path)
    clean = not opened.unprotected
    prv = _prv(opened.mechanisms, opened.delta)
    return {
        "pc": path.parent.name,
        "charges": len(opened.charges),
        "unprotected": opened.unprotected,
        "charged": opened.spent_epsilon() if clean else None,
        "lifetime_epsilon": opened.lifetime_epsilon,
        "rdp": opened.best_epsilon() if clean else None,
        "prv": prv if clean else None,
        "delta": opened.delta,
        "order": opened.order,
    }


_seen: dict[Any, float] = {}


def _prv(mechanisms: tuple[Any, ...], delta: float) -> float:
    """PRV of a schedule; PCs of one run mostly share theirs, and it takes a second."""
    from fedaipc.privacy.accountant import epsilon_prv

    key = (mechanisms, delta)
    if key not in _seen:
        _seen[key] = epsilon_prv(mechanisms, delta)
    return _seen[key]
