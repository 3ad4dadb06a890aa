"""`fedaipc privacy audit`: attack real runs, and put what that achieves beside what is promised."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedaipc.cli.config import ConfigFile, Overrides
from fedaipc.cli.output import make_console
from fedaipc.config import load_settings
from fedaipc.errors import ConfigError, OutputError, PrivacyError
from fedaipc.report.formatting import at_least, at_most

if TYPE_CHECKING:
    from fedaipc.lab.audit.report import AuditReport

_NONE = "none"
_ON_EACH = 40  # canaries


def audit(
    config: ConfigFile = None,
    overrides: Overrides = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(
            help=f"budget to attack, or {_NONE}; repeat it for more (default: none, 8, 2)"
        ),
    ] = None,
    canaries: Annotated[
        int | None,
        typer.Option(min=2, help=f"canaries over all PCs (default: {_ON_EACH} on each)"),
    ] = None,
    runs: Annotated[
        int, typer.Option(min=0, help="runs for membership inference at each budget; 0: none")
    ] = 16,
    inversion: Annotated[
        bool, typer.Option("--inversion/--no-inversion", help="read words out of updates")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="new folder for the result (default: runs/audit)")
    ] = None,
) -> None:
    """Attack real runs of a job: a lower bound on epsilon beside the promise, and what leaks.

    Uses the texts that the config names: attack only texts that you may. Leaves audit.json,
    audit.html and plots; a promise that an attack refutes is an error. If it is stopped, audit.json
    holds the budgets that were finished.

    Example: fedaipc privacy audit simulations/audit.toml --epsilon none --epsilon 4
    """
    from fedaipc.lab.audit.page import audit_page, figures
    from fedaipc.lab.audit.report import run_audit
    from fedaipc.report.plot_style import save_all
    from fedaipc.results import write_file

    settings = load_settings(config, overrides or ())
    budgets = [_budget(text) for text in epsilon or (_NONE, "8", "2")]
    folder = out or Path("runs") / "audit"
    if folder.exists():
        raise OutputError(f"{folder}: is there already; give a new --out")
    canaries = canaries or _ON_EACH * settings.federation.clients
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
    save_all(figures(report), folder / "plots")
    write_file(folder / "audit.html", audit_page(report).encode())
    _show(console, report)
    console.print(f"all of it: {folder / 'audit.html'}", markup=False)
    if report.contradictions:
        first = report.contradictions[0].canary
        raise PrivacyError(
            f"a promise is refuted: epsilon {at_most(first.promised or 0.0)} was promised, and it "
            f"is at least {at_least(first.bound.lower)} with confidence "
            f"{first.bound.confidence:g}: the noise or the clipping is wrong"
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
    from fedaipc.lab.audit.page import canary_table, membership_table, reading_table

    tables = [canary_table(report.settings)]
    if any(one.membership is not None for one in report.settings):
        tables.append(membership_table(report.settings))
    if report.inversion is not None:
        tables.append(reading_table(report.inversion))
    for table in tables:
        console.print(table, "")
