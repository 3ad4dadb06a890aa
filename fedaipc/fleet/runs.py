"""Runs in a server's folder: what commands, supervisor and coordinator tell each other by files.

runs/NAME/           a job, and what its run leaves
runs/NAME/wanted     it has to continue; `fedaipc server stop` takes the file away
runs/NAME/why        one line: why its coordinator ended the last time, where it did not finish
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fedaipc import bounds, strict_json
from fedaipc.config import NAME
from fedaipc.errors import OutputError, RoundError
from fedaipc.files import write_atomic
from fedaipc.fleet.ownership import as_server, foreign, server_user, user_name
from fedaipc.protocol.job import Job
from fedaipc.protocol.job_folder import (
    FILES,
    JOB_FILE,
    TEST_FILE,
    VALIDATION_FILE,
    read_job,
    read_text,
)
from fedaipc.protocol.server_folder import STATE_FOLDER, Facts
from fedaipc.results import RESULTS_FILE, Results
from fedaipc.secagg.roster import ROSTER_FILE

if TYPE_CHECKING:
    from pathlib import Path

RUNS_FOLDER, RUNNING_FILE, LOCK_FILE = "runs", "running.json", ".lock"
WANTED_FILE, WHY_FILE, LOG_FILE = "wanted", "why", "coordinator.log"
_ALIVE = {"running", "waiting"}


def submit(folder: Path, job: Path, name: str) -> Path:
    """Put a signed job into the server's folder as a wanted run. Raises OutputError."""
    Facts.load(folder)
    missing = [file for file in FILES if not (job / file).is_file()]
    if missing:
        raise OutputError(
            f"{job}: {missing[0]} is missing; give what `fedaipc federation sign` made"
        )
    texts = {VALIDATION_FILE, TEST_FILE}
    try:
        contents = {  # its owner may read it
            file: bounds.read_bytes(
                job / file, bounds.MAX_TEXTS if file in texts else bounds.MAX_JOB
            )
            for file in FILES
        }
    except bounds.TooLarge as error:
        raise OutputError(f"{job}: cannot be read ({error.strerror})") from None
    target = run_folder(folder, name)
    with as_server(folder):
        run_id = _run_id(job)
        for other in (folder / RUNS_FOLDER).glob("*/"):
            if run_id is not None and _run_id(other) == run_id:
                raise OutputError(
                    f"{other}: is the run of this job; to go on, --resume {other.name}; to train "
                    "again, have the job signed again"
                )
        try:
            target.mkdir(parents=True)
        except FileExistsError:
            raise OutputError(f"{target}: is another job's; give another --name") from None
        try:
            for file, content in contents.items():
                (target / file).write_bytes(content)
            shutil.copyfile(folder / ROSTER_FILE, target / ROSTER_FILE)
            _check(target)
            want(target)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return target


def _run_id(folder: Path) -> str | None:
    """The run that the job in this folder is; None where it cannot be read."""
    try:
        return Job.parse(read_text(folder / JOB_FILE)).run
    except (OutputError, RoundError):
        return None


def _check(run: Path) -> None:
    """Check that the job is signed by this federation, unchanged, and not ahead of the server."""
    signed, roster = read_job(run)
    if roster.version < signed.job.min_roster:
        raise OutputError(
            f"{run.parent.parent}: its list of members is older than the job; copy the "
            "federation's server folder here again"
        )


def run_folder(folder: Path, name: str) -> Path:
    """The folder of the run of this name, whether it exists or not. Raises OutputError."""
    if not re.fullmatch(NAME, name):
        raise OutputError(f"{name}: a run's name has letters, digits, dots and dashes")
    return folder / RUNS_FOLDER / name


def want(run: Path) -> None:
    """Let the server continue a run. Raises OutputError."""
    if not run.is_dir():
        raise OutputError(f"{run}: no such run")
    server = run.parent.parent
    if (other := foreign(run, server)) is not None:
        raise OutputError(f"{run}: {other}")
    if (run / WANTED_FILE).is_file():  # it keeps its place among those that wait
        return
    clear_why(run)
    with as_server(server):
        write_atomic(run / WANTED_FILE, b"")


def unwant(run: Path) -> None:
    """Let the server stop a run; its checkpoint stays. Raises OutputError if it is not wanted."""
    try:
        with as_server(run.parent.parent):
            (run / WANTED_FILE).unlink()
    except FileNotFoundError:
        raise OutputError(f"{run}: is not running") from None


def tell_why(run: Path, line: str) -> None:
    """Record why a run does not continue. Raises OSError, OutputError."""
    with as_server(run.parent.parent):
        write_atomic(run / WHY_FILE, line.encode())


def clear_why(run: Path) -> None:
    """The run continues. Raises OSError, OutputError."""
    with as_server(run.parent.parent):
        (run / WHY_FILE).unlink(missing_ok=True)


def why(run: Path) -> str | None:
    """What `tell_why` left."""
    try:
        return (run / WHY_FILE).read_text("utf-8").strip() or None
    except OSError:
        return None


def running(folder: Path) -> dict[str, Any] | None:
    """What a running server wrote of itself; None where no server runs.

    Raises OutputError where this user may not look.
    """
    path = folder / STATE_FOLDER / LOCK_FILE
    try:
        if not path.is_file():  # and looking must not create it
            return None
    except PermissionError:
        name = user_name(server_user(folder))
        raise OutputError(
            f"{path.parent}: is for user {name} to read: run this as that user, as in "
            f"`sudo -u {name} fedaipc ...`"
        ) from None
    try:
        with FileLock(path, timeout=0):
            return None
    except Timeout:
        pass
    except OSError:
        return None
    try:
        return dict(strict_json.load(folder / STATE_FOLDER / RUNNING_FILE))
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


def in_order(folder: Path) -> list[Path]:
    """Wanted runs that the server can see: first come, first served."""
    return [p.parent for p in sorted((folder / RUNS_FOLDER).glob(f"*/{WANTED_FILE}"), key=_since)]


def waits_for(run: Path, folder: Path, found: dict[str, Any] | None) -> str | None:
    """What a wanted run that is not over waits for; `found` is what `running` says."""
    if (other := foreign(run, folder)) is not None:
        return other
    if found is None:
        return f"no server runs: fedaipc server start {folder}"
    if (told := why(run)) is not None:
        return told
    ahead = in_order(folder)
    ahead = ahead[: ahead.index(run)] if run in ahead else []
    first = next((other for other in ahead if run_status(other) in _ALIVE), None)
    return None if first is None else f"{first.name} goes first"


def _since(wanted: Path) -> float:
    with suppress(OSError):
        return wanted.stat().st_mtime
    return float("inf")
