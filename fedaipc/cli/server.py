"""`fedaipc server start`, `train`, `status`, `stop`: what runs on the server."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedaipc.cli.output import make_console, say
from fedaipc.errors import OutputError
from fedaipc.report.table import Table

if TYPE_CHECKING:
    from fedaipc.results import Results

ServerFolder = Annotated[
    Path, typer.Option("--server", help="the server's folder", show_default=False)
]
_LOOK = 0.5
_SPENT = "the PCs' budgets for life do not cover another round"


app = typer.Typer(help="The server: let members in, train signed jobs.", no_args_is_help=True)


@app.command()
def start(
    folder: Annotated[
        Path, typer.Argument(help="what `federation init` made for the server", show_default=False)
    ],
    bind: Annotated[str, typer.Option(help="address of this machine to listen on")] = "0.0.0.0",  # noqa: S104 - facing the network is its task
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: a free one")] = 8443,
    per_address: Annotated[
        int,
        typer.Option(
            min=2,
            max=10_000,
            help="most connections from one address; raise it where many PCs share one",
        ),
    ] = 64,
) -> None:
    """Serve a federation until Ctrl-C or SIGTERM: PCs connect, and wanted runs continue.

    Example: fedaipc server start acme-server --port 8443
    """
    from fedaipc.fleet.server import Server

    def tell(line: str) -> None:
        say(f"{time.strftime('%H:%M:%S')} {line}")

    os.umask(0o077)  # nobody else may read database and logs
    Server(folder, bind, port, per_address, tell).serve()


@app.command()
def train(
    job: Annotated[
        Path | None, typer.Argument(help="what `federation sign` made", show_default=False)
    ] = None,
    server: ServerFolder = Path(),
    name: Annotated[
        str | None, typer.Option(help="name of the run (default: the name of the job's folder)")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="name of a run to continue")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for the end")] = False,
) -> None:
    """Let the running server train a signed job, and watch. Ctrl-C stops only the watching.

    Example: fedaipc server train first-job --server acme-server
    """
    from fedaipc.fleet.runs import run_folder, running, submit, want

    if (job is None) == (resume is None):
        raise OutputError("give the folder of a signed job, or --resume with a run's name")
    if resume is not None:
        run = run_folder(server, resume)
        want(run)
    else:
        assert job is not None  # noqa: S101 - see above
        run = submit(server, job, name or job.resolve().name)
    say(f"{run}: wanted")
    if running(server) is None:
        say(f"no server runs in {server}; the run begins with `fedaipc server start {server}`")
    elif not detach:
        try:
            _watch(run, server)
        except KeyboardInterrupt:
            say(f"the run goes on; `fedaipc server stop {run.name} --server {server}` halts it")


@app.command()
def status(server: ServerFolder = Path()) -> None:
    """Show whether the server runs, and its runs.

    Example: fedaipc server status --server acme-server
    """
    from fedaipc.fleet.runs import RUNS_FOLDER, run_status, running, waits_for, why
    from fedaipc.protocol.server_folder import Facts, Nodes
    from fedaipc.results import RESULTS_FILE, Results

    facts, found = Facts.load(server), running(server)
    members = len(Nodes.load(server).nodes)
    state = "not running" if found is None else f"running on port {found['port']}"
    say(f"server of federation {facts.federation}: {state}, {members} members")
    rows = []
    for run in sorted((server / RUNS_FOLDER).glob("*/")):
        cells, reason = ["", "", ""], why(run)
        try:
            word = run_status(run)
            if (run / RESULTS_FILE).is_file():
                cells = _cells(Results.load(run))
        except OSError as error:
            word, reason = "waiting", f"{run}: {error.strerror}"
        if word in {"running", "waiting"}:
            reason = waits_for(run, server, found)
            word = "waiting" if found is None else word
            if word == "running" and not reason and not cells[1]:
                reason = "the first round: each PC loads the model and tries out its machine"
        if word == "stopped":
            reason = reason or _SPENT
        rows.append((run.name, word, *cells, "" if word == "finished" else reason or ""))
    columns = ("run", "state", "round", "PCs in the last", "accuracy", "why")
    make_console(width_in_a_file=200).print(Table(columns, rows, words=(0, 1, 5)))


@app.command()
def stop(
    run: Annotated[str, typer.Argument(help="name of the run", show_default=False)],
    server: ServerFolder = Path(),
) -> None:
    """Halt a run; `train --resume` continues from its checkpoint.

    Example: fedaipc server stop first-job --server acme-server
    """
    from fedaipc.fleet.runs import run_folder, running, tell_why, unwant

    unwant(run_folder(server, run))
    tell_why(run_folder(server, run), "fedaipc server stop")
    what = "is halted" if running(server) is None else "the server halts it"
    say(f"{run}: {what}; `fedaipc server train --resume {run} --server {server}` goes on")


def _cells(results: Results) -> list[str]:
    rounds = results.rounds
    done = max((r.round for r in rounds if not r.void), default=0)
    last = f"{rounds[-1].arrived} of {rounds[-1].asked}" if rounds else ""
    scores = [score for r in rounds if (score := r.validation) is not None]
    shown, texts = (scores[-1] if scores else None), "validation"
    if results.test is not None:
        shown, texts = results.test, "test"
    return [
        f"{done} of {results.privacy.rounds}",
        last,
        "" if shown is None else f"{shown.accuracy:.3f} ({texts})",
    ]


def _watch(run: Path, server: Path) -> None:
    """Show rounds as they are written, until the run is finished or no longer wanted.

    Raises OutputError where it halted, BudgetExhausted where the PCs' budgets ended it.
    """
    from fedaipc.cli.simulate import show_results
    from fedaipc.config import load_settings
    from fedaipc.errors import BudgetExhausted
    from fedaipc.fleet.ownership import as_server
    from fedaipc.fleet.runs import LOG_FILE, WANTED_FILE, run_status, running, waits_for, why
    from fedaipc.protocol.job_folder import CONFIG_FILE
    from fedaipc.report.html import write_all
    from fedaipc.report.progress import Display
    from fedaipc.results import RESULTS_FILE, Results

    console, seen, told = make_console(), 0, None
    settings = load_settings(run / CONFIG_FILE)
    with Display(console, settings) as display:
        while True:
            over = not (run / WANTED_FILE).is_file()
            results = Results.load(run) if (run / RESULTS_FILE).is_file() else None
            for result in results.rounds[seen:] if results else ():
                display.on_round(result)
            seen = len(results.rounds) if results else 0
            if over:
                break
            reason = waits_for(run, server, running(server))
            if reason is not None and reason != told:
                console.print(f"waiting: {reason}", markup=False)
            told = reason
            time.sleep(_LOOK)
    word = run_status(run)
    if results is None or word not in {"finished", "stopped"}:
        raise OutputError(f"{run}: halted: {why(run) or f'see {run / LOG_FILE}'}")
    show_results(console, settings, results)
    if settings.output.plots:
        with as_server(server):
            write_all(results, run)
        console.print(f"report: {run / 'report.html'}", highlight=False, markup=False)
    if word == "stopped":
        raise BudgetExhausted(why(run) or _SPENT)
