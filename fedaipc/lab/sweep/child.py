"""The process of one cell: `python -m fedaipc.lab.sweep.child FOLDER`, with FOLDER/cell.toml.

It ends when its parent does, and leaves one line in error.txt where the cell cannot be run.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from fedaipc import parent_watch
from fedaipc.config import load_settings
from fedaipc.errors import BudgetExhausted, FedaipcError
from fedaipc.files import write_atomic
from fedaipc.lab.sweep.cells import CELL_FILE, ERROR_FILE, RUN_FOLDER
from fedaipc.protocol.job_folder import JOB_FILE
from fedaipc.report.html import write_all
from fedaipc.results import Results
from fedaipc.simulation.simulation import prepare, reopen, simulate


def run_cell(folder: Path) -> None:
    """Run the job of `folder`, or continue it. Raises FedaipcError."""
    place = folder / RUN_FOLDER
    if (place / JOB_FILE).is_file():
        run = reopen(place)
    else:
        settings = load_settings(folder / CELL_FILE)
        output = settings.output.model_copy(update={"folder": str(folder), "name": RUN_FOLDER})
        run = prepare(settings.model_copy(update={"output": output}))
    with suppress(BudgetExhausted):  # the budget was spent: keep the result
        simulate(run, "in-process", lambda _: None)
    if run.settings.output.plots:
        write_all(Results.load(run.folder), run.folder)


if __name__ == "__main__":
    parent_watch.hold()
    cell = Path(sys.argv[1])
    try:
        run_cell(cell)
    except FedaipcError as error:
        write_atomic(cell / ERROR_FILE, f"{error}\n".encode())
        sys.exit(error.exit_code)
