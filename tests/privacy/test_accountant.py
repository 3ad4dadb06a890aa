"""Our accounting against Opacus, dp-accounting, closed forms and published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedaipc.config import DPSGD, MAX_NOISE, MIN_NOISE, Schedule
from fedaipc.errors import ConfigError, PrivacyError
from fedaipc.privacy.accountant import (
    ORDERS,
    best_order,
    epsilon_at,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    filter_budget,
    merged,
    noise_for,
    rdp,
)
from tests.support.schedules import dp_sgd, mechanism_of

DELTA = 1e-5


def mechanism(noise: float, rate: float, steps: int) -> Schedule:
    return dp_sgd(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def least(epsilon: float, delta: float, rate: float, steps: int) -> float:
    return noise_for(DPSGD(delta=delta, sampling_rate=rate), epsilon, steps)


SCHEDULES = [
    [mechanism(noise, rate, steps)]
    for noise in (0.6, 1.1, 4.0, 25.0)
    for rate, steps in ((0.001, 1), (0.01, 2000), (0.1, 40), (0.5, 7), (1.0, 20))
] + [
    [mechanism(1.0, 0.1, 10), mechanism(2.0, 0.05, 30), mechanism(0.7, 0.01, 5)],
    [mechanism(3.0, 0.2, 1)] * 25,
]


def by_dp_accounting(schedule: list[Schedule], orders: tuple[float, ...]) -> RdpAccountant:
    accountant = RdpAccountant(orders=list(orders))
    for m in schedule:
        event = dp_event.PoissonSampledDpEvent(
            m.mechanism.sampling_rate, dp_event.GaussianDpEvent(mechanism_of(m).multiplier)
        )
        accountant.compose(event, m.steps)
    return accountant


@pytest.mark.parametrize("schedule", SCHEDULES, ids=range(len(SCHEDULES)))
@pytest.mark.filterwarnings("ignore:Optimal order is the")
def test_rdp_equals_opacus_and_dp_accounting(schedule: list[Schedule]) -> None:
    theirs = RDPAccountant()
    for m in schedule:
        for _ in range(m.steps):
            own = mechanism_of(m)
            theirs.step(noise_multiplier=own.multiplier, sample_rate=own.sampling_rate)
    ours = epsilon_rdp(schedule, DELTA)
    assert ours == pytest.approx(theirs.get_epsilon(DELTA, alphas=list(ORDERS)), rel=1e-9)
    assert ours == pytest.approx(best_order(schedule, DELTA)[1], rel=1e-9)
    # dp-accounting bounds broken orders from above (see the integral below), whole ones are exact.
    google = by_dp_accounting(schedule, ORDERS).get_epsilon(DELTA)
    assert ours * (1 - 1e-9) <= google <= ours * 1.005


@pytest.mark.parametrize("schedule", SCHEDULES, ids=range(len(SCHEDULES)))
@pytest.mark.parametrize("order", [2.0, 4.0, 17.0])
def test_rdp_at_one_order_equals_a_second_implementation(
    schedule: list[Schedule], order: float
) -> None:
    total = by_dp_accounting(schedule, (order,))._rdp[0]
    assert rdp(schedule, order) == pytest.approx(total, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("order", [2, 3, 8])
def test_rdp_at_a_whole_order_equals_the_binomial_sum(order: int) -> None:
    # Mironov, Talwar, Zhang 2019, section 3.3, term by term.
    noise, rate = 1.3, 0.2
    total = sum(
        math.comb(order, k) * (1 - rate) ** (order - k) * rate**k
        * math.exp((k * k - k) / (2 * noise**2))
        for k in range(order + 1)
    )  # fmt: skip
    ours = rdp([mechanism(noise, rate, 3)], float(order))
    assert ours == pytest.approx(3 * math.log(total) / (order - 1), rel=1e-9)


@pytest.mark.parametrize("order", [1.1, 2.5, 6.7])
@pytest.mark.parametrize(("noise", "rate"), [(1.1, 0.5), (0.6, 0.01), (4.0, 0.1)])
def test_rdp_at_a_broken_order_equals_the_integral(order: float, noise: float, rate: float) -> None:
    # The trapezoidal rule over the whole line: its error falls exponentially with the step.
    x = np.linspace(-40 * noise, 40 * noise + order, 400_001)
    ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * x - 1) / (2 * noise**2))
    moment = np.trapezoid(np.exp(order * ratio + norm.logpdf(x, 0, noise)), x)
    ours = rdp([mechanism(noise, rate, 1)], order)
    assert ours == pytest.approx(np.log(moment) / (order - 1), rel=1e-7)


def exact_gaussian_epsilon(mu: float) -> float:
    """Balle and Wang 2018, theorem 8: the Gaussian mechanism of sensitivity/deviation `mu`."""

    def excess(epsilon: float) -> float:
        return (
            norm.cdf(mu / 2 - epsilon / mu)
            - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
            - DELTA
        )

    return brentq(excess, 0, 200)


@pytest.mark.parametrize(("noise", "steps"), [(10.0, 20), (2.0, 1), (5.0, 30)])
def test_prv_and_pld_meet_the_closed_form_without_sampling(noise: float, steps: int) -> None:
    schedule = [mechanism(noise, 1.0, steps)]
    exact = exact_gaussian_epsilon(math.sqrt(steps) / noise)
    assert exact <= epsilon_pld(schedule, DELTA) <= exact * 1.001 + 1e-4
    assert exact <= epsilon_prv(schedule, DELTA) <= exact + 0.0025
    assert exact < epsilon_rdp(schedule, DELTA) < 1.2 * exact


@pytest.mark.parametrize(
    "schedule",
    [
        [mechanism(1.5, 0.1, 40)],
        [mechanism(3.0, 0.1, 40)],
        [mechanism(0.8, 0.004, 500)],
        [mechanism(4.0, 0.5, 30)],
        [mechanism(1.0, 0.1, 10), mechanism(2.0, 0.05, 30)],
    ],
    ids=str,
)
def test_prv_and_pld_agree_and_rdp_does_not_lie_below(schedule: list[Schedule]) -> None:
    prv, pld = epsilon_prv(schedule, DELTA), epsilon_pld(schedule, DELTA)
    assert abs(prv - pld) <= max(0.01 * pld, 0.002)
    assert epsilon_rdp(schedule, DELTA) >= max(prv, pld) - 0.002


@pytest.mark.parametrize(
    ("batch", "records", "noise", "steps", "published"),
    [
        # Abadi et al., CCS 2016, section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta 1e-5.
        (1, 100, 4.0, 10_000, 1.26),
        # TensorFlow Privacy, tutorials/README.md, MNIST: batch 256 of 60,000, delta 1e-5,
        # 15 epochs at 1.3, 60 at 1.1, 45 at 0.7.
        (256, 60_000, 1.3, 3_516, 1.19),
        (256, 60_000, 1.1, 14_063, 3.01),
        (256, 60_000, 0.7, 10_547, 7.10),
    ],
)
def test_published_values(
    batch: int, records: int, noise: float, steps: int, published: float
) -> None:
    schedule = [mechanism(noise, batch / records, steps)]
    # These were converted by Mironov 2017, proposition 3; ours (Balle et al. 2020) is tighter.
    old = min(rdp(schedule, a) + math.log(1 / DELTA) / (a - 1) for a in ORDERS)
    assert round(old, 2) == published
    assert 0.7 * published < epsilon_rdp(schedule, DELTA) < published


@pytest.mark.parametrize(
    ("order", "published"),
    [(1.5, 6.5007e-04), (2.5, 1.0854e-03), (5.0, 2.1808e-03), (50.0, 2.3846e-02)],
)
def test_published_renyi_divergences(order: float, published: float) -> None:
    """dp-accounting, rdp_privacy_accountant_test.py: q = 0.01, sigma 2.5, 50 steps."""
    assert rdp([mechanism(2.5, 0.01, 50)], order) == pytest.approx(published, rel=1e-4)


def test_published_epsilons_of_opacus() -> None:
    """opacus/tests/accountants_test.py: sigma 1.5, q = 0.04, 90 epochs, delta 1e-5."""
    assert epsilon_rdp([mechanism(1.5, 0.04, 2250)], DELTA) == pytest.approx(7.32911, rel=1e-4)
    found = epsilon_prv([mechanism(1.5, 0.04, 2249)], DELTA)
    assert found == pytest.approx(6.777396, rel=2e-3)  # theirs with an error ten times as large


@pytest.mark.parametrize(("steps", "published"), [(2250, 1.416), (2000, 1.3562)])
def test_published_noise_multipliers_of_opacus(steps: int, published: float) -> None:
    """opacus/tests/accountants_test.py: epsilon 8 to within 0.01, delta 1e-5, q = 0.04."""
    assert least(8.0, DELTA, 0.04, steps) == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"),
    [(8.0, 0.1, 40), (1.0, 0.05, 200), (0.3, 1.0, 5), (20.0, 0.01, 1), (0.02, 0.3, 9)],
)
def test_noise_for_meets_its_target_and_hardly_less_does_not(
    epsilon: float, rate: float, steps: int
) -> None:
    noise = least(epsilon, DELTA, rate, steps)
    assert epsilon_rdp([mechanism(noise, rate, steps)], DELTA) <= epsilon
    assert epsilon_rdp([mechanism(0.9998 * noise, rate, steps)], DELTA) > epsilon


def test_nan_is_never_a_bound() -> None:
    assert epsilon_at(2.0, math.nan, DELTA) == math.inf
    assert epsilon_at(2.0, math.inf, DELTA) == math.inf


def test_a_target_out_of_reach_is_refused_in_one_line() -> None:
    with pytest.raises(PrivacyError, match=r"^no noise reaches epsilon [^\n]*$"):
        least(1e-9, 1e-12, 1.0, 10**9)


def test_a_target_below_what_any_order_certifies_is_told_from_too_many_steps() -> None:
    with pytest.raises(PrivacyError, match=r"at delta 1e-05, where .* nothing below 0\.0084: ask"):
        least(0.008, 1e-5, 1.0, 1)
    assert least(0.0084, 1e-5, 1.0, 1) < MAX_NOISE
    with pytest.raises(PrivacyError, match="in 1000000000 steps: ask for fewer steps"):
        least(0.0084, 1e-5, 1.0, 10**9)


def test_order_and_grouping_of_a_schedule_do_not_matter() -> None:
    mixed = [mechanism(1.0, 0.1, 3), mechanism(2.0, 0.2, 4), mechanism(1.0, 0.1, 5)]
    assert merged(mixed) == (mechanism(1.0, 0.1, 8), mechanism(2.0, 0.2, 4))
    assert merged(mixed[::-1]) == merged(mixed)
    for epsilon in (epsilon_rdp, epsilon_pld):
        assert epsilon(mixed[::-1], DELTA) == epsilon(mixed, DELTA)


def test_nothing_costs_nothing_and_more_costs_more() -> None:
    assert epsilon_rdp([], DELTA) == epsilon_prv([], DELTA) == epsilon_pld([], DELTA) == 0
    base = epsilon_rdp([mechanism(2.0, 0.1, 10)], DELTA)
    for worse in (mechanism(1.9, 0.1, 10), mechanism(2.0, 0.11, 10), mechanism(2.0, 0.1, 11)):
        assert epsilon_rdp([worse], DELTA) > base


@pytest.mark.parametrize("order", [1.1, 4.0, 63.0])
def test_the_filter_is_the_conversion_turned_round(order: float) -> None:
    room = filter_budget(order, 50.0, DELTA)
    assert epsilon_at(order, room, DELTA) == pytest.approx(50.0, rel=1e-12)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(0.0, 0.1, 1), (0.09, 0.1, 1), (-1.0, 0.1, 1), (math.nan, 0.1, 1), (math.inf, 0.1, 1),
     (1e-200, 0.1, 1), (1e200, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, math.nan, 1),
     (1.0, 0.1, 0)],
)  # fmt: skip
def test_what_is_no_mechanism_is_refused(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(ConfigError):
        mechanism(noise, rate, steps)


@pytest.mark.parametrize("noise", [MIN_NOISE, 0.3, 3.0, MAX_NOISE])
@pytest.mark.parametrize("rate", [1e-300, 1e-6, 0.3, 1.0])
def test_every_admitted_step_has_a_finite_cost_that_is_not_negative(
    noise: float, rate: float
) -> None:
    costs = np.array([rdp([mechanism(noise, rate, 1)], order) for order in ORDERS])
    assert np.isfinite(costs).all()
    assert (costs >= 0).all()
