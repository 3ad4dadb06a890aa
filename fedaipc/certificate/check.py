"""Check a certificate without trusting fedaipc's accountants.

Epsilon is computed again by dp-accounting alone, from the schedule; the schedule comes from the
signed job or from the ledger's signed lines. Nothing of fedaipc's accounting is imported here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc import strict_json
from fedaipc.certificate.document import (
    AS_DECLARED,
    AT_MOST,
    COMPOSITION,
    MECHANISM,
    UNITS,
    Wording,
    lifetime_basis,
    wording,
)
from fedaipc.config import (
    DPSGD,
    GAUSSIAN,
    LOSS_DELTA,
    MAX_KINDS,
    MAX_LOSS,
    Aggregation,
    Privacy,
    Schedule,
    TrainingSettings,
    filter_name,
    mechanism_fault,
)
from fedaipc.errors import FedaipcError
from fedaipc.privacy.chain import check_chain
from fedaipc.secagg.keys import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fedaipc.certificate.document import (
        AuditFacts,
        Certificate,
        Epsilons,
        Guarantee,
        PcFacts,
        RunFacts,
    )

# PRV may lie so far from PLD: docs/explanation/numerics.md says how far they were on 200 schedules.
_RELATIVE, _ABSOLUTE = 0.01, 0.005
_PLD_DIGITS = 1e-6  # the same library and grid
_GAUSSIAN_DIGITS = 1e-6  # one formula, solved twice
_RDP_DIGITS = 1e-3  # at orders between whole numbers RDP is a series, cut off here and there
_JOB_LABEL = b"fedaipc job"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was compared, whether it holds, and with which numbers."""

    what: str
    holds: bool
    detail: str


def check(certificate: Certificate) -> list[Finding]:
    """What can be checked without the run or the PC, up to the first check that fails.

    Never raises for what is wrong. Cheap checks come first: a certificate is a stranger's, and
    anybody can sign one that keeps an accountant busy for hours.
    """
    found: list[Finding] = []
    try:
        for finding in _findings(certificate):
            found.append(finding)
            if not finding.holds:
                break
    except (ArithmeticError, AttributeError, KeyError, MemoryError, TypeError, ValueError,
            RecursionError, FedaipcError) as error:  # fmt: skip
        # A certificate may come from somebody who wants this program to fail.
        found.append(Finding("contents", False, f"cannot be read ({type(error).__name__})"))
    return found


def _findings(certificate: Certificate) -> Iterator[Finding]:
    guarantee = certificate.guarantee
    yield _checked("signature", certificate.check_signature)
    yield _wording(certificate)
    if certificate.audit is not None:
        yield _audit(certificate.audit, guarantee)
    if certificate.run is not None:
        yield from _run(certificate.run, guarantee, certificate.signer)
    if certificate.pc is not None:
        yield from _pc(certificate.pc, guarantee, certificate.signer)
    if guarantee.epsilon is None:
        reasons = "; ".join(guarantee.not_private)
        yield Finding("nothing is claimed", True, f"NOT PRIVATE: {reasons}")
    else:
        yield from _epsilons(guarantee, guarantee.epsilon)


def _wording(certificate: Certificate) -> Finding:
    """What is claimed is what fedaipc claims: one record, added or removed, and so on."""
    guarantee = certificate.guarantee
    told = Wording(
        unit=guarantee.unit, neighbours=guarantee.neighbours, mechanism=guarantee.mechanism,
        sampling=guarantee.sampling, amplification=guarantee.amplification,
        trust=certificate.trust,
    )  # fmt: skip
    # By the job, or by the stated schedule, which is compared with what was signed further down.
    run, unit = certificate.run, _unit(guarantee)
    schedule = guarantee.schedule if run is None else _asked(run)
    holds = (
        unit is not None
        and all(one.mechanism.unit == unit for one in (*schedule, *guarantee.schedule))
        and told == wording(schedule, unit)
        and guarantee.composition == COMPOSITION
    )
    return Finding("wording", holds, "unit, neighbours, mechanism, what it rests on")


def _unit(guarantee: Guarantee) -> str | None:
    return next((unit for unit, words in UNITS.items() if words == guarantee.unit), None)


def _asked(run: RunFacts) -> list[Schedule]:
    """A step of the run's job; nothing where that cannot be read, which its own check finds."""
    try:
        mechanism = Privacy.model_validate(strict_json.parse(run.job)["privacy"])
        return [Schedule(mechanism=mechanism, steps=1)] if mechanism.private else []
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _audit(audit: AuditFacts, guarantee: Guarantee) -> Finding:
    pld = None if guarantee.epsilon is None else guarantee.epsilon.pld
    # Of single updates: such an attack says nothing of sums with distributed noise.
    same = guarantee.mechanism == MECHANISM and (
        pld is None
        or (audit.promised is not None and math.isclose(audit.promised, pld, rel_tol=_RELATIVE))
    )
    promised = "nothing" if audit.promised is None else f"{audit.promised:.4f}"
    return Finding(
        "audit", same and (pld is None or audit.lower <= pld),
        f"lower bound {audit.lower:.4f} with confidence {audit.confidence:g}, promised {promised}",
    )  # fmt: skip


def _run(run: RunFacts, guarantee: Guarantee, signer: str) -> Iterator[Finding]:
    signed = _JOB_LABEL + run.job.encode()

    def job_signature() -> None:
        verify(bytes.fromhex(signer), bytes.fromhex(run.job_signature), signed, "the job")

    yield _checked("job's signature", job_signature)
    job: dict[str, Any] = strict_json.parse(run.job)
    mechanism = Privacy.model_validate(job["privacy"])
    private = mechanism.private
    most, rounds = int(job["max_attempts"]), int(job["rounds"])
    local = mechanism.noisy_steps(int(job["training"]["local_steps"]))
    schedule: Counter[Privacy] = Counter()
    if private and run.attempts:
        schedule[mechanism] = local * run.attempts
    stated = (guarantee.delta, run.run)
    sealed = job.get("aggregation", {}).get("kind", run.aggregation)
    yield Finding(
        "job's terms",
        stated == (mechanism.delta, job["run"])
        and run.aggregation == sealed
        and _is_taken(mechanism, job)
        and run.rounds <= run.attempts <= most
        and (run.status != "finished" or run.rounds == rounds),
        f"delta {guarantee.delta:g}, {run.rounds} rounds in {run.attempts} attempts of {most}",
    )
    yield _same_schedule(guarantee.schedule, schedule)
    yield Finding(
        "private or not",
        private or bool(guarantee.not_private),
        f'the job has privacy.kind = "{mechanism.kind}"',
    )
    if guarantee.claim is not None and private:
        declared = run.status == "finished" and run.attempts == rounds
        steps = local * (rounds if declared else most)
        taken = Schedule(mechanism=mechanism, steps=steps)
        yield _size([taken])
        again = _pld([taken], guarantee.delta)
        yield Finding(
            "claim",
            guarantee.claim >= again * (1 - _PLD_DIGITS)
            and guarantee.basis == (AS_DECLARED if declared else AT_MOST),
            f"{guarantee.claim:.4f}; computed anew {again:.4f}: {guarantee.basis}",
        )
        yield _local(guarantee, [taken])


def _is_taken(mechanism: Privacy, job: dict[str, Any]) -> bool:
    """Whether PCs take a job with such a unit, and such a place of the noise."""
    if not isinstance(mechanism, DPSGD) or not mechanism.noise_at_encoding:
        return True
    training = TrainingSettings.model_validate(job["training"])
    aggregation = Aggregation.model_validate(job["aggregation"])
    return mechanism_fault(mechanism, training, aggregation, job["weighting"]) is None


def _pc(pc: PcFacts, guarantee: Guarantee, signer: str) -> Iterator[Finding]:
    lines = [line.encode() for line in pc.ledger]
    try:
        chain = check_chain(lines, "the ledger", every=True)
    except FedaipcError as error:
        yield Finding("ledger", False, str(error))
        return
    header, charges = chain.entries[0], [e for e in chain.entries if e["kind"] == "charge"]
    yield Finding(
        "ledger",
        chain.key == signer and len(charges) == pc.charges and all(map(_is_charge, charges)),
        f"{len(chain.entries)} lines, {len(charges)} charges, all signed",
    )
    schedule: Counter[Privacy] = Counter()
    taken = [_charged(charge) for charge in charges]
    for one in taken:
        if one.private:
            schedule[one.mechanism] += one.steps
    stated = (guarantee.delta, pc.filter.lifetime_epsilon, pc.filter.kind, _unit(guarantee))
    facts = tuple(header[key] for key in ("delta", "lifetime_epsilon", "filter", "unit"))
    yield Finding(
        "ledger's terms", stated == facts,
        f"delta {guarantee.delta:g}, lifetime epsilon {pc.filter.lifetime_epsilon:g}",
    )  # fmt: skip
    yield _same_schedule(guarantee.schedule, schedule)
    unprotected = any(e["seeded"] for e in charges) or not all(one.private for one in taken)
    yield Finding(
        "private or not", bool(guarantee.not_private) == unprotected,
        "a round was not private" if unprotected else "every round was private",
    )  # fmt: skip
    if not unprotected:
        told = pc.filter
        if told.kind == GAUSSIAN:
            again, digits = _gaussian(guarantee.schedule, guarantee.delta), _GAUSSIAN_DIGITS
        else:
            again = _rdp(guarantee.schedule, guarantee.delta, [told.kind])
            digits = _RDP_DIGITS
        yield Finding(
            "lifetime budget",
            math.isclose(told.epsilon, again, rel_tol=digits, abs_tol=_GAUSSIAN_DIGITS)
            and told.epsilon <= told.lifetime_epsilon,
            f"{told.epsilon:.4f} of {told.lifetime_epsilon:g} by {filter_name(told.kind)}; "
            f"recomputed {again:.4f}",
        )
        yield Finding(
            "claim",
            guarantee.claim == told.lifetime_epsilon
            and guarantee.basis == lifetime_basis(told.kind),
            f"the lifetime budget: {guarantee.basis}",
        )  # fmt: skip
        yield _local(guarantee, guarantee.schedule)


def _charged(entry: dict[str, Any]) -> Schedule:
    """What a charge says was spent. Raises ValueError where no charge can have spent it: a negative
    number, say, would give budget back.
    """
    schedule = {"mechanism": entry["mechanism"], "steps": entry["steps"]}
    return Schedule.model_validate(schedule, strict=True)


def _is_charge(entry: dict[str, Any]) -> bool:
    try:
        _charged(entry)
    except ValueError:
        return False
    return type(entry["seeded"]) is bool


def _epsilons(guarantee: Guarantee, told: Epsilons) -> Iterator[Finding]:
    yield _size(guarantee.schedule)
    pld = _pld(guarantee.schedule, guarantee.delta)
    yield Finding(
        "epsilon by PLD", math.isclose(told.pld, pld, rel_tol=_PLD_DIGITS, abs_tol=_PLD_DIGITS),
        f"{told.pld:.4f}; computed anew {pld:.4f}",
    )  # fmt: skip
    yield Finding(
        "epsilon by PRV", abs(told.prv - pld) <= _RELATIVE * pld + min(_ABSOLUTE, pld / 2),
        f"{told.prv:.4f}; recomputed by PLD {pld:.4f}",
    )  # fmt: skip
    rdp = _rdp(guarantee.schedule, guarantee.delta)
    # RDP bounds differ by the orders that were looked at: another one can be a little higher.
    yield Finding(
        "epsilon by RDP", told.rdp >= pld * (1 - _PLD_DIGITS) and told.rdp >= rdp * (1 - _RELATIVE),
        f"{told.rdp:.4f}; computed anew {rdp:.4f}",
    )  # fmt: skip


def _local(guarantee: Guarantee, claimed: Sequence[Schedule]) -> Finding:
    """What one PC's own noise promises, where it adds a share only."""
    if all(one.local == one for one in claimed):
        return Finding("local", guarantee.local is None, "each PC adds all of its noise")
    again = _rdp([one.local for one in claimed], guarantee.delta)
    told = guarantee.local
    return Finding(
        "local", told is not None and told >= again * (1 - _RELATIVE),
        f"{'nothing told' if told is None else f'{told:.4f}'}; computed anew {again:.4f}",
    )  # fmt: skip


def _same_schedule(stated: Sequence[Schedule], found: Counter[Privacy]) -> Finding:
    told = Counter({one.mechanism: one.steps for one in stated})
    steps = sum(found.values())
    return Finding(
        "schedule", told == found and len(told) == len(stated),
        f"{steps:,} steps of {len(found)} kind{'' if len(found) == 1 else 's'}",
    )  # fmt: skip


def _size(schedule: Sequence[Schedule]) -> Finding:
    """Whether the schedule is small enough for the PLD accountant."""
    if len(schedule) > MAX_KINDS:
        return Finding("size", False, f"not checked: more than {MAX_KINDS} kinds of steps")
    loss = _rdp(schedule, LOSS_DELTA)
    if not loss <= MAX_LOSS:
        return Finding(
            "size", False,
            f"not checked: too large, RDP {loss:.4g} of at most {MAX_LOSS:g} at delta 1e-15",
        )  # fmt: skip
    return Finding("size", True, f"RDP {loss:.4g} of at most {MAX_LOSS:g} at delta 1e-15")


def _pld(schedule: Sequence[Schedule], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-4)
    return _composed(accountant, schedule, delta)


def _rdp(
    schedule: Sequence[Schedule], delta: float, orders: Sequence[float] | None = None
) -> float:
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant() if orders is None else RdpAccountant(orders=list(orders))
    return _composed(accountant, schedule, delta)


def _gaussian(schedule: Sequence[Schedule], delta: float) -> float:
    """Of Gaussian steps, of which a sampled one counts as if it were not: one Gaussian."""
    import numpy as np
    from dp_accounting import get_epsilon_gaussian

    if not schedule:
        return 0.0
    squares = math.fsum(one.steps / _step(one) ** 2 for one in schedule)
    with np.errstate(divide="ignore"):  # of so much noise it takes the logarithm of a delta of 0
        return float(get_epsilon_gaussian(1 / math.sqrt(squares), delta))


def _step(one: Schedule) -> float:
    """The noise multiplier of a step of DP-SGD. Raises ValueError where it is another one."""
    if type(one.mechanism) is not DPSGD:
        raise ValueError("a step that is not DP-SGD, of which alone a certificate speaks")
    return one.mechanism.multiplier


def _composed(accountant: Any, schedule: Sequence[Schedule], delta: float) -> float:
    from dp_accounting import dp_event

    if not schedule:
        return 0.0
    logging.getLogger("absl").setLevel(logging.ERROR)  # it reports each order that it leaves out
    for one in schedule:
        mechanism = one.mechanism
        event: Any = dp_event.GaussianDpEvent(_step(one))
        if mechanism.sampling_rate < 1 and mechanism.unit == "record":
            event = dp_event.PoissonSampledDpEvent(mechanism.sampling_rate, event)
        accountant.compose(event, one.steps)
    return float(accountant.get_epsilon(delta))


def _checked(what: str, run: Callable[[], None]) -> Finding:
    try:
        run()
    except FedaipcError as error:
        return Finding(what, False, str(error))
    except ValueError:
        return Finding(what, False, "cannot be read")
    return Finding(what, True, "good")
