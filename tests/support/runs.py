"""Short cuts to a run's ledgers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc.client.client_app import pc_folder
from fedaipc.client.key_store import KeyStore
from fedaipc.privacy.budget import charged_epsilon
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.protocol.job import Job
from fedaipc.protocol.job_folder import JOB_FILE

if TYPE_CHECKING:
    from fedaipc.simulation.simulation import Run


def quiet(_: object) -> None:
    """For a run whose rounds nobody watches."""


def ledger(run: Run, number: int = 0) -> Ledger:
    return Ledger(pc_folder(run.pc_state, number) / LEDGER_FILE)


def ledgers(run: Run) -> dict[str, Ledger]:
    numbers = range(run.settings.federation.clients)
    return {pc_folder(run.pc_state, n).name: ledger(run, n) for n in numbers}


def job_of(run: Run) -> Job:
    return Job.parse((run.folder / JOB_FILE).read_text())


def allow(run: Run, number: int, *, rounds: int) -> float:
    """Give a PC a new ledger that just covers so many rounds; its lifetime epsilon."""
    old = ledger(run, number)
    old.path.unlink()
    epsilon = charged_epsilon(job_of(run).schedule, rounds, 3.0) * 1.0001
    identity = KeyStore(old.path.parent).identity
    Ledger.create(old.path, identity, lifetime_epsilon=epsilon, delta=old.delta, filter_kind=3.0)
    return epsilon
