"""Epsilon of a schedule, by three independent accountants.

What was done is a list of schedules: so many steps of a private mechanism each, as DP-SGD: Gaussian
noise of `noise_multiplier` times the clip bound on the sum over a Poisson sample of rate
`sampling_rate`. Neighbours differ by one record added or removed.

PRV (Gopi et al. 2021) and PLD (Koskela et al. 2020; dp-accounting) are tighter than RDP. All three
hold for a schedule declared in advance. What counts against a lifetime budget must hold where later
parameters depend on earlier results, as they do when an owner joins run after run: see `filters`.
"""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.config import DPSGD, LOSS_DELTA, MAX_KINDS, MAX_LOSS, MAX_NOISE, MIN_NOISE, Schedule
from fedaipc.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from fedaipc.config import Privacy

# Opacus' own orders, continued upwards for small budgets. The largest bounds what can be certified
# from below (`check_reachable`).
ORDERS = (
    *(1 + x / 10 for x in range(1, 100)),
    *(float(x) for x in range(11, 64)),
    *(80.0, 128.0, 256.0, 512.0),
)


def merged(schedules: Iterable[Schedule]) -> tuple[Schedule, ...]:
    """The same with equal schedules counted together (order does not matter)."""
    steps: dict[Privacy, int] = {}
    for one in schedules:
        steps[one.mechanism] = steps.get(one.mechanism, 0) + one.steps
    return tuple(
        Schedule(mechanism=mechanism, steps=count)
        for mechanism, count in sorted(steps.items(), key=lambda pair: repr(pair[0]))
    )


def rdp(schedules: Iterable[Schedule], order: float) -> float:
    """Renyi DP of the whole schedule at `order`, one of ORDERS (Mironov, Talwar, Zhang 2019)."""
    index = ORDERS.index(order)
    return float(sum(one.steps * _rdp_of_step(one.mechanism, ORDERS)[index] for one in schedules))


def epsilon_at(order: float, total_rdp: float, delta: float) -> float:
    """(epsilon, delta) of RDP at one order (Balle et al. 2020, theorem 21)."""
    epsilon = total_rdp - np.log(delta * order) / (order - 1) + np.log1p(-1 / order)
    # NaN must not pass for a bound: max(0.0, nan) is 0.0 in Python.
    return math.inf if math.isnan(epsilon) else max(0.0, float(epsilon))


def check_reachable(epsilon: float, delta: float) -> None:
    """Raise PrivacyError on an epsilon that none of ORDERS certifies, whatever the noise."""
    least = min(epsilon_at(order, 0.0, delta) for order in ORDERS)
    if epsilon <= least:
        raise PrivacyError(
            f"no noise reaches epsilon {epsilon:g} at delta {delta:g}, where the accountant "
            f"certifies nothing below {math.ceil(least * 1e4) / 1e4:g}: ask for a larger epsilon"
        )


def filter_budget(order: float, epsilon: float, delta: float) -> float:
    """RDP at `order` that (epsilon, delta) leaves room for."""
    return float(epsilon + np.log(delta * order) / (order - 1) - np.log1p(-1 / order))


def is_dear(schedules: Sequence[Schedule]) -> bool:
    """Whether PLD and PRV would take more memory and time than their answer is worth."""
    if len(schedules) > MAX_KINDS:
        return True
    return bool(schedules) and not best_order(schedules, LOSS_DELTA)[1] <= MAX_LOSS


def epsilon_rdp(schedules: Sequence[Schedule], delta: float) -> float:
    """Opacus' RDP accountant over the whole schedule: best of ORDERS, upper bound."""
    from opacus.accountants import RDPAccountant

    if not schedules:
        return 0.0
    if (history := _history(schedules)) is None:
        return best_order(schedules, delta)[1]
    accountant = RDPAccountant()
    accountant.history = history
    with _order_warnings_off():
        return max(0.0, float(accountant.get_epsilon(delta, alphas=list(ORDERS))))


def epsilon_prv(schedules: Sequence[Schedule], delta: float) -> float:
    """Opacus' PRV accountant: upper bound, at most about 0.002 above the truth.

    For other mechanisms than DP-SGD, which it does not know, PLD's bound.
    """
    if not schedules:
        return 0.0
    if (history := _history(schedules)) is None:
        return epsilon_pld(schedules, delta)
    return _prv(tuple(history), delta)


def epsilon_pld(schedules: Sequence[Schedule], delta: float) -> float:
    """Google's dp-accounting, privacy loss distributions: pessimistic estimate."""
    return _pld(tuple(_events(schedules)), delta) if schedules else 0.0


def noise_for(mechanism: DPSGD, epsilon: float, steps: int) -> float:
    """The smallest noise multiplier (to 0.01 %) with which `steps` steps meet epsilon by RDP.

    At the mechanism's delta. Never below MIN_NOISE. Raises PrivacyError if no noise below
    MAX_NOISE meets it.
    """
    check_reachable(epsilon, mechanism.delta)

    def fitting(noise: float, orders: Sequence[float]) -> list[float]:
        """Those of `orders` at which this noise meets epsilon."""
        totals = steps * _rdp_of_step(mechanism.with_noise(noise), tuple(orders))
        # A ledger compares to the last bit, and adds in another order.
        most = epsilon * (1 - 1e-9)
        return [
            order
            for order, total in zip(orders, totals, strict=True)
            if epsilon_at(order, total, mechanism.delta) <= most
        ]

    if fitting(MIN_NOISE, ORDERS):
        return MIN_NOISE
    low, high = MIN_NOISE, 1.0
    while not (orders := fitting(high, ORDERS)):
        low, high = high, high * 2
        if high > MAX_NOISE:
            raise PrivacyError(
                f"no noise reaches epsilon {epsilon:g} in {steps} steps: ask for fewer steps"
            )
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        if found := fitting(middle, orders):
            high, orders = middle, found  # the others take more noise than this
        else:
            low = middle
    return high


def best_order(schedules: Sequence[Schedule], delta: float) -> tuple[float, float]:
    """(order, epsilon): the RDP order at which this schedule costs least, and what it costs."""
    totals = np.zeros(len(ORDERS))
    for one in merged(schedules):
        totals += one.steps * _rdp_of_step(one.mechanism, ORDERS)
    epsilons = [epsilon_at(a, t, delta) for a, t in zip(ORDERS, totals, strict=True)]
    index = int(np.argmin(epsilons))
    return ORDERS[index], epsilons[index]


# Both take a second or more, and the PCs of a run mostly share their schedule.


@lru_cache(maxsize=256)
def _prv(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    with _order_warnings_off(), np.errstate(divide="ignore"):  # it takes log(1 - q), also of q = 1
        return float(accountant.get_epsilon(delta, eps_error=0.001))


@lru_cache(maxsize=256)
def _pld(events: tuple[tuple[Any, int], ...], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for event, steps in events:
        _compose(accountant, event, steps)
    return float(accountant.get_epsilon(delta))


def _compose(accountant: Any, event: Any, steps: int) -> None:
    """Count `event`, `steps` times. Raises PrivacyError where dp-accounting cannot."""
    from dp_accounting import UnsupportedEventError

    try:
        accountant.compose(event, steps)
    except (UnsupportedEventError, TypeError):
        raise PrivacyError(
            f"the mechanism's `event` gives {type(event).__name__}, which dp-accounting's "
            f"{type(accountant).__name__} cannot count: give an event that it knows"
        ) from None


@contextmanager
def _order_warnings_off() -> Iterator[None]:
    """Opacus warns where its best order is the last one: the bound holds all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def _history(schedules: Sequence[Schedule]) -> list[tuple[float, float, int]] | None:
    """As Opacus keeps it; None where a mechanism is not the Poisson-sampled Gaussian."""
    steps: dict[tuple[float, float], int] = {}
    for one in schedules:
        key = _sampled_gaussian(one.mechanism)
        if key is None:
            return None
        steps[key] = steps.get(key, 0) + one.steps
    return [(noise, rate, count) for (noise, rate), count in sorted(steps.items())]


def gaussian_multiplier(mechanism: Privacy) -> float | None:
    """The noise multiplier of a Gaussian step, sampled or not; None where a step is another one.

    Raises PrivacyError where there is no privacy at all.
    """
    found = _sampled_gaussian(_private(mechanism))
    return None if found is None else found[0]


def _sampled_gaussian(mechanism: Privacy) -> tuple[float, float] | None:
    """(noise multiplier, sampling rate) of DP-SGD's step, None where a step is another one."""
    if isinstance(mechanism, DPSGD) and type(mechanism).event is DPSGD.event:
        return mechanism.multiplier, mechanism.sampling_rate if mechanism.unit == "record" else 1.0
    return None


def _events(schedules: Sequence[Schedule]) -> list[tuple[Any, int]]:
    """Steps by what they are to an accountant: a clip bound, say, makes no difference to it."""
    steps: dict[Any, int] = {}
    for one in schedules:
        event = _private(one.mechanism).event()
        steps[event] = steps.get(event, 0) + one.steps
    return sorted(steps.items(), key=lambda pair: repr(pair[0]))


def _private(mechanism: Privacy) -> DPSGD:
    if not isinstance(mechanism, DPSGD):
        raise PrivacyError(f'"{mechanism.kind}" has no privacy to account for')
    return mechanism


@lru_cache(maxsize=1024)
def _rdp_of_step(mechanism: Privacy, orders: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """RDP of one step at each of `orders`."""
    gaussian = _sampled_gaussian(_private(mechanism))
    if gaussian is not None:
        return _rdp_of_gaussian(*gaussian, orders)
    from dp_accounting.rdp import RdpAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)  # it reports each order that it leaves out
    accountant = RdpAccountant(orders=list(orders))
    _compose(accountant, _private(mechanism).event(), 1)
    values: npt.NDArray[np.float64] = np.array(accountant._rdp)  # noqa: SLF001 - of each order
    return values


@lru_cache(maxsize=1024)
def _rdp_of_gaussian(
    noise_multiplier: float, sampling_rate: float, orders: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    from opacus.accountants.analysis import rdp as analysis

    values: npt.NDArray[np.float64] = analysis.compute_rdp(
        q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(orders)
    )
    return np.maximum(values, 0.0)  # differences of numbers near 1 can be -1e-13
