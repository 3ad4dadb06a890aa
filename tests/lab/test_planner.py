"""Any one number from the others: round trips, closed forms, and what is not promised."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedaipc.config import DPSGD
from fedaipc.errors import PrivacyError
from fedaipc.lab import planner
from fedaipc.lab.planner import (
    Plan,
    Unknown,
    solve,
)
from fedaipc.privacy.budget import best_filter, covered_rounds
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.secagg.keys import SigningKey

PLAN = Plan(
    epsilon=2.0,
    mechanism=DPSGD(noise_multiplier=1.0, sampling_rate=0.1, delta=1e-6),
    steps=2,
    rounds=30,
    records=1024,
)


def replace(plan: Plan, **changes: Any) -> Plan:
    """With other numbers, also of its mechanism."""
    names = {"noise": "noise_multiplier", "rate": "sampling_rate", "delta": "delta"}
    own = {names[key]: changes.pop(key) for key in names if key in changes}
    mechanism = plan.mechanism.model_copy(update=own)
    return dataclasses.replace(plan, mechanism=mechanism, **changes)


def gaussian(noise: float, steps: int, delta: float) -> float:
    """Epsilon of `steps` Gaussian steps, exact (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(steps) / noise

    def excess(epsilon: float) -> float:
        far = norm.logcdf(-epsilon / mu - mu / 2)
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + far) - delta)

    return float(brentq(excess, 0, 5000, xtol=1e-9))


@pytest.mark.slow
@settings(max_examples=8)  # each takes a second
@given(
    epsilon=st.floats(0.3, 12), noise=st.floats(0.6, 20), rate=st.floats(0.01, 1),
    steps=st.integers(1, 5), rounds=st.integers(1, 200),
)  # fmt: skip
def test_what_is_found_meets_the_budget_and_a_little_more_does_not(
    epsilon: float, noise: float, rate: float, steps: int, rounds: int
) -> None:
    asked = replace(PLAN, epsilon=epsilon, noise=noise, rate=rate, steps=steps, rounds=rounds)
    more = {
        "noise": lambda s: replace(s, noise=s.noise * 0.99),
        "rounds": lambda s: replace(s, rounds=s.rounds + 1),
        "rate": lambda s: replace(s, rate=min(1.0, s.rate * 1.01)),
    }
    for find, worse in more.items():
        unknown: Unknown = find  # type: ignore[assignment]
        try:
            found = solve(unknown, asked)
        except PrivacyError:
            continue
        assert found.epsilon <= epsilon
        if find == "rate" and found.rate == 1.0:
            continue
        if find == "noise" and found.noise <= 0.11:  # the least that is allowed
            continue
        assert solve("epsilon", worse(found)).epsilon > epsilon * (1 - 1e-6)


def test_each_number_is_found_again_from_the_others() -> None:
    whole = solve("noise", PLAN)
    assert solve("epsilon", whole).epsilon == whole.epsilon
    assert solve("rounds", replace(whole, epsilon=PLAN.epsilon, rounds=1)).rounds == 30
    again = solve("rate", replace(whole, epsilon=PLAN.epsilon, rate=1.0))
    assert again.rate == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (3.0, 4), (10.0, 20), (40.0, 100)])
def test_without_sampling_it_is_the_closed_form(noise: float, rounds: int) -> None:
    found = solve("epsilon", replace(PLAN, rate=1.0, noise=noise, steps=1, rounds=rounds))
    exact = gaussian(noise, rounds, PLAN.delta)
    bounds = found.by_accountant()
    assert bounds["rdp"] == pytest.approx(found.epsilon, rel=1e-6)
    assert exact <= bounds["pld"] <= exact * 1.01 + 1e-3
    assert exact <= bounds["prv"] <= exact + 0.01
    assert exact <= found.epsilon <= exact * 1.2 + 0.05


@pytest.mark.parametrize("records", [2, 5, 20])
def test_a_group_without_sampling_is_the_closed_form_of_a_larger_step(records: int) -> None:
    found = solve("epsilon", replace(PLAN, rate=1.0, noise=20.0, steps=1, rounds=10))
    exact = gaussian(20.0 / records, 10, PLAN.delta)
    assert found.group_epsilon(records) == pytest.approx(exact, rel=1e-6)
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_event.GaussianDpEvent(20.0 / records), 10)
    assert found.group_epsilon(records) == pytest.approx(
        accountant.get_epsilon(PLAN.delta), rel=0.01
    )


# All noises with all rates; those of the first pair take tens of seconds.
NOISES, RATES = (0.1, 30.0, 1e6), (1e-4, 0.999999, 1 - 2**-53, 1.0)
PAIRS = [
    pytest.param(rate, noise, marks=[pytest.mark.slow] if (rate, noise) == (1e-4, 0.1) else [])
    for rate in RATES
    for noise in NOISES
]


@pytest.mark.parametrize(("rate", "noise"), PAIRS)
@pytest.mark.parametrize("rounds", [30, 1000])
def test_at_no_rate_and_noise_a_number_is_missing_that_is_reckoned_with(
    rate: float, noise: float, rounds: int
) -> None:
    found = solve("epsilon", replace(PLAN, rate=rate, noise=noise, steps=1, rounds=rounds))
    bounds = found.by_accountant()
    known = [value for value in bounds.values() if value is not None]
    one = found.group_epsilon(1)
    assert one == pytest.approx(bounds["rdp"] if bounds["pld"] is None else bounds["pld"])
    groups = [found.group_epsilon(m) for m in (2, 3, 2000)]
    finite = [group for group in groups if group is not None]
    assert all(math.isfinite(value) for value in (*known, *finite))
    assert finite == sorted(finite)


def test_sampled_nearly_always_is_as_without_sampling() -> None:
    almost = replace(PLAN, noise=20.0, rate=1 - 2**-53, steps=1)
    always = replace(almost, rate=1.0).group_epsilon(3)
    assert almost.group_epsilon(3) == pytest.approx(always, rel=0.01)


def test_a_group_of_one_is_one_record_by_another_way() -> None:
    found = solve("noise", PLAN)
    by_mixture = planner._group_epsilon_by_mixture(found, 1)
    assert by_mixture == pytest.approx(found.by_accountant()["pld"], rel=0.01)


def test_a_group_has_more_than_that_many_times_the_epsilon() -> None:
    """At the same delta: m epsilon would hold for another one only."""
    found = solve("noise", replace(PLAN, epsilon=1.0))
    one = found.group_epsilon(1)
    assert one is not None
    groups = [found.group_epsilon(m) for m in (2, 3, 5)]
    for m, group in zip((2, 3, 5), groups, strict=True):
        assert group is not None
        assert m * one < group
        by_curve = planner._group_by_curve(found, m)
        assert by_curve is None or group < by_curve


def test_a_mixture_is_the_truth_of_one_sampled_step() -> None:
    """Against the hockey-stick integral of a single step with two records, by quadrature."""
    noise, rate, delta = 2.0, 0.3, 1e-3
    found = replace(PLAN, noise=noise, rate=rate, steps=1, rounds=1, delta=delta, records=32)
    weights = [(1 - rate) ** 2, 2 * rate * (1 - rate), rate**2]

    def excess(epsilon: float) -> float:
        x = np.linspace(-40, 42, 400_001)
        with_them = sum(w * norm.pdf(x, k, noise) for k, w in enumerate(weights))
        without = norm.pdf(x, 0, noise)
        added = np.trapezoid(np.maximum(with_them - math.exp(epsilon) * without, 0), x)
        removed = np.trapezoid(np.maximum(without - math.exp(epsilon) * with_them, 0), x)
        return float(max(added, removed) - delta)

    truth = float(brentq(excess, 0.01, 10))
    group = found.group_epsilon(2)
    assert group is not None
    assert truth - 1e-6 <= group <= truth + 0.01


def test_a_group_of_which_nothing_can_be_said_gets_no_number() -> None:
    found = solve("epsilon", replace(PLAN, noise=0.5, rounds=200))
    assert found.group_epsilon(1000) is None


def test_the_curve_grows_to_the_whole() -> None:
    whole = solve("noise", PLAN)
    points = whole.curve()
    assert points[0][0] == 1
    assert points[-1] == (30, whole.epsilon)
    values = [epsilon for _, epsilon in points]
    assert values == sorted(values)
    assert replace(whole, rounds=1).curve()[0][0] == 1


def test_a_smaller_budget_takes_more_noise() -> None:
    rows = PLAN.trade_offs()
    assert [row.noise for row in rows] == sorted((row.noise for row in rows), reverse=True)
    assert all(row.relative_noise == row.noise / (0.1 * 1024) for row in rows)
    for row, target in zip(rows, (0.5, 1, 2, 3, 4, 6, 8, 10), strict=True):
        assert row.epsilon <= target


def test_what_is_planned_is_what_a_fresh_ledger_covers(tmp_path: Path) -> None:
    whole = solve("noise", PLAN)
    plan = whole.once
    kind = best_filter(plan, whole.rounds, PLAN.epsilon)
    assert covered_rounds(plan, PLAN.epsilon, kind) == whole.rounds
    ledger = Ledger.create(
        tmp_path / "ledger.jsonl",
        SigningKey(),
        lifetime_epsilon=PLAN.epsilon,
        delta=PLAN.delta,
        filter_kind=kind,
    )
    for number in range(1, whole.rounds + 1):
        ledger.charge(Charge(run="r", round=number, attempt=number, schedule=plan))
    assert not ledger.covers(plan)


@pytest.mark.parametrize(
    ("find", "change", "why"),
    [
        ("rounds", {"epsilon": 0.05, "noise": 0.5}, "does not cover one round"),
        ("rounds", {"epsilon": 0.005}, "nothing below 0.0"),
        ("rate", {"epsilon": 0.005}, "nothing below 0.0"),
        ("rate", {"epsilon": 0.05, "noise": 0.5, "rounds": 10**6}, "however few records"),
        ("noise", {"epsilon": 1e-9, "rate": 1.0, "rounds": 10**6}, "no noise reaches"),
        ("noise", {"delta": 1e-3}, "too large for size class"),
    ],
)
def test_what_cannot_be_is_one_line(find: Unknown, change: dict[str, float], why: str) -> None:
    with pytest.raises(PrivacyError, match=why) as caught:
        solve(find, replace(PLAN, **change))
    assert "\n" not in str(caught.value)
