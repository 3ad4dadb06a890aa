"""Check a certificate as somebody would who does not trust fedaipc's accountants.

Epsilon is computed anew by dp-accounting alone, from the schedule; the schedule from the signed job
or from the ledger's signed lines. Nothing of fedaipc's accounting is imported here.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.errors import FedaipcError
from fedaipc.privacy.chain import check_chain
from fedaipc.sealing.keys import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fedaipc.certificate.document import (
        Certificate,
        Epsilons,
        Guarantee,
        PcFacts,
        RunFacts,
        Step,
    )

# PRV may lie so far from PLD: docs/privacy.md says how far they were on 200 schedules.
_RELATIVE, _ABSOLUTE = 0.01, 0.005
_RDP_DIGITS = 1e-3  # at orders between whole numbers RDP is a series, cut off here and there
_JOB_LABEL = b"fedaipc job"
_Key = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was compared, whether it holds, and with which numbers."""

    what: str
    holds: bool
    detail: str


def check(certificate: Certificate) -> list[Finding]:
    """All that can be checked without the run or the PC; never raises for what is wrong."""
    found = [_checked("signature", certificate.check_signature)]
    guarantee = certificate.guarantee
    if certificate.run is not None:
        found += _run(certificate.run, guarantee, certificate.signer)
    if certificate.pc is not None:
        found += _pc(certificate.pc, guarantee, certificate.signer)
    if guarantee.epsilon is None:
        reasons = "; ".join(guarantee.not_private)
        found.append(Finding("epsilon", True, f"NOT PRIVATE: {reasons}"))
    else:
        found += _epsilons(guarantee, guarantee.epsilon)
    if certificate.audit is not None and certificate.audit.promised is not None:
        audit, promised = certificate.audit, certificate.audit.promised
        found.append(
            Finding(
                "audit", audit.lower <= promised,
                f"at least {audit.lower:.3f} with confidence {audit.confidence:g}, promised at "
                f"most {promised:.3f}",
            )
        )  # fmt: skip
    return found


def _run(run: RunFacts, guarantee: Guarantee, signer: str) -> Iterator[Finding]:
    signed = _JOB_LABEL + run.job.encode()

    def job_signature() -> None:
        verify(bytes.fromhex(signer), bytes.fromhex(run.job_signature), signed, "the job")

    yield _checked("job's signature", job_signature)
    try:
        job: dict[str, Any] = json.loads(run.job)
        steps = job["training"]["local_steps"] * run.attempts
        schedule: Counter[_Key] = Counter()
        if job["mode"] != "none" and steps:
            schedule[job["noise_multiplier"], job["sampling_rate"]] = steps
        facts = (job["delta"], [job["clip"]], job["run"], job["most_attempts"], job["mode"])
    except (ValueError, KeyError, TypeError, RecursionError):
        yield Finding("job", False, "cannot be read")
        return
    delta, clip, name, most, mode = facts
    stated = (guarantee.delta, list(guarantee.clip), run.run)
    yield Finding(
        "job's terms", stated == (delta, clip, name) and run.attempts <= most,
        f"delta {delta:g}, clip {clip[0]:g}, {run.attempts} attempts of at most {most}",
    )  # fmt: skip
    yield _same_schedule(guarantee.schedule, schedule)
    yield Finding(
        "private or not", mode != "none" or bool(guarantee.not_private), f"the job's mode is {mode}"
    )


def _pc(pc: PcFacts, guarantee: Guarantee, signer: str) -> Iterator[Finding]:
    try:
        lines = [line.encode() for line in pc.ledger]
        chain = check_chain(lines, "the ledger", every=True)
        header, charges = chain.entries[0], [e for e in chain.entries if e["kind"] == "charge"]
        schedule: Counter[_Key] = Counter()
        for charge in charges:
            if charge["noise_multiplier"] is not None:
                key = (charge["noise_multiplier"], charge["sampling_rate"])
                schedule[key] += charge["steps"]
        clips = sorted({charge["clip"] for charge in charges})
        unprotected = any(e["noise_multiplier"] is None or e["seeded"] for e in charges)
        facts = (header["delta"], header["lifetime_epsilon"], header["order"])
    except (FedaipcError, KeyError, TypeError) as error:
        yield Finding("ledger", False, str(error))
        return
    yield Finding(
        "ledger", chain.key == signer and len(charges) == pc.charges,
        f"{len(chain.entries)} lines, {len(charges)} charges, all signed",
    )  # fmt: skip
    stated = (guarantee.delta, pc.filter.lifetime_epsilon, pc.filter.order)
    yield Finding(
        "ledger's terms", stated == facts and list(guarantee.clip) == clips,
        f"delta {facts[0]:g}, lifetime epsilon {facts[1]:g}",
    )  # fmt: skip
    yield _same_schedule(guarantee.schedule, schedule)
    yield Finding(
        "private or not", bool(guarantee.not_private) == unprotected,
        "a round was not private" if unprotected else "every round was private",
    )  # fmt: skip
    if not unprotected:
        again = _rdp(guarantee.schedule, guarantee.delta, [pc.filter.order])
        told = pc.filter
        yield Finding(
            "lifetime budget",
            math.isclose(told.epsilon, again, rel_tol=_RDP_DIGITS)
            and told.epsilon <= told.lifetime_epsilon,
            f"{told.epsilon:.4f} of {told.lifetime_epsilon:g} by RDP order {told.order:g}; "
            f"computed anew {again:.4f}",
        )


def _epsilons(guarantee: Guarantee, told: Epsilons) -> Iterator[Finding]:
    pld = _pld(guarantee.schedule, guarantee.delta)
    room = _RELATIVE * pld + _ABSOLUTE
    for name, value in (("PLD", told.pld), ("PRV", told.prv)):
        yield Finding(
            f"epsilon by {name}", abs(value - pld) <= room,
            f"{value:.4f}; computed anew by PLD {pld:.4f}",
        )  # fmt: skip
    rdp = _rdp(guarantee.schedule, guarantee.delta)
    # RDP bounds differ by the orders that were looked at: another one can be a little higher.
    yield Finding(
        "epsilon by RDP", told.rdp >= pld - room and told.rdp >= rdp * (1 - _RELATIVE) - _ABSOLUTE,
        f"{told.rdp:.4f}; computed anew {rdp:.4f}",
    )  # fmt: skip


def _same_schedule(stated: Sequence[Step], found: Counter[_Key]) -> Finding:
    told = Counter({(s.noise_multiplier, s.sampling_rate): s.steps for s in stated})
    steps = sum(found.values())
    return Finding(
        "schedule", told == found and len(told) == len(stated),
        f"{steps:,} steps of {len(found)} kinds",
    )  # fmt: skip


def _pld(schedule: Sequence[Step], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-4)
    return _composed(accountant, schedule, delta)


def _rdp(schedule: Sequence[Step], delta: float, orders: Sequence[float] | None = None) -> float:
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant() if orders is None else RdpAccountant(orders=list(orders))
    return _composed(accountant, schedule, delta)


def _composed(accountant: Any, schedule: Sequence[Step], delta: float) -> float:
    from dp_accounting import dp_event

    if not schedule:
        return 0.0
    logging.getLogger("absl").setLevel(logging.ERROR)  # it tells of each order that it leaves out
    for step in schedule:
        event: Any = dp_event.GaussianDpEvent(step.noise_multiplier)
        if step.sampling_rate < 1:
            event = dp_event.PoissonSampledDpEvent(step.sampling_rate, event)
        accountant.compose(event, step.steps)
    return float(accountant.get_epsilon(delta))


def _checked(what: str, run: Callable[[], None]) -> Finding:
    try:
        run()
    except FedaipcError as error:
        return Finding(what, False, str(error))
    except ValueError:
        return Finding(what, False, "cannot be read")
    return Finding(what, True, "good")
