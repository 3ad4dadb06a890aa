"""Public parameters: a size class instead of a count, and noise that covers just the plan."""

from __future__ import annotations

from typing import Any

import pytest

from fedaipc.config import DPSGD, GAUSSIAN, FilterKind, NoPrivacy, Schedule, settings_from
from fedaipc.errors import ConfigError, PrivacyError
from fedaipc.privacy.accountant import ORDERS, best_order, epsilon_pld, epsilon_rdp
from fedaipc.privacy.budget import (
    best_filter,
    charged_epsilon,
    check_delta,
    covered_rounds,
    planned_epsilon,
    round_schedule,
    size_class,
)
from tests.support.schedules import changed, dp_sgd

PLAN = dp_sgd(2.0, 0.1, 3)
NOTHING = Schedule(mechanism=NoPrivacy(), steps=3)


@pytest.mark.parametrize(
    ("records", "expected"),
    [(1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (1000, 1024), (1025, 2048)],
)
def test_the_size_class_is_the_next_power_of_two(records: int, expected: int) -> None:
    assert size_class(records) == expected


def test_a_pc_without_records_has_no_class() -> None:
    with pytest.raises(PrivacyError):
        size_class(0)


def test_delta_is_refused_by_the_class_and_not_by_the_count() -> None:
    check_delta(1 / (10 * 1024), "record", public_class=1024, clients=10**9)
    with pytest.raises(PrivacyError, match="size class 1024"):
        check_delta(1 / (10 * 1024) * 1.001, "record", public_class=1024, clients=1)
    # 513 and 1024 records are one class: the same answer, so that it says nothing.
    assert size_class(513) == size_class(1024)


def test_where_clients_are_protected_their_number_decides() -> None:
    check_delta(1 / 200, "client", public_class=2**40, clients=20)
    with pytest.raises(PrivacyError, match="20 clients"):
        check_delta(1 / 200 * 1.001, "client", public_class=32, clients=20)


def test_a_schedule_counts_every_local_step_of_every_round() -> None:
    assert PLAN.times(7).steps == 21
    assert PLAN.times(7).mechanism == PLAN.mechanism


def test_a_schedule_needs_the_noise_itself() -> None:
    with pytest.raises(ConfigError, match="not a target"):
        Schedule(mechanism=DPSGD(epsilon=8.0), steps=1)
    assert not NOTHING.private
    with pytest.raises(PrivacyError, match="no privacy"):
        planned_epsilon(NOTHING, 1)


@pytest.mark.parametrize("clip", [0.0, -1.0, 1e-25, 1e20, float("nan")])
def test_a_clip_bound_where_float32_loses_norms_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        changed(PLAN, clip_norm=clip)


@pytest.mark.parametrize(("epsilon", "steps"), [(8.0, 1), (1.0, 4)])
def test_a_target_is_met_over_all_planned_rounds_and_nearly_used_up(
    epsilon: float, steps: int
) -> None:
    settings = settings_from(
        {
            "privacy": {"epsilon": epsilon},
            "training": {"local_steps": steps},
            "rounds": 30,
        }
    )
    plan = round_schedule(settings)
    assert 0.99 * epsilon < epsilon_rdp([plan.times(30)], plan.mechanism.delta) <= epsilon
    assert epsilon_rdp([plan.times(31)], plan.mechanism.delta) > epsilon
    kind = best_filter(plan, 30, epsilon)
    # A default job steps on all records: the Gaussian filter, which is exact, leaves some over.
    assert kind == GAUSSIAN
    charged = charged_epsilon(plan, 30, kind)
    exact = epsilon_pld([plan.times(30)], plan.mechanism.delta)
    assert charged == pytest.approx(exact, abs=1e-3)
    assert 30 < covered_rounds(plan, epsilon, kind) < 40


def test_a_sampled_job_gets_the_order_at_which_it_costs_least() -> None:
    plan = round_schedule(settings_from({"privacy": {"sampling_rate": 0.1}, "rounds": 30}))
    kind = best_filter(plan, 30, 8.0)
    assert kind == best_order([plan.times(30)], plan.mechanism.delta)[0]
    assert charged_epsilon(plan, 30, kind) == pytest.approx(
        epsilon_rdp([plan.times(30)], plan.mechanism.delta), rel=1e-9
    )
    assert covered_rounds(plan, 8.0, GAUSSIAN) < 30 <= covered_rounds(plan, 8.0, kind)


@pytest.mark.parametrize("lifetime", [8.0, 0.5])
@pytest.mark.parametrize("rate", [1.0, 0.9, 0.5, 0.1, 0.01])
def test_no_other_filter_affords_more_rounds_than_the_best_of_its_family(
    lifetime: float, rate: float
) -> None:
    """Of a job whose budget does not cover it; then every kind was looked at."""
    plan = dp_sgd(12.0, rate, 1)
    kind = best_filter(plan, 10**7, lifetime)
    kinds: list[FilterKind] = [GAUSSIAN, *ORDERS]
    most = max(covered_rounds(plan, lifetime, other) for other in kinds)
    assert covered_rounds(plan, lifetime, kind) == most
    assert (kind == GAUSSIAN) == (rate == 1) or rate == 0.9  # there it is a matter of the budget


def test_whole_clients_are_never_sampled_for_the_filter() -> None:
    plan = changed(PLAN, unit="client", noise_multiplier=20.0)
    assert best_filter(plan, 10, 8.0) == GAUSSIAN
    assert best_filter(NOTHING, 10, 8.0) == GAUSSIAN


def test_given_noise_is_taken_as_it_is() -> None:
    given = settings_from({"privacy": {"noise_multiplier": 3.25}})
    assert round_schedule(given).mechanism == DPSGD(noise_multiplier=3.25)
    assert not round_schedule(settings_from({"privacy": {"kind": "none"}})).private


def test_so_much_noise_that_a_round_costs_nothing_is_no_fault() -> None:
    plan = changed(PLAN, noise_multiplier=1e4, sampling_rate=1e-6)
    kind = best_filter(plan, 10, 8.0)
    assert covered_rounds(plan, 8.0, kind) > 10**9


def test_a_budget_too_small_for_anything_is_refused() -> None:
    with pytest.raises(PrivacyError, match="lifetime_epsilon"):
        best_filter(PLAN, 10, 0.0001)


def test_three_accountants_are_reported() -> None:
    found = planned_epsilon(PLAN, 10)
    assert found["rdp"] >= found["prv"]
    assert found["prv"] == pytest.approx(found["pld"], rel=0.01, abs=0.002)


def test_an_epsilon_that_promises_nothing_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """PLD of it would take tens of GB, before a run or a signature."""

    def computed(*_: Any) -> float:
        raise AssertionError("the accountant was asked")

    for name in ("epsilon_prv", "epsilon_pld"):
        monkeypatch.setattr(f"fedaipc.privacy.budget.{name}", computed)
    found = planned_epsilon(changed(PLAN, noise_multiplier=0.1, sampling_rate=1.0), 999)
    assert found["prv"] == found["pld"] == found["rdp"] > 100_000
