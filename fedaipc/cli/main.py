"""`fedaipc`: all commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from fedaipc import __version__
from fedaipc.cli import (
    assets,
    client,
    config,
    data,
    doctor,
    federation,
    plan_fleet,
    predict,
    privacy,
    report,
    server,
    simulate,
)
from fedaipc.cli.output import Commands, say
from fedaipc.cli.source import SourceCommand
from fedaipc.errors import FedaipcError
from fedaipc.files import expanded
from fedaipc.streams import forgiving
from fedaipc.surroundings import settle

app = typer.Typer(
    name="fedaipc",
    cls=Commands,
    help="Privacy-preserving federated fine-tuning of BERT-class models on many AI PCs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("simulate", cls=SourceCommand)(simulate.simulate)
app.command("doctor")(doctor.doctor)
app.command("report")(report.report)
app.command("predict")(predict.predict)
app.add_typer(client.app, name="client")
app.add_typer(server.app, name="server")
app.add_typer(federation.app, name="federation")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(assets.app, name="assets")
app.add_typer(privacy.app, name="privacy")
app.add_typer(plan_fleet.app, name="plan")


def _version(show: bool) -> None:
    if show:
        say(f"fedaipc {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="show the version and exit"
    ),
) -> None:
    del version


@cache
def command() -> Any:
    """All of it as Click's command."""
    return get_command(app)


def run() -> None:
    """Console entry: errors that fedaipc raises on purpose end as one line on stderr."""
    settle()
    _prepare()
    with forgiving():
        _run()


def _run() -> None:
    # Weights are either local or asked for by id; nothing is reported to anyone.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        command()()
    except FedaipcError as error:
        for note in getattr(error, "__notes__", ()):
            say(note, err=True)
        _fail(str(error), error.exit_code)
    except SystemExit as end:  # how typer exits; it uses 130 for Ctrl-C
        if end.code == 130:
            _fail(
                "stopped; what is finished is kept: simulate --resume continues a run, and the "
                "same command a sweep; an audit starts from the beginning",
                130,
            )
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)


def _prepare() -> None:
    """See that names of files can be printed, and that libraries need no home folder."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    cache = os.environ.get("FEDAIPC_CACHE")
    if cache and not expanded("~").is_absolute():
        for name, folder in (("HF_HOME", "huggingface"), ("MPLCONFIGDIR", "matplotlib")):
            os.environ.setdefault(name, str(Path(cache) / folder))
    try:
        Path.cwd()
    except OSError:
        _fail("the working directory was deleted or cannot be read; change to another one", 1)


def _fail(message: str, code: int) -> None:
    say(f"fedaipc: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    run()
