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

from fedaipc.config import DPSGD, GAUSSIAN, Schedule
from fedaipc.errors import PrivacyError
from fedaipc.privacy.accountant import (
    best_order,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    is_dear,
    noise_for,
)
from fedaipc.privacy.filters import GAUSSIAN_FILTER, RENYI_FILTERS, filter_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedaipc.config import FilterKind, Settings
    from fedaipc.privacy.filters import PrivacyFilter

SMALLEST_CLASS = 32
NEIGHBOURS = {
    "record": "one record of one PC added or removed",
    "client": "all records of one PC added or removed",
}


def round_schedule(settings: Settings) -> Schedule:
    """What one round asks of a PC, its noise fixed: as given, or the least that meets the target.

    The target is met over all planned rounds by RDP at the schedule's best order. A fresh ledger
    whose filter has this order and this budget covers exactly them; one with the Gaussian filter,
    which is tighter, some more. A PC that is asked in a fraction of the rounds spends less. Raises
    PrivacyError where the target cannot be met.
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


def best_filter(once: Schedule, rounds: int, lifetime: float) -> FilterKind:
    """The privacy filter of a new ledger, chosen for the first job that is known; public, as that
    is.

    Of the Gaussian one and the best RDP order, the one with which the lifetime budget affords more
    rounds of this job. That is the Gaussian one for steps on all records and for whole clients,
    and mostly an order for sampled steps. The best order is the one at which the job costs least,
    or affords most of its rounds where the budget does not cover it. Without privacy, the Gaussian
    one: a budget goes furthest for plain Gaussian noise there. Raises PrivacyError where the budget
    does not cover a single round.
    """
    if not isinstance(once.mechanism, DPSGD):
        return GAUSSIAN
    order = _best_order(once, rounds, lifetime)
    best = max((GAUSSIAN_FILTER, order), key=lambda one: _room(one, once, lifetime))
    if _room(best, once, lifetime) < 1:
        raise PrivacyError(
            f"federation.lifetime_epsilon = {lifetime:g} does not cover a single round at noise "
            f"multiplier {once.mechanism.multiplier:.4g}; raise it, or ask for more noise"
        )
    return best.kind


def _best_order(once: Schedule, rounds: int, lifetime: float) -> PrivacyFilter:
    order, epsilon = best_order([once.times(rounds)], once.mechanism.delta)
    if epsilon <= lifetime:
        return filter_of(order)
    return max(RENYI_FILTERS, key=lambda one: _room(one, once, lifetime))


def covered_rounds(once: Schedule, lifetime: float, kind: FilterKind) -> int:
    """How many such rounds a fresh ledger with this budget and filter grants."""
    return int(min(_room(filter_of(kind), once, lifetime) * (1 + 1e-9), sys.maxsize))


def early_end(once: Schedule, rounds: int, lifetime: float) -> str | None:
    """One line where a new PC's lifetime budget ends before the planned rounds do.

    Raises PrivacyError where it does not cover a single one.
    """
    covered = covered_rounds(once, lifetime, best_filter(once, rounds, lifetime))
    if covered >= rounds:
        return None
    return (
        f"PCs will decline after {covered} of {rounds} rounds: federation.lifetime_epsilon is "
        f"{lifetime:g}"
    )


def _room(kept: PrivacyFilter, once: Schedule, lifetime: float) -> float:
    """How many times a budget of epsilon `lifetime` covers `once`; 0 where that is not known."""
    budget, cost = kept.budget(lifetime, once.mechanism.delta), kept.cost([once])
    if not budget > 0 or math.isnan(cost):
        return 0.0
    return budget / cost if cost else math.inf  # so much noise that the cost rounds to 0


def charged_epsilon(once: Schedule, rounds: int, kind: FilterKind) -> float:
    """Epsilon after `rounds` rounds in a fresh ledger with this filter."""
    kept = filter_of(kind)
    return kept.epsilon(kept.cost([once.times(rounds)]), once.mechanism.delta)


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
