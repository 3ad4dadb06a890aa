"""Runs in a server's folder: what commands, supervisor and coordinator tell each other by files.

runs/NAME/           a job, and what its run leaves
runs/NAME/wanted     it is to go on; `fedaipc stop` takes the file away
runs/NAME/why        one line: why its coordinator ended the last time, where it did not finish
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fedaipc.config import NAME
from fedaipc.errors import OutputError
from fedaipc.federation.job_folder import FILES, read_job
from fedaipc.federation.server_folder import STATE_FOLDER, Facts
from fedaipc.files import write_atomic
from fedaipc.results import RESULTS_FILE, Results
from fedaipc.sealing.roster import ROSTER_FILE

if TYPE_CHECKING:
    from pathlib import Path

RUNS_FOLDER, RUNNING_FILE, LOCK_FILE = "runs", "running.json", ".lock"
WANTED_FILE, WHY_FILE, LOG_FILE = "wanted", "why", "coordinator.log"


def submit(folder: Path, job: Path, name: str) -> Path:
    """Put a signed job into the server's folder as a wanted run. Raises OutputError."""
    Facts.load(folder)
    missing = [file for file in FILES if not (job / file).is_file()]
    if missing:
        raise OutputError(f"{job}: {missing[0]} is missing; give what `fedaipc job sign` made")
    target = run_folder(folder, name)
    try:
        target.mkdir(parents=True)
    except FileExistsError:
        raise OutputError(
            f"{target}: is there already; give another --name, or --resume {name}"
        ) from None
    try:
        for file in FILES:
            shutil.copyfile(job / file, target / file)
        shutil.copyfile(folder / ROSTER_FILE, target / ROSTER_FILE)
        _check(target)
        want(target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def _check(run: Path) -> None:
    """That the job is signed by this federation, not changed, and not ahead of the server."""
    signed, roster = read_job(run)
    if roster.version < signed.job.least_roster:
        raise OutputError(
            f"{run.parent.parent}: its list of members is older than the job; copy the "
            "federation's server folder here again"
        )


def run_folder(folder: Path, name: str) -> Path:
    """Of the run of this name, whether it is there or not. Raises OutputError."""
    if not re.fullmatch(NAME, name):
        raise OutputError(f"{name}: a run's name has letters, digits, dots and dashes")
    return folder / RUNS_FOLDER / name


def want(run: Path) -> None:
    """Let the server go on with a run. Raises OutputError."""
    if not run.is_dir():
        raise OutputError(f"{run}: no such run")
    if (run / WANTED_FILE).is_file():  # it keeps its place among those that wait
        return
    clear_why(run)
    write_atomic(run / WANTED_FILE, b"")


def unwant(run: Path) -> None:
    """Let the server stop a run; its checkpoint stays. Raises OutputError if it is not wanted."""
    try:
        (run / WANTED_FILE).unlink()
    except FileNotFoundError:
        raise OutputError(f"{run}: is not running") from None


def tell_why(run: Path, line: str) -> None:
    """Leave word of why a run does not go on. Raises OSError."""
    write_atomic(run / WHY_FILE, line.encode())


def clear_why(run: Path) -> None:
    """The run goes on. Raises OSError."""
    (run / WHY_FILE).unlink(missing_ok=True)


def why(run: Path) -> str | None:
    """What `tell_why` left."""
    try:
        return (run / WHY_FILE).read_text("utf-8").strip() or None
    except OSError:
        return None


def running(folder: Path) -> dict[str, Any] | None:
    """What a running server wrote of itself; None where none runs."""
    path = folder / STATE_FOLDER / LOCK_FILE
    if not path.is_file():  # and to look must not make it
        return None
    try:
        with FileLock(path, timeout=0):
            return None
    except Timeout:
        pass
    except OSError:
        return None
    try:
        return dict(json.loads((folder / STATE_FOLDER / RUNNING_FILE).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def run_status(run: Path) -> str:
    """One word for people: finished, stopped, halted, running or waiting."""
    word = Results.load(run).status if (run / RESULTS_FILE).is_file() else "waiting"
    if word in {"finished", "stopped"}:
        return word
    if not (run / WANTED_FILE).is_file():
        return "halted"
    return "running" if word == "running" else "waiting"  # for its coordinator to come back
