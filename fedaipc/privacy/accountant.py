"""Epsilon of a schedule, by three independent accountants.

A schedule is a list of `Mechanism`: Gaussian noise of `noise_multiplier` times the clip bound on
the sum over a Poisson sample of rate `sampling_rate`, repeated `steps` times. Neighbours differ by
one record added or removed.

The lifetime budget is an RDP filter of one fixed order (Feldman and Zrnic, "Individual privacy
accounting via a Renyi filter", NeurIPS 2021, theorem 4.3): it stays valid where later parameters
depend on earlier results, as they do when an owner joins run after run. PRV (Gopi et al. 2021) and
PLD (Koskela et al. 2020; dp-accounting) are tighter and hold for a schedule declared in advance.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.config import LOSS_DELTA, MAX_KINDS, MAX_LOSS, MAX_NOISE, MIN_NOISE
from fedaipc.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

# Opacus' own orders, continued upwards so that small budgets find theirs too.
ORDERS = (
    *(1 + x / 10 for x in range(1, 100)),
    *(float(x) for x in range(11, 64)),
    *(80.0, 128.0, 256.0, 512.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """`steps` Poisson-subsampled Gaussian steps. All three numbers are public."""

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        # Beyond, the accountants lose their digits.
        if not MIN_NOISE <= self.noise_multiplier <= MAX_NOISE:
            raise PrivacyError(f"noise_multiplier must lie in [{MIN_NOISE}, {MAX_NOISE:g}]")
        if not 0 < self.sampling_rate <= 1:
            raise PrivacyError("sampling_rate must lie in (0, 1]")
        if self.steps < 1:
            raise PrivacyError("steps must be at least 1")


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The same schedule with equal mechanisms counted together (order does not matter)."""
    steps: dict[tuple[float, float], int] = {}
    for m in mechanisms:
        key = (m.noise_multiplier, m.sampling_rate)
        steps[key] = steps.get(key, 0) + m.steps
    return tuple(
        Mechanism(noise_multiplier=noise, sampling_rate=rate, steps=count)
        for (noise, rate), count in sorted(steps.items())
    )


def rdp(mechanisms: Iterable[Mechanism], order: float) -> float:
    """Renyi DP of the whole schedule at `order`, one of ORDERS (Mironov, Talwar, Zhang 2019)."""
    index = ORDERS.index(order)
    return float(
        sum(m.steps * _rdp_of_step(m.noise_multiplier, m.sampling_rate)[index] for m in mechanisms)
    )


def epsilon_at(order: float, total_rdp: float, delta: float) -> float:
    """(epsilon, delta) of RDP at one order (Balle et al. 2020, theorem 21)."""
    epsilon = total_rdp - np.log(delta * order) / (order - 1) + np.log1p(-1 / order)
    return max(0.0, float(epsilon))


def filter_budget(order: float, epsilon: float, delta: float) -> float:
    """RDP at `order` that (epsilon, delta) leaves room for."""
    return float(epsilon + np.log(delta * order) / (order - 1) - np.log1p(-1 / order))


def is_dear(mechanisms: Sequence[Mechanism]) -> bool:
    """Whether PLD and PRV would take more memory and time than their answer is worth."""
    if len(mechanisms) > MAX_KINDS:
        return True
    return bool(mechanisms) and not best_order(mechanisms, LOSS_DELTA)[1] <= MAX_LOSS


def epsilon_rdp(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Opacus' RDP accountant over the whole schedule: best of ORDERS, upper bound."""
    from opacus.accountants import RDPAccountant

    if not mechanisms:
        return 0.0
    accountant = RDPAccountant()
    accountant.history = _history(mechanisms)
    with _order_warnings_off():
        return max(0.0, float(accountant.get_epsilon(delta, alphas=list(ORDERS))))


def epsilon_prv(mechanisms: Sequence[Mechanism], delta: float, eps_error: float = 0.001) -> float:
    """Opacus' PRV accountant: upper bound, at most about twice `eps_error` above the truth."""
    from opacus.accountants import PRVAccountant

    if not mechanisms:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = _history(mechanisms)
    with _order_warnings_off(), np.errstate(divide="ignore"):  # it takes log(1 - q), also of q = 1
        return float(accountant.get_epsilon(delta, eps_error=eps_error))


def epsilon_pld(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Google's dp-accounting, privacy loss distributions: pessimistic estimate."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    if not mechanisms:
        return 0.0
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for m in merged(mechanisms):
        event = dp_event.GaussianDpEvent(m.noise_multiplier)
        if m.sampling_rate < 1:
            event = dp_event.PoissonSampledDpEvent(m.sampling_rate, event)
        accountant.compose(event, m.steps)
    return float(accountant.get_epsilon(delta))


def noise_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier (to 0.01 %) whose `steps` steps meet (epsilon, delta) by RDP.

    Never below MIN_NOISE. Raises PrivacyError if no noise below MAX_NOISE meets it.
    """

    def fits(noise: float) -> bool:
        mechanism = Mechanism(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
        # A ledger compares to the last bit, and adds in another order.
        return best_order([mechanism], delta)[1] <= epsilon * (1 - 1e-9)

    if fits(MIN_NOISE):
        return MIN_NOISE
    low, high = MIN_NOISE, 1.0
    while not fits(high):
        low, high = high, high * 2
        if high > MAX_NOISE:
            raise PrivacyError(
                f"no noise reaches epsilon {epsilon:g} in {steps} steps: ask for fewer steps"
            )
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def best_order(mechanisms: Sequence[Mechanism], delta: float) -> tuple[float, float]:
    """(order, epsilon): the RDP order at which this schedule costs least, and what it costs."""
    totals = np.zeros(len(ORDERS))
    for m in merged(mechanisms):
        totals += m.steps * _rdp_of_step(m.noise_multiplier, m.sampling_rate)
    with np.errstate(invalid="ignore"):
        epsilons = [epsilon_at(a, t, delta) for a, t in zip(ORDERS, totals, strict=True)]
    index = int(np.nanargmin(epsilons))
    return ORDERS[index], epsilons[index]


@contextmanager
def _order_warnings_off() -> Iterator[None]:
    """Opacus warns where its best order is the last one: the bound holds all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def _history(mechanisms: Sequence[Mechanism]) -> list[tuple[float, float, int]]:
    return [(m.noise_multiplier, m.sampling_rate, m.steps) for m in merged(mechanisms)]


@lru_cache(maxsize=1024)
def _rdp_of_step(noise_multiplier: float, sampling_rate: float) -> npt.NDArray[np.float64]:
    """RDP of one step at each of ORDERS."""
    from opacus.accountants.analysis import rdp as analysis

    values: npt.NDArray[np.float64] = analysis.compute_rdp(
        q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS)
    )
    return np.maximum(values, 0.0)  # differences of numbers near 1 can come out as -1e-13
