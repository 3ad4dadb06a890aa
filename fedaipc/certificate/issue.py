"""Certificates of a run and of a PC, made from their folders. Nothing in them is about a text."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import fedaipc
from fedaipc import bounds
from fedaipc.certificate.document import (
    AS_DECLARED,
    AT_MOST,
    MAX_BYTES,
    NOTHING,
    Certificate,
    Epsilons,
    Filter,
    Guarantee,
    PcFacts,
    RunFacts,
    Software,
    Wording,
    lifetime_basis,
    wording,
)
from fedaipc.client.client import OWNER_FILE
from fedaipc.client.key_store import KeyStore
from fedaipc.config import DPSGD, load_owner
from fedaipc.errors import CertificateError, os_errors_as
from fedaipc.privacy.accountant import (
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    is_dear,
    merged,
)
from fedaipc.privacy.budget import local_epsilon
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.protocol.job_folder import CONFIG_FILE, read_job
from fedaipc.results import Results
from fedaipc.secagg.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.config import Schedule
    from fedaipc.protocol.job import Job

_PACKAGES = ("torch", "opacus", "transformers", "peft", "flwr", "cryptography", "dp-accounting")


def run_certificate(folder: Path, key: SigningKey) -> Certificate:
    """The certificate of the run in `folder`, signed by the admission key that signed its job.

    Raises CertificateError where the run has not ended or another key signed its job, OutputError
    or SecAggError where the folder cannot be read.
    """
    results, (signed, _) = Results.load(folder), read_job(folder)
    if results.unfinished:
        raise CertificateError(
            f"{folder}: this run has not ended, so what it costs is not known; resume it first"
        )
    signer = bounds.read_bytes(folder / "roster.bin", bounds.MAX_ROSTER)[:32]
    if signer != key.public:
        raise CertificateError(f"{folder}: its job was signed by another admission key")
    job = signed.job
    if job.run != results.run_id:
        raise CertificateError(f"{folder}: results.json and job.json come from two different runs")
    attempts = results.charged
    schedule = [job.schedule.times(attempts)] if job.schedule.private and attempts else []
    claim, basis, claimed = _run_claim(job, results)
    said = wording(claimed, job.privacy.unit)
    return _signed(
        Certificate(
            issued=_now(),
            guarantee=_guarantee(
                schedule,
                job.privacy.delta,
                results.not_private,
                claim,
                basis,
                claimed,
                said,
            ),
            trust=said.trust,
            software=_software(),
            run=RunFacts(
                run=job.run,
                name=results.name,
                engine=results.engine,
                status=results.status,
                rounds=sum(not one.void for one in results.rounds),
                attempts=attempts,
                pcs=len(results.pcs) or max((one.asked for one in results.rounds), default=0),
                aggregation=results.aggregation.kind,
                job=signed.text,
                job_signature=signed.signature.hex(),
                config_hash=_hash(folder / CONFIG_FILE),
                vector_hash=results.model.vector_hash,
                test_accuracy=None if results.test is None else results.test.accuracy,
            ),
            signer=key.public.hex(),
        ),
        key,
    )


def pc_certificate(folder: Path) -> Certificate:
    """The certificate of the life of the PC in `folder`, signed by its identity.

    Raises LedgerError or SecAggError where ledger or keys cannot be read.
    """
    identity = KeyStore(folder).identity
    ledger = Ledger(folder / LEDGER_FILE, identity)
    reasons = {
        "a round without clip and noise": any(not c.schedule.private for c in ledger.charges),
        "a round with a test seed": any(c.seeded for c in ledger.charges),
    }
    owner, said = folder / OWNER_FILE, wording(ledger.schedules, ledger.unit)
    return _signed(
        Certificate(
            issued=_now(),
            guarantee=_guarantee(
                ledger.schedules,
                ledger.delta,
                [reason for reason, found in reasons.items() if found],
                ledger.lifetime_epsilon,
                lifetime_basis(ledger.filter_kind),
                ledger.schedules,
                said,
            ),
            trust=said.trust,
            software=_software(),
            pc=PcFacts(
                name=folder.resolve().name,
                size_class=load_owner(owner).size_class if owner.is_file() else None,
                charges=len(ledger.charges),
                filter=Filter(
                    kind=ledger.filter_kind,
                    epsilon=0.0 if ledger.unprotected else ledger.spent_epsilon(),
                    lifetime_epsilon=ledger.lifetime_epsilon,
                ),
                ledger=tuple(
                    bounds.read_text(ledger.path, bounds.MAX_LEDGER, encoding="ascii").splitlines()
                ),
            ),
            signer=identity.public.hex(),
        ),
        identity,
    )


def code_hash() -> str:
    """SHA-256 over the names and contents of the installed package's modules, in order."""
    root = Path(fedaipc.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes().replace(b"\r\n", b"\n")  # as some systems check them out
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _run_claim(job: Job, results: Results) -> tuple[float, str, list[Schedule]]:
    """The epsilon that holds for a run, why, and of which schedule it is."""
    if not job.schedule.private:
        return 0.0, NOTHING, []
    attempts = results.charged
    declared = results.status == "finished" and attempts == job.rounds
    taken = job.rounds if declared else job.max_attempts
    schedule = [job.schedule.times(taken)]
    _check_size(schedule)
    basis = AS_DECLARED if declared else AT_MOST
    return epsilon_pld(schedule, job.privacy.delta), basis, schedule


def _guarantee(
    schedule: Sequence[Schedule],
    delta: float,
    reasons: Sequence[str],
    claim: float,
    basis: str,
    claimed: Sequence[Schedule],
    said: Wording,
) -> Guarantee:
    steps = merged(schedule)
    epsilon = None
    if not reasons:
        _check_size(steps)
        epsilon = Epsilons(
            rdp=epsilon_rdp(steps, delta),
            prv=epsilon_prv(steps, delta),
            pld=epsilon_pld(steps, delta),
        )
    shared = epsilon is not None and any(one.local != one for one in claimed)
    return Guarantee(
        unit=said.unit,
        neighbours=said.neighbours,
        mechanism=said.mechanism,
        sampling=said.sampling,
        amplification=said.amplification,
        local=local_epsilon(claimed, delta) if shared else None,
        delta=delta,
        schedule=steps,
        claim=None if reasons else claim,
        basis=NOTHING if reasons else basis,
        epsilon=epsilon,
        not_private=tuple(reasons),
    )


def _check_size(steps: Sequence[Schedule]) -> None:
    """Raises CertificateError where a certificate's words do not hold, or nobody could check it."""
    for one in steps:
        if type(one.mechanism) is not DPSGD:
            raise CertificateError(
                f'a certificate is about DP-SGD, and a step was of "{one.mechanism.kind}": no '
                "certificate"
            )
    if is_dear(steps):
        raise CertificateError(
            "the schedule has too many kinds of steps, or so large an epsilon that it promises "
            "almost nothing and nobody could check it: no certificate"
        )


def _software() -> Software:
    packages = {name: version(name) for name in _PACKAGES}
    return Software(fedaipc=fedaipc.__version__, code=code_hash(), packages=packages)


def _signed(certificate: Certificate, key: SigningKey) -> Certificate:
    # As it will be read: numbers in JSON come back as they went in, tuples as lists.
    return Certificate.from_json(certificate.write(), max_bytes=MAX_BYTES).signed_by(key)


def _hash(path: Path) -> str:
    with os_errors_as(CertificateError, f"{path}: cannot be read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
