"""Both privacy filters: the Gaussian one against closed forms, other libraries and an adversary."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
from dp_accounting import dp_event, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedaipc.config import GAUSSIAN, FilterKind, NoPrivacy, Schedule
from fedaipc.errors import BudgetExhausted, LedgerError, PrivacyError
from fedaipc.privacy.accountant import ORDERS, epsilon_pld
from fedaipc.privacy.filters import (
    GAUSSIAN_FILTER,
    RENYI_FILTERS,
    filter_of,
    gaussian_budget,
    gaussian_delta,
    gaussian_epsilon,
    is_filter,
)
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.secagg.keys import SigningKey
from tests.support.examples import load
from tests.support.schedules import changed, dp_sgd, mechanism_of

DELTA = 1e-5
DELTAS = st.floats(-15, -2).map(lambda x: 10**x)
EPSILONS = st.floats(-3, 4).map(lambda x: 10**x)
TOTALS = st.floats(-10, 5).map(lambda x: 10**x)  # mu^2
NOISES = st.floats(-0.9, 4).map(lambda x: 10**x)
STEPS = st.builds(
    dp_sgd,
    NOISES,
    st.sampled_from([1e-4, 0.01, 0.3, 0.9, 1.0]),
    st.integers(1, 1000),
)


def exact_delta(mu: float, epsilon: float) -> Any:
    """With 60 digits."""
    with mpmath.workdps(60):
        away, half = mpmath.mpf(epsilon) / mpmath.mpf(mu), mpmath.mpf(mu) / 2
        return mpmath.ncdf(half - away) - mpmath.exp(epsilon) * mpmath.ncdf(-half - away)


# The curve


@settings(max_examples=300, deadline=None)
@given(TOTALS, EPSILONS)
def test_delta_is_rounded_up_and_by_little(total: float, epsilon: float) -> None:
    mu = math.sqrt(total)
    true, ours = exact_delta(mu, epsilon), gaussian_delta(mu, epsilon)
    assume(true > 1e-20)
    assert true <= ours
    assert ours <= float(true) * (1 + 1e-6)


@settings(max_examples=300, deadline=None)
@given(TOTALS, DELTAS)
def test_epsilon_is_the_smallest_and_rounded_up(total: float, delta: float) -> None:
    epsilon = gaussian_epsilon(total, delta)
    assert exact_delta(math.sqrt(total), epsilon) <= delta
    if epsilon > 0:
        assert exact_delta(math.sqrt(total), epsilon * (1 - 1e-5) - 1e-12) > delta


@settings(max_examples=100, deadline=None)
@given(EPSILONS, DELTAS)
def test_the_budget_is_the_largest_and_rounded_down(epsilon: float, delta: float) -> None:
    budget = gaussian_budget(epsilon, delta)
    assert epsilon * (1 - 1e-8) <= gaussian_epsilon(budget, delta) <= epsilon
    assert exact_delta(math.sqrt(budget), epsilon) <= delta
    assert gaussian_epsilon(budget * (1 + 1e-6), delta) > epsilon * (1 - 1e-8)


@settings(max_examples=100, deadline=None)
@given(EPSILONS, DELTAS, st.floats(1.001, 10))
def test_more_gives_more(epsilon: float, delta: float, factor: float) -> None:
    budget = gaussian_budget(epsilon, delta)
    assert budget < gaussian_budget(epsilon * factor, delta)
    assert budget <= gaussian_budget(epsilon, min(0.5, delta * factor))
    assert gaussian_epsilon(budget, delta) < gaussian_epsilon(budget * factor, delta)
    assert gaussian_epsilon(budget, delta * factor) < gaussian_epsilon(budget, delta)


@settings(max_examples=200, deadline=None)
@given(TOTALS, DELTAS)
def test_it_agrees_with_dp_accounting(total: float, delta: float) -> None:
    with np.errstate(divide="ignore"):  # it takes the logarithm of a delta of 0
        theirs = get_epsilon_gaussian(1 / math.sqrt(total), delta)
    assert gaussian_epsilon(total, delta) == pytest.approx(theirs, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("mu", [0.05, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-3])
def test_it_agrees_with_the_pld_of_one_gaussian(mu: float, delta: float) -> None:
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(dp_event.GaussianDpEvent(1 / mu))
    ours = gaussian_epsilon(mu * mu, delta)
    assert ours - 1e-9 <= accountant.get_epsilon(delta) <= ours + 2e-4


@pytest.mark.parametrize(
    ("mu", "epsilon", "delta"),
    [
        # By mpmath with 50 digits.
        (1.0, 0.0, 0.382924922548),
        (1.0, 1.0, 0.126936737507),
        (0.5, 2.0, 9.43916863495e-6),
        (3.0, 20.0, 4.22475461677e-8),
    ],
)
def test_values_of_the_curve(mu: float, epsilon: float, delta: float) -> None:
    assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-10)


def test_ends_of_the_range() -> None:
    assert gaussian_epsilon(0.0, DELTA) == 0.0
    assert gaussian_epsilon(1e-12, DELTA) == 0.0  # delta alone covers it
    for none in (math.inf, math.nan, -1.0, 1e200):
        assert gaussian_epsilon(none, DELTA) == math.inf
    assert math.isfinite(gaussian_epsilon(1e16, 1e-15))
    assert gaussian_budget(1e6, 1e-9) > 1e6
    assert 0 < gaussian_budget(1e-300, DELTA) < 1e-9


# Costs


@settings(max_examples=15, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=4))
def test_the_charge_is_never_below_pld(life: list[Schedule]) -> None:
    """Sampled, several noises, any mixture: PLD is of the life as if it was fixed in advance."""
    charged = GAUSSIAN_FILTER.epsilon(GAUSSIAN_FILTER.cost(life), DELTA)
    assume(charged < 20)  # PLD takes long
    # PLD rounds up, too: by half a step of its grid for each kind of mechanism.
    assert charged >= epsilon_pld(life, DELTA) * (1 - 1e-9) - 1e-3
    whole = [changed(one, sampling_rate=1.0) for one in life]
    assert GAUSSIAN_FILTER.cost(whole) == GAUSSIAN_FILTER.cost(life)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 200), st.integers(1, 100)), min_size=1, max_size=4))
def test_of_steps_on_all_records_it_is_pld(life: list[tuple[float, int]]) -> None:
    steps = [dp_sgd(noise, 1.0, count) for noise, count in life]
    charged = GAUSSIAN_FILTER.epsilon(GAUSSIAN_FILTER.cost(steps), DELTA)
    assume(charged < 20)
    assert charged == pytest.approx(epsilon_pld(steps, DELTA), abs=1e-3)
    assert charged <= min(one.epsilon(one.cost(steps), DELTA) for one in RENYI_FILTERS)


def test_a_client_or_a_share_of_noise_costs_what_a_step_on_all_records_does() -> None:
    plain = GAUSSIAN_FILTER.cost([dp_sgd(2.0, 1.0, 3)])
    assert plain == pytest.approx(3 / 4, rel=1e-12)
    assert plain >= 3 / 4
    for other in (
        {"unit": "client", "sampling_rate": 0.1},
        {"noise": "distributed", "honest": 12},  # of the sum, which carries the noise once
        {"sampling_rate": 0.001},
        {"clip_norm": 0.1},
    ):
        assert GAUSSIAN_FILTER.cost([changed(dp_sgd(2.0, 1.0, 3), **other)]) == plain


def hockey_stick(p: Any, q: Any, factor: float) -> float:
    return float(np.maximum(p - factor * q, 0.0).sum())


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_a_sampled_step_shows_no_more_than_the_step_itself(rate: float, noise: float) -> None:
    """By brute force, in both directions, and at factors below 1: the whole trade-off curve.

    Worth a test by itself: two other records are drawn by coins of their own, and one of them
    points the other way.
    """
    edges = np.arange(-6 - 12 * noise, 6 + 12 * noise, 0.01)

    def law(records: tuple[float, ...]) -> Any:
        total: Any = np.zeros(len(edges) - 1)
        for drawn in itertools.product([False, True], repeat=len(records)):
            odds = math.prod(rate if one else 1 - rate for one in drawn)
            mean = sum(x for x, there in zip(records, drawn, strict=True) if there)
            total += odds * np.diff(norm.cdf(edges, mean, noise))
        return total

    others = (1.0, -0.7)
    with_it, without = law((*others, 1.0)), law(others)
    for epsilon in np.linspace(-3, 6, 31):
        factor = math.exp(epsilon)
        allowed = norm.cdf(-epsilon * noise + 1 / (2 * noise)) - factor * norm.cdf(
            -epsilon * noise - 1 / (2 * noise)
        )
        for p, q in ((with_it, without), (without, with_it)):
            assert hockey_stick(p, q, factor) <= allowed + 1e-12


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_lives_of_two_sampled_steps_stay_below_two_steps(noise: float) -> None:
    """Composed by brute force, not by an accountant: the grid of both results."""
    edges = np.arange(-9 * noise, 1 + 9 * noise, 0.05 * noise)
    one, rate = np.diff(norm.cdf(edges, 0, noise)), 0.3
    other = (1 - rate) * one + rate * np.diff(norm.cdf(edges, 1, noise))
    p, q = np.outer(other, other), np.outer(one, one)
    mu = math.sqrt(GAUSSIAN_FILTER.cost([dp_sgd(noise, rate, 2)]))
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0):
        for a, b in ((p, q), (q, p)):
            assert hockey_stick(a, b, math.exp(epsilon)) <= gaussian_delta(mu, epsilon)


# Filters


def test_what_is_a_filter() -> None:
    kinds: list[object] = [GAUSSIAN, *ORDERS, 4]
    assert all(map(is_filter, kinds))
    others: list[object] = ["Gaussian", "", 1.0, True, None, [], math.nan, 4.05]
    assert not any(map(is_filter, others))
    assert filter_of(GAUSSIAN).name == "Gaussian DP"
    assert filter_of(4.0).name == filter_of(4).name == "RDP order 4"


def test_without_privacy_nothing_can_be_counted() -> None:
    nothing = Schedule(mechanism=NoPrivacy(), steps=1)
    for kept in (filter_of(GAUSSIAN), filter_of(4.0)):
        with pytest.raises(PrivacyError, match="no privacy"):
            kept.cost([nothing])


@pytest.mark.parametrize("lifetime", [0.05, 1.0, 8.0, 1000.0])
def test_for_another_budget_there_is_a_filter_of_the_same_family(lifetime: float) -> None:
    assert GAUSSIAN_FILTER.at_budget(lifetime, DELTA) is GAUSSIAN_FILTER
    found = filter_of(4.0).at_budget(lifetime, DELTA)
    assert found in RENYI_FILTERS
    assert found.budget(lifetime, DELTA) > 0


def test_a_budget_too_small_for_any_order_is_refused() -> None:
    assert GAUSSIAN_FILTER.at_budget(1e-9, DELTA).budget(1e-9, DELTA) > 0
    with pytest.raises(PrivacyError, match="too small for any RDP order"):
        filter_of(4.0).at_budget(1e-9, DELTA)


def new_ledger(folder: Path, kind: FilterKind, epsilon: float = 8.0) -> Ledger:
    return Ledger.create(
        folder / "ledger.jsonl", SigningKey(), lifetime_epsilon=epsilon, delta=DELTA,
        filter_kind=kind,
    )  # fmt: skip


def charge(number: int, schedule: Schedule) -> Charge:
    return Charge(run="r", round=number, attempt=number, schedule=schedule)


def test_the_gaussian_filter_refuses_exactly_the_charge_that_would_exceed(tmp_path: Path) -> None:
    ledger, step = new_ledger(tmp_path, GAUSSIAN), dp_sgd(4.0, 1.0, 3)
    fitting = math.floor(gaussian_budget(8.0, DELTA) * 16 / 3)
    assert ledger.rounds_left(step) == fitting
    for number in range(1, fitting + 1):
        ledger.charge(charge(number, step))
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetExhausted, match="nothing was trained"):
        ledger.charge(charge(fitting + 1, step))
    assert ledger.path.read_bytes() == before
    assert 7.5 < ledger.spent_epsilon() <= 8.0
    assert ledger.spent_epsilon() == pytest.approx(epsilon_pld(ledger.schedules, DELTA), abs=1e-3)
    assert Ledger(ledger.path).filter_kind == GAUSSIAN


def test_a_mechanism_that_is_not_gaussian_is_refused_and_told_why(tmp_path: Path) -> None:
    coins = Schedule(mechanism=load("two_coins").TwoCoins(noise_multiplier=50.0), steps=1)
    assert GAUSSIAN_FILTER.cost([coins]) == math.inf
    assert GAUSSIAN_FILTER.cost([dp_sgd(2.0, 1.0, 1), coins]) == math.inf
    ledger = new_ledger(tmp_path, GAUSSIAN)
    before = ledger.path.read_bytes()
    assert not ledger.covers(coins)
    assert ledger.rounds_left(coins) == 0
    with pytest.raises(BudgetExhausted) as caught:
        ledger.charge(charge(1, coins))
    assert str(caught.value) == (
        "the lifetime budget cannot cover this round: its filter counts Gaussian noise alone, and "
        '"two-coins" is another mechanism; nothing was trained'
    )
    assert ledger.path.read_bytes() == before
    (tmp_path / "other").mkdir()
    new_ledger(tmp_path / "other", 4.0).charge(charge(1, coins))  # an RDP order counts it


def test_a_budget_that_a_filter_leaves_nothing_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"the privacy filter \(RDP order 4\) cannot certify"):
        new_ledger(tmp_path, 4.0, epsilon=0.5)
    assert new_ledger(tmp_path, GAUSSIAN, epsilon=0.5).covers(dp_sgd(100.0, 1.0, 1))


# An adversary


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.1, 1.0, 8.0, 50.0]),
    st.lists(st.tuples(st.floats(0.01, 1.3), st.booleans()), min_size=1, max_size=40),
)
def test_who_chooses_by_what_is_left_never_passes_the_budget(
    lifetime: float, wishes: list[tuple[float, bool]]
) -> None:
    """Each next noise takes a share of what is left, a bit more, or almost all of it."""
    budget = gaussian_budget(lifetime, DELTA)
    life: list[Schedule] = []
    for share, sampled in wishes:
        left = budget - GAUSSIAN_FILTER.cost(life)
        if left <= 1e-12:
            break
        noise = min(1e6, max(0.1, 1 / math.sqrt(share * left)))
        step = dp_sgd(noise, 0.5 if sampled else 1.0, 1)
        if GAUSSIAN_FILTER.cost([*life, step]) <= budget:
            life.append(step)
    spent = GAUSSIAN_FILTER.epsilon(GAUSSIAN_FILTER.cost(life), DELTA)
    assert spent <= lifetime
    total = math.fsum(1 / mechanism_of(one).multiplier ** 2 for one in life)
    if life:
        assert exact_delta(math.sqrt(total), lifetime) <= DELTA


@pytest.mark.parametrize("epsilon", [0.25, 1.0])
def test_a_choice_by_what_was_seen_gains_nothing(epsilon: float) -> None:
    """The filter's theorem, by brute force: the second noise follows from the first result.

    Whoever looks at a result and then takes all that is left, or little, or nothing, sees no more
    than one Gaussian of the whole budget shows. The first result is x on a grid; the second step is
    Gaussian, so what the pair shows at x is known in closed form.
    """
    mu, first = 1.0, 0.6
    sigma = 1 / first
    left = math.sqrt(mu**2 - first**2)
    x = np.linspace(-12 * sigma, 12 * sigma, 200_001)
    width, q, p = x[1] - x[0], norm.pdf(x, 0, sigma), norm.pdf(x, 1, sigma)
    allowed = gaussian_delta(mu, epsilon)
    for side in (1, -1):
        one, other = (p, q) if side == 1 else (q, p)
        loss = np.log(one) - np.log(other)
        for rule in (
            lambda loss: np.where(loss > 0, left, 0.0),  # goes on where it paid
            lambda loss: np.where(loss < 0, left, 0.0),
            lambda loss: np.where(np.abs(loss - epsilon) < 0.5, left, left / 3),
            lambda loss: left * np.clip(loss, 0.0, 1.0),
            lambda loss: np.full_like(loss, left),
        ):
            second = np.maximum(rule(loss), 1e-9)
            rest = epsilon - loss  # what the second step has to show: also below 0
            delta = norm.cdf(-rest / second + second / 2) - np.exp(rest) * norm.cdf(
                -rest / second - second / 2
            )
            total = float((one * delta).sum() * width)
            assert total <= allowed * (1 + 1e-6)
    assert total == pytest.approx(allowed, rel=1e-3)  # the last rule is not adaptive: exact
