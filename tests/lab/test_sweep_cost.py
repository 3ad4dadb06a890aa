"""What choosing the best of many private runs costs: against the formulas, spelt out again."""

from __future__ import annotations

import math

import pytest

from fedaipc.errors import PrivacyError
from fedaipc.lab.sweep.cost import composed_epsilon, selected_epsilon
from fedaipc.privacy.accountant import ORDERS, best_order, epsilon_rdp, rdp
from tests.support.schedules import dp_sgd

RUN = dp_sgd(noise_multiplier=4.0, sampling_rate=0.1, steps=100)
DEARER = dp_sgd(noise_multiplier=2.0, sampling_rate=0.1, steps=100)
DELTA = 1e-6


def test_all_runs_together_compose_as_mechanisms() -> None:
    assert composed_epsilon([RUN] * 5, DELTA) == epsilon_rdp([RUN] * 5, DELTA)
    assert composed_epsilon([RUN, DEARER], DELTA) > composed_epsilon([DEARER], DELTA)


def logarithmic(gamma: float) -> tuple[float, float]:
    """Mean and total weight of P(k) = (1 - gamma)^k / (k ln(1/gamma)), k = 1, 2, ..."""
    weights = [(1 - gamma) ** k / (k * math.log(1 / gamma)) for k in range(1, 20_000)]
    return sum(k * w for k, w in enumerate(weights, start=1)), sum(weights)


@pytest.mark.parametrize("mean", [1.5, 8.0, 50.0])
def test_one_shown_model_costs_what_theorem_2_says(mean: float) -> None:
    # Find the distribution by its own sum, not by the closed form of its mean.
    low, high = 1e-6, 1 - 1e-9
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if logarithmic(middle)[0] > mean else (low, middle)
    gamma = math.sqrt(low * high)
    assert logarithmic(gamma) == pytest.approx((mean, 1.0), rel=1e-3)
    best = math.inf
    for order in ORDERS:
        for other in ORDERS:
            cost = rdp([RUN], order) + (1 - 1 / other) * rdp([RUN], other)
            cost += math.log(1 / gamma) / other + math.log(mean) / (order - 1)
            epsilon = cost + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)
            best = min(best, epsilon)
    assert selected_epsilon([RUN], DELTA, mean) == pytest.approx(best, rel=1e-3)


def test_one_run_alone_costs_hardly_more_than_itself() -> None:
    alone = best_order([RUN], DELTA)[1]
    found = selected_epsilon([RUN], DELTA, 1.0)
    # The smallest order at hand stands for the limit of 1, where the extra term vanishes.
    assert alone <= found <= alone * 1.05


def test_the_dearest_run_counts_and_more_runs_cost_more() -> None:
    assert selected_epsilon([RUN, DEARER], DELTA, 9) == selected_epsilon([DEARER], DELTA, 9)
    costs = [selected_epsilon([RUN], DELTA, mean) for mean in (1, 2, 10, 100, 1000)]
    assert costs == sorted(costs)
    # What the theorem is for: a thousand runs do not cost a thousand times.
    assert costs[-1] < 4 * costs[0] < composed_epsilon([RUN] * 1000, DELTA)


def test_less_than_one_trial_is_none() -> None:
    with pytest.raises(PrivacyError, match="one trial"):
        selected_epsilon([RUN], DELTA, 0.5)
