"""The public privacy parameters of a job, and the public size class of a PC.

Epsilon follows from these numbers alone, without a look at any data. What normalises a gradient is
the sampling rate times the PC's size class, a number its owner declares once, never the true count
of records: otherwise the update would reveal that count.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from fedaipc.config import DPSGD, Schedule
from fedaipc.errors import PrivacyError
from fedaipc.privacy.accountant import (
    ORDERS,
    best_order,
    epsilon_at,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    filter_budget,
    is_dear,
    noise_for,
    rdp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedaipc.config import Settings

SMALLEST_CLASS = 32
NEIGHBOURS = {
    "record": "one record of one PC added or removed",
    "client": "all records of one PC added or removed",
}


def round_schedule(settings: Settings) -> Schedule:
    """What one round asks of a PC, its noise fixed: as given, or the least that meets the target.

    The target is met over all planned rounds by RDP at the schedule's best order, so that a fresh
    ledger whose filter has this order and this budget covers exactly them. A PC that is asked
    in a fraction of the rounds spends less. Raises PrivacyError where the target cannot be met.
    """
    mechanism = settings.privacy
    steps = mechanism.noisy_steps(settings.training.local_steps)
    if isinstance(mechanism, DPSGD) and mechanism.epsilon is not None:
        noise = noise_for(mechanism, mechanism.epsilon, steps * settings.rounds)
        mechanism = mechanism.with_noise(noise)
    return Schedule(mechanism=mechanism, steps=steps)


@lru_cache(maxsize=64)
def planned_epsilon(once: Schedule, rounds: int) -> dict[str, float]:
    """Epsilon after `rounds` rounds by each accountant, for one PC that took part in all.

    `once` is the schedule of one round. Where PRV and PLD would take gigabytes, RDP's stands for
    them: it is above both.
    """
    schedule, delta = [once.times(rounds)], once.mechanism.delta
    bound = epsilon_rdp(schedule, delta)
    if is_dear(schedule):
        return dict.fromkeys(("rdp", "prv", "pld"), bound)
    return {
        "rdp": bound,
        "prv": epsilon_prv(schedule, delta),
        "pld": epsilon_pld(schedule, delta),
    }


def filter_order(once: Schedule, rounds: int, lifetime: float) -> float:
    """The RDP order of a new ledger, chosen for the first job that is known; public, as that is.

    Where the lifetime budget covers the job, the order at which the job costs least; otherwise
    the one that affords most of its rounds. Without privacy, the one at which a budget goes
    furthest for plain Gaussian noise. Raises PrivacyError where the budget does not cover a single
    round.
    """
    delta = once.mechanism.delta
    if not isinstance(once.mechanism, DPSGD):
        return usual_order(lifetime, delta)
    budgets = {order: filter_budget(order, lifetime, delta) for order in ORDERS}
    order, epsilon = best_order([once.times(rounds)], delta)
    if epsilon <= lifetime:
        return order
    affordable = {order: _ratio(budgets[order], rdp([once], order)) for order in ORDERS}
    order = max(affordable, key=lambda order: affordable[order])
    if affordable[order] < 1:
        raise PrivacyError(
            f"federation.lifetime_epsilon = {lifetime:g} does not cover a single round at noise "
            f"multiplier {once.mechanism.multiplier:.4g}; raise it, or ask for more noise"
        )
    return order


def usual_order(lifetime: float, delta: float) -> float:
    """The RDP order at which a budget goes furthest for plain Gaussian noise.

    Raises PrivacyError where the budget is too small for any order.
    """
    budgets = {order: filter_budget(order, lifetime, delta) for order in ORDERS}
    order = max(ORDERS, key=lambda order: budgets[order] / order)
    if budgets[order] <= 0:
        raise PrivacyError(f"lifetime_epsilon = {lifetime:g} is too small for any order; raise it")
    return order


def covered_rounds(once: Schedule, lifetime: float, order: float) -> int:
    """How many such rounds a fresh ledger with this budget and order grants."""
    room = _ratio(filter_budget(order, lifetime, once.mechanism.delta), rdp([once], order))
    return int(min(room * (1 + 1e-9), sys.maxsize))


def early_end(once: Schedule, rounds: int, lifetime: float) -> str | None:
    """One line where a new PC's lifetime budget ends before the planned rounds do.

    Raises PrivacyError where it does not cover a single one.
    """
    covered = covered_rounds(once, lifetime, filter_order(once, rounds, lifetime))
    if covered >= rounds:
        return None
    return (
        f"PCs will decline after {covered} of {rounds} rounds: federation.lifetime_epsilon is "
        f"{lifetime:g}"
    )


def _ratio(budget: float, cost: float) -> float:
    return budget / cost if cost else math.inf  # so much noise that the cost rounds to 0


def charged_epsilon(once: Schedule, rounds: int, order: float) -> float:
    """Epsilon after `rounds` rounds in a fresh ledger whose filter has `order`."""
    return epsilon_at(order, rdp([once.times(rounds)], order), once.mechanism.delta)


def local_epsilon(schedules: Iterable[Schedule], delta: float) -> float:
    """Epsilon, by RDP, against whoever opens a client's own updates in spite of secure aggregation.

    Of all these steps with that client's own noise alone; more than the promise of the sums only
    where noise is distributed.
    """
    return best_order([one.local for one in schedules], delta)[1]


def size_class(records: int) -> int:
    """The public class of a PC that holds `records` records: the next power of two, at least 32.

    Called once, when a PC is enrolled, by its owner; the class is then fixed.
    """
    if records < 1:
        raise PrivacyError("a PC needs at least one record")
    return max(SMALLEST_CLASS, 1 << (records - 1).bit_length())


def outgrown(records: int, public_class: int) -> str:
    """What the owner of a PC should do, where the class does not fit its records (any more).

    For the owner alone: it depends on the data. "" where it fits: above half of the class, or in
    the smallest.
    """
    anew = (
        "run `fedaipc client leave`, then `fedaipc client enroll` in the same folder, and send the "
        "new request"
    )
    if records == 0:
        return "trained on nothing: none of this PC's texts can be used"
    if records > public_class:
        return (
            "this PC holds more records than its size class, for which delta was checked: take "
            f"some out, or {anew}"
        )
    if records <= public_class // 4 and public_class > SMALLEST_CLASS:
        return (
            "most of the records that this PC enrolled with are gone or cannot be used, so that "
            f"its noise outweighs them: mend its texts, or {anew}"
        )
    return ""


def check_delta(delta: float, unit: str, *, public_class: int, clients: int) -> None:
    """Raise PrivacyError on a delta above 1 / (10 n), n being how many of the unit there are.

    Of records, the upper end of the PC's public size class; of clients, all in the federation. The
    class and not the true count decides, so that a refusal says nothing about the data.
    """
    count = public_class if unit == "record" else clients
    bound = 1 / (10 * count)
    if delta > bound:
        among = f"size class {count}" if unit == "record" else f"{count:,} clients"
        raise PrivacyError(
            f"privacy.delta = {delta:g} is too large for {among}: choose at most {bound:.1e}"
        )
