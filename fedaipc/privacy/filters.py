"""Privacy filters: what keeps a PC's lifetime budget, whatever is asked of it later.

A filter adds up what each step costs and stops before the total passes a budget. Both kinds stay
valid where a later step, and its noise, is chosen by all that was seen before.

| kind                 | cost of a step of noise multiplier sigma, rate q  | theorem              |
|----------------------|---------------------------------------------------|----------------------|
| "gaussian"           | 1 / sigma^2, whatever q is; no other mechanisms   | Smith, Thakurta 2022 |
| a number: RDP order  | its Renyi divergence of that order                | Feldman, Zrnic 2021  |

The Gaussian filter is exact where q = 1 and wasteful where q is small: there an RDP order does
better. To take whichever is smaller of two would cost delta twice. So a ledger has one, for life.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fedaipc.config import GAUSSIAN, FilterKind, filter_name
from fedaipc.errors import PrivacyError
from fedaipc.privacy.accountant import (
    ORDERS,
    epsilon_at,
    filter_budget,
    gaussian_multiplier,
    rdp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fedaipc.config import Schedule

_LARGEST = 1e100  # mu^2 whose epsilon is computed; a life has 10^12 steps of 100 each at most
_ROUNDING = 2.0**-48  # relative, of `log_ndtr` and what goes into it, with room
_ROOM = 1e-10  # of epsilon: far above what rounding moves, and nobody misses it


@dataclass(frozen=True, slots=True)
class PrivacyFilter(ABC):
    """One kind of filter. Costs and budgets are in its own unit, and add up."""

    kind: FilterKind

    @property
    def name(self) -> str:
        return filter_name(self.kind)

    @abstractmethod
    def cost(self, schedules: Iterable[Schedule]) -> float:
        """What all these steps cost together, never too little; infinite where one is of a
        mechanism that this filter does not count.

        Raises PrivacyError where a step is not private.
        """

    @abstractmethod
    def budget(self, epsilon: float, delta: float) -> float:
        """The largest cost that (epsilon, delta) has room for, rounded down; 0 or less: none."""

    @abstractmethod
    def epsilon(self, cost: float, delta: float) -> float:
        """Epsilon at `delta` of a life that cost so much, rounded up."""

    @abstractmethod
    def fault(self, schedule: Schedule) -> str:
        """Why this filter cannot count `schedule`, in words; "" where it can."""

    @abstractmethod
    def at_budget(self, epsilon: float, delta: float) -> PrivacyFilter:
        """A filter for another budget, and unknown jobs of the kind that this one was chosen for.

        The best of its family for plain Gaussian noise. Raises PrivacyError where the family has
        none: orders have a least epsilon, the Gaussian one has room in any budget.
        """


@dataclass(frozen=True, slots=True)
class RenyiFilter(PrivacyFilter):
    """RDP at one of ORDERS (Feldman and Zrnic, "Individual privacy accounting via a Renyi filter",
    NeurIPS 2021, theorem 4.3).
    """

    kind: float

    def cost(self, schedules: Iterable[Schedule]) -> float:
        return rdp(schedules, self.kind)

    def budget(self, epsilon: float, delta: float) -> float:
        return filter_budget(self.kind, epsilon, delta)

    def epsilon(self, cost: float, delta: float) -> float:
        return epsilon_at(self.kind, cost, delta)

    def fault(self, schedule: Schedule) -> str:  # noqa: ARG002 - it counts all that has an event
        return ""

    def at_budget(self, epsilon: float, delta: float) -> PrivacyFilter:
        best = max(RENYI_FILTERS, key=lambda one: one.budget(epsilon, delta) / one.kind)
        if best.budget(epsilon, delta) <= 0:
            raise PrivacyError(
                f"lifetime_epsilon = {epsilon:g} is too small for any RDP order; raise it"
            )
        return best


@dataclass(frozen=True, slots=True)
class GaussianFilter(PrivacyFilter):
    """Gaussian DP. Let every step be mu_i-GDP given all that came before it, and let the sum of the
    mu_i^2 never pass mu^2. Then the whole life is mu-GDP.

    Smith and Thakurta, "Fully adaptive composition for Gaussian differential privacy", arXiv
    2210.17520; also Koskela, Tobaben and Honkela, "Individual privacy accounting with Gaussian
    differential privacy", ICLR 2023.

    Gaussian noise of multiplier sigma is (1 / sigma)-GDP (Dong, Roth and Su, "Gaussian differential
    privacy", JRSS B 2022, theorem 1). A Poisson-sampled step is so too. Given who else was drawn,
    it is a mixture of the step with the record and of one that does not see it. Hockey-stick
    divergences are jointly convex, in both directions. That is all that can be said of it by one
    mu: a rare draw shows as much as any. Its cost is the sum of the mu_i^2.
    """

    kind: FilterKind = GAUSSIAN

    def cost(self, schedules: Iterable[Schedule]) -> float:
        noises = [(one.steps, gaussian_multiplier(one.mechanism)) for one in schedules]
        if any(noise is None for _, noise in noises):
            return math.inf
        total = math.fsum(steps / noise**2 for steps, noise in noises if noise is not None)
        return total * (1 + 2.0**-50)  # what was rounded on the way

    def budget(self, epsilon: float, delta: float) -> float:
        return gaussian_budget(epsilon, delta)

    def epsilon(self, cost: float, delta: float) -> float:
        return gaussian_epsilon(cost, delta)

    def fault(self, schedule: Schedule) -> str:
        if gaussian_multiplier(schedule.mechanism) is not None:
            return ""
        return (
            f'its filter counts Gaussian noise alone, and "{schedule.mechanism.kind}" is another '
            "mechanism"
        )

    def at_budget(self, epsilon: float, delta: float) -> PrivacyFilter:  # noqa: ARG002 - any
        return self


GAUSSIAN_FILTER: PrivacyFilter = GaussianFilter()
RENYI_FILTERS: tuple[RenyiFilter, ...] = tuple(RenyiFilter(order) for order in ORDERS)
_BY_KIND = {one.kind: one for one in (GAUSSIAN_FILTER, *RENYI_FILTERS)}


def is_filter(kind: object) -> bool:
    """Whether there is such a filter, as a ledger or an invite may name it."""
    return isinstance(kind, str | int | float) and kind in _BY_KIND


def filter_of(kind: FilterKind) -> PrivacyFilter:
    """The filter of this kind, of which `is_filter` holds."""
    return _BY_KIND[kind]


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of mu-GDP at `epsilon`, rounded up.

    Phi(-epsilon / mu + mu / 2) - e^epsilon Phi(-epsilon / mu - mu / 2) (Dong, Roth and Su 2022,
    corollary 1; Balle and Wang, "Improving the Gaussian mechanism for differential privacy",
    ICML 2018, theorem 8). In logarithms, so that neither a large epsilon nor a tiny delta loses
    digits. Rounding moves a logarithm by less than 2^-48 (epsilon / mu + mu / 2 + 1)^2, which is
    added against us. An argument is off by 4 2^-53 of its two parts, and log Phi has a slope of at
    most the argument plus 1. `log_ndtr` is off by a few units in its last place.
    """
    from scipy.special import log_ndtr

    away, half = epsilon / mu, mu / 2
    first = float(log_ndtr(half - away))
    second = epsilon + float(log_ndtr(-half - away))
    lost = _ROUNDING * (away + half + 1) ** 2
    return math.exp(min(0.0, first + lost)) * -math.expm1(second - first - 2 * lost)


@lru_cache(maxsize=4096)
def gaussian_epsilon(total: float, delta: float) -> float:
    """The smallest epsilon of sqrt(`total`)-GDP at `delta`, rounded up."""
    if total == 0:
        return 0.0
    if not 0 < total < _LARGEST:  # NaN as well
        return math.inf
    mu = math.sqrt(total)
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, total / 2 + mu * math.sqrt(-2 * math.log(delta))  # by the tail of Phi
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    return _bisected(lambda epsilon: gaussian_delta(mu, epsilon) > delta, low, high)[1]


@lru_cache(maxsize=1024)
def gaussian_budget(epsilon: float, delta: float) -> float:
    """The largest mu^2 whose epsilon at `delta` is at most `epsilon`, rounded down."""
    allowed = epsilon * (1 - _ROOM)

    def fits(total: float) -> bool:
        return gaussian_epsilon(total, delta) <= allowed

    low, high = 0.0, 1.0
    while fits(high):
        low, high = high, 2 * high
    return _bisected(fits, low, high)[0]


def _bisected(below: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """The ends of a tiny interval of which the lower one is `below`, and the upper one is not."""
    while high - low > high * 2.0**-47:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if below(middle) else (low, middle)
    return low, high
