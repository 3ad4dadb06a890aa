"""One process for each cell, several at a time; what has finished is not run again.

A cell's folder holds `cell.toml` (all its settings), `run/` (a normal run folder), `log.txt` and,
where it failed, `error.txt` with one line. A cell that was cut off continues from its checkpoint.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout

from fedaipc.config import to_toml
from fedaipc.errors import ConfigError, OutputError
from fedaipc.files import write_atomic
from fedaipc.lab.sweep.cells import CELL_FILE, ERROR_FILE, RUN_FOLDER
from fedaipc.lab.sweep.progress import Progress
from fedaipc.machine import cpus
from fedaipc.protocol.job_folder import JOB_FILE
from fedaipc.results import Results
from fedaipc.surroundings import inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fedaipc.lab.sweep.cells import Cell

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


class Runner:
    """Runs cells in `folder`, `parallel` at a time; unsealed ones only with `plain_updates`."""

    def __init__(self, folder: Path, parallel: int, *, plain_updates: bool = False) -> None:
        self._folder, self._parallel, self._plain = folder, parallel, plain_updates
        self._jobs: list[_Job] = []

    def run(
        self, cells: Sequence[Cell], on_change: Callable[[Progress, Cell | None], None]
    ) -> None:
        """Until every cell has finished or failed. Cells that failed before are tried again.

        `on_change` gets the progress, and the cell that has just ended. Where this is interrupted,
        running cells stop at a checkpoint, and the next call goes on. Raises ConfigError where a
        cell is not sealed and that was not allowed, OutputError where the folder is in use.
        """
        kinds = {cell.settings.aggregation.kind for cell in cells if cell.settings is not None}
        if "plain" in kinds and not self._plain:
            raise ConfigError(
                'aggregation.kind = "plain" lets the server read every update: confirm with '
                "--insecure-plain-updates"
            )
        lock = self._lock()
        waiting = []
        progress = Progress(len(cells), 0, 0, 0, [])
        for cell in cells:
            if state_of(self._folder, cell) == "done":
                progress.done += 1
            elif cell.settings is None:
                self._fail(cell, cell.error)
                progress.failed += 1
            else:
                waiting.append(cell)
        on_change(progress, None)
        try:
            while waiting or self._jobs:
                while waiting and len(self._jobs) < self._room(waiting[0], progress):
                    self._start(waiting.pop(0))
                progress.running = len(self._jobs)
                time.sleep(_LOOK)
                for job in [job for job in self._jobs if job.process.poll() is not None]:
                    self._jobs.remove(job)
                    self._ended(job, progress)
                    on_change(progress, job.cell)
        finally:
            self._stop()
            lock.release()

    def clear(self) -> None:
        """Delete what cells shared, once no more are to come."""
        lock = self._lock()
        shutil.rmtree(self._folder / CACHE_FOLDER, ignore_errors=True)
        lock.release()

    def _lock(self) -> FileLock:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise OutputError(f"{self._folder}: another process runs this sweep") from None
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be written ({error.strerror})") from None
        return lock

    def _room(self, cell: Cell, progress: Progress) -> int:
        """How many may run: one at first where a base is warmed up, which all then share."""
        warms_up = cell.settings is not None and cell.settings.warm_up.source is not None
        return 1 if warms_up and not progress.seconds and not progress.done else self._parallel

    def _start(self, cell: Cell) -> None:
        place = cell_folder(self._folder, cell)
        if not (place / RUN_FOLDER / JOB_FILE).is_file():
            shutil.rmtree(place, ignore_errors=True)
            self._write(place, cell)
        (place / ERROR_FILE).unlink(missing_ok=True)
        with (place / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedaipc.lab.sweep.child", str(place)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment(cell),
                start_new_session=True,
            )  # fmt: skip
        self._jobs.append(_Job(cell, process, time.monotonic()))

    def _write(self, place: Path, cell: Cell) -> None:
        if cell.settings is None:
            return
        speed = cell.settings.speed
        if speed.cache_folder is None:  # frozen layers are computed once for all cells alike
            cache = str((self._folder / CACHE_FOLDER).resolve())
            speed = speed.model_copy(update={"cache_folder": cache})
        settings = cell.settings.model_copy(update={"speed": speed})
        try:
            place.mkdir(parents=True)
            write_atomic(place / CELL_FILE, to_toml(settings).encode())
        except OSError as error:
            raise OutputError(f"{place}: cannot be written ({error.strerror})") from None

    def _environment(self, cell: Cell) -> dict[str, str]:
        threads = None if cell.settings is None else cell.settings.speed.threads
        count = threads or max(1, cpus() // self._parallel)
        return {**inherited(), "OMP_NUM_THREADS": str(count), "COLUMNS": "200"}

    def _ended(self, job: _Job, progress: Progress) -> None:
        if job.process.stdin is not None:
            job.process.stdin.close()
        state = state_of(self._folder, job.cell)
        if state == "done":
            progress.done += 1
            progress.seconds.append(time.monotonic() - job.started)
            return
        if state == "open":  # it had no time to write the reason
            code = job.process.returncode
            how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
            log = cell_folder(self._folder, job.cell) / LOG_FILE
            self._fail(job.cell, f"its process was {how}; see {log}")
        progress.failed += 1

    def _fail(self, cell: Cell, why: str) -> None:
        place = cell_folder(self._folder, cell)
        try:
            place.mkdir(parents=True, exist_ok=True)
            write_atomic(place / ERROR_FILE, f"{why}\n".encode())
        except OSError as error:
            raise OutputError(f"{place}: cannot be written ({error.strerror})") from None

    def _stop(self) -> None:
        """End what still runs; its checkpoint stays."""
        for job in self._jobs:
            job.process.kill()
        for job in self._jobs:
            job.process.wait()
            if job.process.stdin is not None:
                job.process.stdin.close()
        self._jobs.clear()


def error_of(folder: Path, cell: Cell) -> str:
    """Why a cell failed, in one line."""
    try:
        return (
            (cell_folder(folder, cell) / ERROR_FILE)
            .read_text(encoding="utf-8", errors="replace")
            .strip()
        )
    except OSError:
        return ""
