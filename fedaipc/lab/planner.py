"""Any one of epsilon, noise, rounds and sampling rate from the others, and what follows from it.

All of it is arithmetic on public numbers; no data is read. What is solved for is met by RDP at
the schedule's best order, as in a job, so that a fresh ledger covers what is planned here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import binom

from fedaipc.config import DPSGD, Schedule
from fedaipc.errors import PrivacyError
from fedaipc.privacy.accountant import (
    best_order,
    check_reachable,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    is_dear,
    noise_for,
)
from fedaipc.privacy.budget import check_delta
from fedaipc.report.formatting import at_most

Unknown = Literal["noise", "epsilon", "rounds", "rate"]
NEEDS: dict[Unknown, tuple[str, ...]] = {  # what has to be known to find it
    "noise": ("epsilon",), "epsilon": ("noise",), "rounds": ("epsilon", "noise"),
    "rate": ("epsilon", "noise"),
}  # fmt: skip
TARGETS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
GROUPS = (1, 2, 3, 5, 10)
_MAX_ROUNDS = 10_000_000
_CURVE = 25  # points
_MAX_IN_MIXTURE = 50  # records
_MAX_EPSILON = 1000.0  # records of a group; for more, nothing is promised
_MIN_LOG_DELTA = -300.0  # powers of ten: near the smallest float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job asks of one PC: `rounds` times `once`. `epsilon` is by RDP.

    `records` is the PC's public size class.
    """

    epsilon: float
    mechanism: DPSGD
    steps: int
    rounds: int
    records: int

    def __str__(self) -> str:
        steps = "a step" if self.steps == 1 else f"{self.steps} steps"
        return (
            f"noise multiplier {self.noise:.4g} at sampling rate {self.rate:.4g}, {self.rounds:,} "
            f"rounds of {steps}: epsilon {at_most(self.epsilon)} at delta {self.delta:g}, for a PC "
            f"of size class {self.records:,}"
        )

    @property
    def schedule(self) -> Schedule:
        """The schedule of all rounds."""
        return Schedule(mechanism=self.mechanism, steps=self.steps * self.rounds)

    @property
    def once(self) -> Schedule:
        """The schedule of one round."""
        return Schedule(mechanism=self.mechanism, steps=self.steps)

    @property
    def delta(self) -> float:
        """At which epsilon holds."""
        return self.mechanism.delta

    @property
    def noise(self) -> float:
        """The noise multiplier: standard deviation of the noise by clip norm."""
        return self.mechanism.multiplier

    @property
    def rate(self) -> float:
        """The chance of a record to join a step (Poisson subsampling)."""
        return self.mechanism.sampling_rate

    def at_rate(self, rate: float) -> Plan:
        """The same with another sampling rate; `epsilon` stays as it is."""
        return replace(self, mechanism=self.mechanism.model_copy(update={"sampling_rate": rate}))

    @property
    def relative_noise(self) -> float:
        """Standard deviation of the noise on the mean gradient, in clip bounds, per coordinate."""
        return self.noise / (self.rate * self.records)

    def by_accountant(self) -> dict[str, float | None]:
        """Epsilon of the whole schedule, by each accountant; upper bounds all of them.

        None where one is so large that PRV and PLD would take more memory than the answer is worth.
        """
        steps = [self.schedule]
        dear = is_dear(steps)
        return {
            "rdp": epsilon_rdp(steps, self.delta),
            "prv": None if dear else epsilon_prv(steps, self.delta),
            "pld": None if dear else epsilon_pld(steps, self.delta),
        }

    def curve(self, points: int = _CURVE) -> list[tuple[int, float]]:
        """(rounds, epsilon by RDP) from one round to all of them."""
        count = min(points, self.rounds)
        rounds = sorted({max(1, round(self.rounds * n / count)) for n in range(1, count + 1)} | {1})
        return [(r, _epsilon(replace(self, rounds=r))) for r in rounds]

    def trade_offs(self, targets: Sequence[float] | None = None) -> list[Plan]:
        """The same schedule for `targets`, by default TARGETS: each has the noise that it takes."""
        targets = TARGETS if targets is None else targets
        return [solve("noise", replace(self, epsilon=target)) for target in targets]

    def group_epsilon(self, records: int) -> float | None:
        """Epsilon at the schedule's delta for somebody who has this many of the PC's records.

        By privacy loss distributions: how many of the records a Poisson sample holds is binomial,
        and each moves the sum by a clip at most, so a step is a mixture of Gaussians (Ganesh 2024,
        arXiv 2401.10294; computed by dp-accounting). Upper bound. Without sampling all are in each
        step, which is one Gaussian of so many clips: exact. For more than 50 sampled
        records, where a mixture takes too long, by group privacy of one record's curve. None where
        there is no bound.
        """
        if records == 1:
            steps = [self.schedule]
            return _epsilon(self) if is_dear(steps) else epsilon_pld(steps, self.delta)
        if self.rate == 1:  # a mixture of one part is more than dp-accounting can do
            return _group_epsilon_unsampled(self, records)
        if records > _MAX_IN_MIXTURE:
            return _group_by_curve(self, records)
        return _group_epsilon_by_mixture(self, records)


def solve(find: Unknown, given: Plan) -> Plan:
    """`given` with its unknown field set: the value it holds there is ignored.

    The least noise, the most rounds or the largest rate that meet epsilon; or the epsilon that
    follows. Raises PrivacyError where nothing meets it, or delta is too large for the records.
    """
    check_delta(given.delta, "record", public_class=given.records, clients=1)
    if find != "epsilon":
        check_reachable(given.epsilon, given.delta)
    if find == "noise":
        noise = noise_for(given.mechanism, given.epsilon, given.steps * given.rounds)
        found = replace(given, mechanism=given.mechanism.with_noise(noise))
    elif find == "rounds":
        found = replace(given, rounds=_most_rounds(given))
    elif find == "rate":
        found = given.at_rate(_largest_rate(given))
    else:
        found = given
    return replace(found, epsilon=_epsilon(found))


def _group_epsilon_unsampled(plan: Plan, records: int) -> float | None:
    from dp_accounting import get_epsilon_gaussian

    noise = plan.noise / (records * math.sqrt(plan.steps * plan.rounds))
    with np.errstate(divide="ignore"):  # it takes log(0) where no epsilon is needed
        epsilon = float(get_epsilon_gaussian(noise, plan.delta))
    return epsilon if epsilon <= _MAX_EPSILON else None


def _group_epsilon_by_mixture(plan: Plan, records: int) -> float | None:
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    chances = [float(binom.pmf(count, records, plan.rate)) for count in range(records)]
    chances.append(max(0.0, 1.0 - math.fsum(chances)))
    mean, spread = records * plan.rate, records * plan.rate * (1 - plan.rate)
    loss = plan.steps * plan.rounds * (mean**2 + spread) / (2 * plan.noise**2)
    if loss > _MAX_EPSILON:  # on average: the grid would be as wide, and wider
        return None
    present = [(count, chance) for count, chance in enumerate(chances) if chance > 0]
    # In units of the noise: it searches to a millionth, for which a large noise has too few digits.
    event = dp_event.MixtureOfGaussiansDpEvent(
        1.0, [count / plan.noise for count, _ in present], [chance for _, chance in present]
    )
    accountant = PLDAccountant(value_discretization_interval=0.01)
    accountant.compose(event, plan.steps * plan.rounds)
    epsilon = float(accountant.get_epsilon(plan.delta))
    return epsilon if math.isfinite(epsilon) else None


def _group_by_curve(plan: Plan, records: int) -> float | None:
    """By (epsilon_1, delta_1) of one record: records times epsilon_1 where m exp((m - 1) epsilon_1)
    delta_1 stays within delta (Dwork and Roth 2014, theorem 2.2); the best point of the curve.
    """
    steps, best = [plan.schedule], None
    exponent = math.log10(plan.delta)
    while exponent > _MIN_LOG_DELTA:
        exponent -= 1.0  # a finer look hardly finds better ones
        epsilon = best_order(steps, 10.0**exponent)[1]
        spread = math.log(records) + (records - 1) * epsilon + exponent * math.log(10)
        if spread <= math.log(plan.delta) and (best is None or records * epsilon < best):
            best = records * epsilon
    return best


def _epsilon(plan: Plan) -> float:
    return best_order([plan.schedule], plan.delta)[1]


def _fits(plan: Plan) -> bool:
    # A ledger compares to the last bit, and adds in another order.
    return _epsilon(plan) <= plan.epsilon * (1 - 1e-9)


def _most_rounds(given: Plan) -> int:
    low, high = 0, 1
    while high <= _MAX_ROUNDS and _fits(replace(given, rounds=high)):
        low, high = high, high * 2
    if low == 0:
        raise PrivacyError(
            f"epsilon {given.epsilon:g} does not cover one round at noise multiplier "
            f"{given.noise:g}: ask for more noise"
        )
    high = min(high, _MAX_ROUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(replace(given, rounds=middle)) else (low, middle)
    return low


def _largest_rate(given: Plan) -> float:
    if _fits(given.at_rate(1.0)):
        return 1.0
    low, high = 1 / given.records, 1.0
    if not _fits(given.at_rate(low)):
        raise PrivacyError(
            f"epsilon {given.epsilon:g} does not cover {given.rounds} rounds at noise multiplier "
            f"{given.noise:g}, however few records are sampled: ask for more noise or fewer rounds"
        )
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _fits(given.at_rate(middle)) else (low, middle)
    return low
