"""The bound from guesses: its probability statement by simulation, and never above the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fedaipc.errors import PrivacyError
from fedaipc.lab.audit.bound import audit_bound, lower_bound, p_value


@pytest.mark.parametrize(
    ("guesses", "right", "epsilon"), [(100, 90, 1.0), (50, 30, 0.2), (7, 7, 3)]
)
def test_pure_dp_is_the_binomial_tail(guesses: int, right: int, epsilon: float) -> None:
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(
        math.comb(guesses, k) * chance**k * (1 - chance) ** (guesses - k)
        for k in range(right, guesses + 1)
    )
    assert p_value(1000, guesses, right, epsilon, 0.0) == pytest.approx(tail, rel=1e-9)


def test_delta_adds_what_theorem_5_2_says() -> None:
    """Spelt out once more, without vectors."""
    m, r, v, epsilon, delta = 200, 60, 55, 1.5, 1e-4
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = [float(binom.sf(k - 1, r, chance)) for k in range(v + 1)]
    alpha = max((tail[v - i] - tail[v]) / i for i in range(1, v + 1))
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(tail[v] + 2 * m * delta * alpha)


@given(
    st.integers(2, 60).flatmap(
        lambda m: st.integers(1, m).flatmap(
            lambda r: st.tuples(st.just(m), st.just(r), st.integers(0, r))
        )
    ),
    st.floats(0, 8),
    st.sampled_from([0.0, 1e-6, 1e-3]),
)
def test_it_is_a_chance_and_grows_with_epsilon_and_delta(
    counts: tuple[int, int, int], epsilon: float, delta: float
) -> None:
    m, r, v = counts
    value = p_value(m, r, v, epsilon, delta)
    assert 0 <= value <= 1
    assert value <= p_value(m, r, v, epsilon + 0.5, delta) + 1e-9
    assert value <= p_value(m, r, v, epsilon, delta * 2) + 1e-12
    assert lower_bound(m, r, v, 1e-5) >= 0


def test_all_guesses_right_rule_out_what_they_should() -> None:
    """Of 100 guesses all right: epsilon is ruled out while q^100 < 0.05."""
    exact = 0.05 ** (1 / 100)
    assert lower_bound(100, 100, 100, 0.0) == pytest.approx(math.log(exact / (1 - exact)), abs=1e-3)
    assert lower_bound(100, 100, 50, 0.0) == 0
    assert lower_bound(100, 100, 100, 0.0, confidence=0.99) < lower_bound(100, 100, 100, 0.0)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_randomised_response_is_hardly_ever_refuted(epsilon: float) -> None:
    """The mechanism for which the theorem is tight: each coin told with noise of epsilon."""
    random = np.random.default_rng(7)
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    above, found = 0, []
    for _ in range(300):
        coins = random.random(300) < 0.5
        told = np.where(random.random(300) < chance, coins, ~coins)
        bound = audit_bound(told + random.random(300) * 1e-3, coins, 1e-6)
        above += bound.lower > epsilon
        found.append(bound.lower)
    assert above <= 0.05 * 300
    if epsilon == 2.0:
        assert np.mean(found) > 1.2  # and it is no idle bound


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_the_gaussian_mechanism_is_hardly_ever_refuted(mu: float) -> None:
    """Each coin seen through normal noise: mu-GDP, whose epsilon at delta is known."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    delta = 1e-4

    def excess(e: float) -> float:
        return norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta

    truth = brentq(excess, 0, 50)
    random = np.random.default_rng(11)
    above, found = 0, []
    for _ in range(100):
        coins = random.random(1000) < 0.5
        bound = audit_bound(mu * coins + random.normal(size=1000), coins, delta)
        above += bound.lower > truth
        found.append(bound.lower)
    assert above <= 5
    assert np.mean(found) > 0.25 * truth - 0.2


def test_scores_that_say_nothing_bound_nothing() -> None:
    random = np.random.default_rng(3)
    lower = [audit_bound(random.random(500), random.random(500) < 0.5, 1e-5).lower
             for _ in range(100)]  # fmt: skip
    assert sum(value > 0 for value in lower) <= 5


@pytest.mark.parametrize("case", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_that_cannot_be_are_refused(case: tuple[int, int, int]) -> None:
    with pytest.raises(PrivacyError, match="some of"):
        p_value(*case, 1.0, 1e-5)
    with pytest.raises(PrivacyError, match="a score and a coin"):
        audit_bound(np.zeros(3), np.zeros(2, dtype=bool), 1e-5)
