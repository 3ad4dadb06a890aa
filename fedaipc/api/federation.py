"""A federation of real PCs, as the holder of its key sees it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc.api.run import Run, load_run
from fedaipc.api.scratch import Scratch
from fedaipc.errors import BudgetExhausted, OutputError

if TYPE_CHECKING:
    from fedaipc.api.data import Data
    from fedaipc.api.job import Job

_LOOK = 1.0  # seconds between two looks at a run


class Federation:
    """The folder that `fedaipc federation init` made, with the admission key in it."""

    def __init__(self, folder: str | Path) -> None:
        """Raises AdmissionError where it holds no federation, or not its key."""
        from fedaipc.federation.federation import Federation as Opened

        self.folder = Path(folder)
        self._opened = Opened(self.folder)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the admission key, which owners of PCs compare."""
        return self._opened.fingerprint

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the PCs that belong to it now."""
        return tuple(member.name for member in self._opened.members.active)

    def sign(self, job: Job, data: Data | None = None, *, out: str | Path | None = None) -> Signed:
        """Fix `job` for all members and sign it; measured on the validation and test files of
        `data`, otherwise of the job. `out` is a new folder that keeps it. Raises FedaipcError.
        """
        from fedaipc.federation.jobs import sign_job

        keep = Scratch() if out is None else None
        folder = Path(str(out)) if keep is None else keep.folder / "job"
        sign_job(self._opened, job.with_data(data), folder)
        return Signed(folder, keep)


class Signed:
    """A signed job in its folder."""

    def __init__(self, folder: Path, keep: object = None) -> None:
        self.folder = folder
        self._keep = keep

    def submit(
        self, server: str | Path, *, name: str | None = None, timeout: float | None = None
    ) -> Run:
        """Hand it to the server in that folder and wait for the end; the run.

        Raises OutputError where the server halted it, or after `timeout` seconds (it goes on then);
        BudgetExhausted where the PCs' budgets ended it.
        """
        from fedaipc.fleet.runs import WANTED_FILE, run_status, submit, why

        folder = submit(Path(server), self.folder, name or self.folder.resolve().name)
        until = None if timeout is None else time.monotonic() + timeout
        while (folder / WANTED_FILE).is_file():
            if until is not None and time.monotonic() > until:
                raise OutputError(f"{folder}: not finished yet; load_run shows it once it is")
            time.sleep(_LOOK)
        word = run_status(folder)
        if word == "stopped":
            raise BudgetExhausted(why(folder) or "the PCs' budgets do not cover another round")
        if word != "finished":
            raise OutputError(f"{folder}: halted: {why(folder) or 'see coordinator.log'}")
        return load_run(folder)
