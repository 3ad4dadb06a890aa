"""One process for each cell, several at a time; what has finished is not run again.

A cell's folder holds `cell.toml` (all its settings), `run/` (a normal run folder), `log.txt` and,
where it failed, `error.txt` with one line. A cell that was cut off continues from its checkpoint.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from fedaipc.config import Settings, to_toml
from fedaipc.errors import ConfigError, OutputError
from fedaipc.lab.sweep.cells import CELL_FILE, ERROR_FILE, RUN_FOLDER, Cell
from fedaipc.lab.sweep.progress import Progress
from fedaipc.machine import cpus
from fedaipc.protocol.job_folder import JOB_FILE
from fedaipc.results import Results, write_file
from fedaipc.surroundings import inherited

CELLS_FOLDER, CACHE_FOLDER, LOG_FILE = "cells", "cache", "log.txt"
State = Literal["open", "done", "failed"]
_LOOK = 0.1  # seconds between looks at the processes


@dataclass(slots=True)
class _Job:
    cell: Cell
    process: subprocess.Popen[bytes]
    started: float


def cell_folder(folder: Path, cell: Cell) -> Path:
    return folder / CELLS_FOLDER / cell.name


def state_of(folder: Path, cell: Cell) -> State:
    """Whether the cell has finished, has failed, or is to be run."""
    place = cell_folder(folder, cell)
    with suppress(OutputError):
        if not Results.load(place / RUN_FOLDER).unfinished:
            return "done"
    return "failed" if (place / ERROR_FILE).is_file() else "open"


def error_of(folder: Path, cell: Cell) -> str:
    """Why a cell failed, in one line."""
    path = cell_folder(folder, cell) / ERROR_FILE
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def locked(folder: Path) -> AbstractContextManager[object]:
    """Make the folder, and keep other processes out. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise OutputError(f"{folder}: another process runs this sweep") from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs cells in `folder`, `parallel` at a time; unsealed ones only with `plain_updates`.

    `on_change` gets the progress, and the cell whose end it tells of; None before the first.
    """

    folder: Path
    parallel: int
    on_change: Callable[[Progress, Cell | None], None]
    plain_updates: bool = False

    def check(self, cells: Sequence[Cell]) -> None:
        """Raise ConfigError where a cell is not sealed and that was not allowed."""
        kinds = {cell.settings.aggregation.kind for cell in cells if cell.settings is not None}
        if "plain" in kinds and not self.plain_updates:
            raise ConfigError(
                'aggregation.kind = "plain" lets the server read every update: confirm with '
                "--insecure-plain-updates"
            )

    def run(self, cells: Sequence[Cell], progress: Progress) -> None:
        """Until every cell has finished or failed. Cells that failed before are tried again.

        They are counted in `progress`, which may be of more cells than these. Where this is
        interrupted, running cells stop at a checkpoint, and the next call goes on. Raises
        ConfigError as `check` does.
        """
        self.check(cells)
        jobs: list[_Job] = []
        waiting = self._unfinished(cells, progress)
        self.on_change(progress, None)
        try:
            while waiting or jobs:
                while waiting and len(jobs) < self._room(waiting[0][1], progress):
                    jobs.append(self._start(*waiting.pop(0)))
                time.sleep(_LOOK)
                for job in [job for job in jobs if job.process.poll() is not None]:
                    jobs.remove(job)
                    self._ended(job, progress)
                    self.on_change(progress, job.cell)
        finally:  # end what still runs; its checkpoint stays
            for job in jobs:
                job.process.kill()
            for job in jobs:
                job.process.communicate()

    def _unfinished(self, cells: Sequence[Cell], progress: Progress) -> list[tuple[Cell, Settings]]:
        """What is to be run; the others are counted."""
        found = []
        for cell in cells:
            if state_of(self.folder, cell) == "done":
                progress.done += 1
            elif cell.settings is None:
                self._fail(cell, cell.error)
                progress.failed += 1
            else:
                found.append((cell, cell.settings))
        return found

    def _room(self, settings: Settings, progress: Progress) -> int:
        """How many may run: one at first where a base is warmed up, which all then share."""
        warms_up = settings.warm_up.source is not None
        return 1 if warms_up and not progress.seconds and not progress.done else self.parallel

    def _start(self, cell: Cell, settings: Settings) -> _Job:
        place, speed = cell_folder(self.folder, cell), settings.speed
        if not (place / RUN_FOLDER / JOB_FILE).is_file():
            shutil.rmtree(place, ignore_errors=True)
            own: dict[str, Any] = {}
            if speed.cache_folder is None:  # frozen layers are computed once for all cells alike
                own["cache_folder"] = str((self.folder / CACHE_FOLDER).resolve())
            if self.parallel > 1 and not speed.workers:  # the cells have the cores
                own["workers"] = 1
            settings = settings.model_copy(update={"speed": speed.model_copy(update=own)})
            write_file(place / CELL_FILE, to_toml(settings).encode())
        (place / ERROR_FILE).unlink(missing_ok=True)
        threads = speed.threads or max(1, cpus() // self.parallel)
        with (place / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedaipc.lab.sweep.child", str(place)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env={**inherited(), "OMP_NUM_THREADS": str(threads), "COLUMNS": "200"},
            )  # fmt: skip
        return _Job(cell, process, time.monotonic())

    def _ended(self, job: _Job, progress: Progress) -> None:
        job.process.communicate()  # closes its end of the pipe
        state = state_of(self.folder, job.cell)
        if state == "done":
            progress.done += 1
            progress.seconds.append(time.monotonic() - job.started)
            return
        progress.failed += 1
        if state == "open":  # it had no time to write the reason
            code = job.process.returncode
            how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
            log = cell_folder(self.folder, job.cell) / LOG_FILE
            self._fail(job.cell, f"its process was {how}; see {log}")

    def _fail(self, cell: Cell, why: str) -> None:
        write_file(cell_folder(self.folder, cell) / ERROR_FILE, f"{why}\n".encode())
