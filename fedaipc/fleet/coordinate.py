"""The coordinator of one run as a process: `python -m fedaipc.fleet.coordinate RUN STATE`."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc.errors import BudgetExhausted, FedaipcError
from fedaipc.fleet.superlink import SECRET_FILE

if TYPE_CHECKING:
    from types import FrameType

    from fedaipc.results import RoundResult

_log = logging.getLogger("fedaipc")


def main() -> int:
    """Run or go on with the run; the exit code is that of what stopped it."""
    folder, state = Path(sys.argv[1]), Path(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)
    from fedaipc.coordinator.server_app import run_job
    from fedaipc.fleet.grid import FleetGrid

    address = json.loads((state / "running.json").read_text("utf-8"))["superlink"]
    try:
        with FleetGrid(address, (state / SECRET_FILE).read_bytes()) as grid:
            run_job(grid, folder, "fleet", _tell)
    except BudgetExhausted as error:
        _log.warning("%s", error)
        return 0  # the results say so, and nothing is left to try
    except FedaipcError as error:
        _log.error("%s", error)
        return error.exit_code
    return 0


def _tell(result: RoundResult) -> None:
    void = f", void: {result.why_void}" if result.void else ""
    _log.info(
        "round %d: %d of %d PCs, %.1f s%s",
        result.round, result.arrived, result.asked, result.seconds, void,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
