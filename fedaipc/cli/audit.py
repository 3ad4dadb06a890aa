"""`fedaipc privacy audit`: attack real runs, and put what that reaches beside what is promised."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedaipc.cli.config import ConfigFile, Overrides
from fedaipc.cli.output import make_console
from fedaipc.config import load_settings
from fedaipc.errors import ConfigError, OutputError, PrivacyError
from fedaipc.report.formatting import at_least, at_most

if TYPE_CHECKING:
    from fedaipc.lab.audit.report import AuditReport

_NONE = "none"


def audit(
    config: ConfigFile = None,
    overrides: Overrides = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(help=f"budget to attack, or {_NONE}; repeatable [default: none, 8, 2]"),
    ] = None,
    canaries: Annotated[int, typer.Option(min=2, help="canaries on each PC")] = 40,
    runs: Annotated[
        int, typer.Option(min=0, help="runs for membership inference at each budget; 0: none")
    ] = 16,
    inversion: Annotated[
        bool, typer.Option("--inversion/--no-inversion", help="read words out of updates")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="new folder for the result; else runs/audit")
    ] = None,
) -> None:
    """Attack real runs of a job: a lower bound on epsilon beside the promise, and what leaks.

    Takes its texts from the config, which must be yours to attack. Leaves audit.json, audit.html
    and plots; a promise that an attack refutes is an error. Where it is stopped, audit.json holds
    the budgets that were done.

    Example: fedaipc privacy audit simulations/audit.toml --epsilon none --epsilon 4
    """
    from fedaipc.lab.audit.page import audit_page, write_plots
    from fedaipc.lab.audit.report import run_audit
    from fedaipc.results import write_file

    settings = load_settings(config, overrides or ())
    budgets = [_budget(text) for text in epsilon or (_NONE, "8", "2")]
    folder = out or Path("runs") / "audit"
    if folder.exists():
        raise OutputError(f"{folder}: is there already; give a new --out")
    console = make_console(highlight=False)
    scratch, result = folder / "runs", folder / "audit.json"
    try:
        scratch.mkdir(parents=True)
        report = run_audit(
            settings, budgets, scratch, canaries=canaries, runs=runs, inversion=inversion,
            say=lambda line: console.print(line, markup=False),
            keep=lambda report: write_file(result, report.to_json().encode()),
        )  # fmt: skip
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    write_file(result, report.to_json().encode())
    write_plots(report, folder / "plots")
    write_file(folder / "audit.html", audit_page(report).encode())
    _show(console, report)
    console.print(f"all of it: {folder / 'audit.html'}", markup=False)
    if report.contradictions:
        first = report.contradictions[0].canary
        raise PrivacyError(
            f"a promise is refuted: epsilon {at_most(first.promised or 0.0)} was promised, and it "
            f"is at least {at_least(first.bound.lower)} with confidence "
            f"{first.bound.confidence:g}: noise or clip are not what they should be"
        )


def _budget(text: str) -> float | None:
    if text == _NONE:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"--epsilon {text}: give a number above 0, or {_NONE}")
    return value


def _show(console: Console, report: AuditReport) -> None:
    from fedaipc.lab.audit.page import REFUTED, rate_text, setting_name, verdict

    table = Table("setting", "promised", "reached", "right guesses", "", box=None)
    for one in report.settings:
        bound, promised, said = one.canary.bound, one.canary.promised, verdict(one)
        table.add_row(
            setting_name(one),
            "nothing" if promised is None else f"<= {at_most(promised)}",
            f">= {at_least(bound.lower)}",
            f"{bound.right:,} of {bound.guesses:,}",
            said if said != REFUTED else f"[bold red]{said}[/]",
        )  # fmt: skip
    console.print(table)
    if any(one.membership is not None for one in report.settings):
        table = Table("setting", "attack", "AUC", "TPR at 0.1 %", "TPR at 1 %", "judged", box=None)
        for one in report.settings:
            if one.membership is None:
                continue
            both = {"ratio": one.membership.likelihood_ratio, "loss": one.membership.loss}
            for kind, curve in both.items():
                table.add_row(
                    setting_name(one), kind, f"{curve.auc:.3f}",
                    rate_text(curve.tpr_at_01_percent, 0.001, one.membership.outsiders),
                    rate_text(curve.tpr_at_1_percent, 0.01, one.membership.outsiders),
                    f"{one.membership.members:,} in, {one.membership.outsiders:,} out",
                )  # fmt: skip
        console.print(table)
    if report.inversion is not None:
        table = Table("words read from", "recovered", "by chance", box=None)
        for reading in report.inversion.readings:
            table.add_row(reading.source, f"{reading.recall:.0%}", f"{reading.chance:.1%}")
        console.print(table)
