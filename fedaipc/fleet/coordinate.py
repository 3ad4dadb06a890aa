"""The coordinator of one run as a process: `python -m fedaipc.fleet.coordinate RUN STATE`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from fedaipc import parent_watch, strict_json
from fedaipc.errors import (
    AdmissionError,
    BudgetExhausted,
    EngineError,
    FedaipcError,
    RoundError,
    RunOver,
)
from fedaipc.fleet.runs import RUNNING_FILE, clear_why, tell_why, unwant
from fedaipc.fleet.superlink import SECRET_FILE, UPLOAD_FILE
from fedaipc.protocol.server_folder import Nodes
from fedaipc.results import LOCK_FILE
from fedaipc.stopping import STOPPED, Stop, signals
from fedaipc.terminal import log_to_stderr

if TYPE_CHECKING:
    from fedaipc.results import RoundResult

_LOCK_SECONDS = 30.0  # that the last coordinator of this run may take to go
_LEAVE_SECONDS = 5.0  # that this one has to tell the SuperLink that it ends
_log = logging.getLogger("fedaipc")


def main() -> int:
    """Run or continue the run; the exit code is that of what stopped it.

    What ends it is left in the run's folder. Where trying again would end in the same way, the
    run is no longer wanted. Missing PCs or a SuperLink that does not answer may come back; every
    other failure stays.
    """
    parent_watch.hold()
    folder, state = Path(sys.argv[1]), Path(sys.argv[2])
    log_to_stderr("%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = Stop()
    threading.Thread(target=_end_soon, args=(stop,), name="stopping", daemon=True).start()
    try:
        with signals(stop.set), FileLock(folder / LOCK_FILE, timeout=_LOCK_SECONDS):
            _run(folder, state, stop)
    except FedaipcError as error:
        _log.error("%s", error)
        with suppress(OSError):
            tell_why(folder, str(error))
        waits = isinstance(error, RoundError | EngineError) and not isinstance(error, RunOver)
        if not waits and not isinstance(error, BudgetExhausted):  # the results say that it stopped
            with suppress(FedaipcError, OSError):
                unwant(folder)
        return error.exit_code
    return 0


def _end_soon(stop: Stop) -> None:
    """End a run that does not end by itself, as within a long evaluation; its checkpoint stays."""
    stop.wait()
    time.sleep(_LEAVE_SECONDS)
    os._exit(STOPPED)


def _run(folder: Path, state: Path, stop: Stop) -> None:
    from fedaipc.coordinator.server_app import run_job
    from fedaipc.fleet.grid import FleetGrid

    address = strict_json.load(state / RUNNING_FILE)["superlink"]
    secret = (state / SECRET_FILE).read_bytes()
    with FleetGrid(address, secret, state / UPLOAD_FILE, stop.is_set) as grid:
        run_job(grid, folder, "fleet", partial(_tell, folder), _names(state.parent))


def _names(server: Path) -> list[str]:
    """Of all members; none while the list is being copied."""
    try:
        return [node.name for node in Nodes.load(server).nodes]
    except AdmissionError:
        return []


def _tell(folder: Path, result: RoundResult) -> None:
    if not result.void:
        clear_why(folder)
    void = f", void: {result.why_void}" if result.void else ""
    _log.info(
        "round %d: %d of %d PCs, %.1f s%s",
        result.round, result.arrived, result.asked, result.seconds, void,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
