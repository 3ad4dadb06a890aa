"""Public parameters: a size class instead of a count, and noise that covers just the plan."""

from __future__ import annotations

import dataclasses

import pytest

from fedaipc.config import settings_from
from fedaipc.errors import PrivacyError
from fedaipc.privacy.accountant import epsilon_rdp
from fedaipc.privacy.plan import (
    PrivacyPlan,
    charged_epsilon,
    check_delta,
    covered_rounds,
    filter_order,
    make_plan,
    planned_epsilon,
    size_class,
)

PLAN = PrivacyPlan(
    mode="local", clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.1, local_steps=3, delta=1e-5
)


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
    check_delta(1 / (10 * 1024), 1024)
    with pytest.raises(PrivacyError, match="1024"):
        check_delta(1 / (10 * 1024) * 1.001, 1024)
    # 513 and 1024 records are one class: the same answer, so that it says nothing.
    assert size_class(513) == size_class(1024)


def test_a_mechanism_counts_every_local_step_of_every_round() -> None:
    assert PLAN.mechanism().steps == 3
    assert PLAN.mechanism(rounds=7).steps == 21


def test_mode_and_noise_must_fit() -> None:
    for changes in ({"noise_multiplier": None}, {"mode": "none"}):
        with pytest.raises(PrivacyError, match="mode"):
            dataclasses.replace(PLAN, **changes)
    open_plan = dataclasses.replace(PLAN, mode="none", noise_multiplier=None)
    assert not open_plan.private
    with pytest.raises(PrivacyError, match="no privacy"):
        open_plan.mechanism()


@pytest.mark.parametrize("clip", [0.0, -1.0, 1e-25, 1e20, float("nan")])
def test_a_clip_bound_where_float32_loses_norms_is_refused(clip: float) -> None:
    with pytest.raises(PrivacyError, match="clip_norm"):
        dataclasses.replace(PLAN, clip_norm=clip)


@pytest.mark.parametrize(("epsilon", "steps"), [(8.0, 1), (1.0, 4)])
def test_a_target_is_met_over_all_planned_rounds_and_nearly_used_up(
    epsilon: float, steps: int
) -> None:
    settings = settings_from(
        {
            "privacy": {"epsilon": epsilon},
            "training": {"local_steps": steps},
            "federation": {"rounds": 30},
        }
    )
    plan = make_plan(settings)
    assert 0.99 * epsilon < epsilon_rdp([plan.mechanism(30)], plan.delta) <= epsilon
    assert epsilon_rdp([plan.mechanism(31)], plan.delta) > epsilon
    order = filter_order(plan, 30, epsilon)
    assert charged_epsilon(plan, 30, order) == pytest.approx(
        epsilon_rdp([plan.mechanism(30)], plan.delta), rel=1e-9
    )


def test_given_noise_is_taken_as_it_is_and_mode_none_has_none() -> None:
    given = settings_from({"privacy": {"noise_multiplier": 3.25}})
    assert make_plan(given).noise_multiplier == 3.25
    assert make_plan(settings_from({"privacy": {"mode": "none"}})).noise_multiplier is None


def test_so_much_noise_that_a_round_costs_nothing_is_no_fault() -> None:
    plan = dataclasses.replace(PLAN, noise_multiplier=1e4, sampling_rate=1e-6)
    order = filter_order(plan, 10, 8.0)
    assert covered_rounds(plan, 8.0, order) > 10**9


@pytest.mark.parametrize("private", [True, False])
def test_a_budget_too_small_for_anything_is_refused(private: bool) -> None:
    plan = PLAN if private else dataclasses.replace(PLAN, mode="none", noise_multiplier=None)
    with pytest.raises(PrivacyError, match="lifetime_epsilon"):
        filter_order(plan, 10, 0.0001)


def test_three_accountants_are_reported() -> None:
    found = planned_epsilon(PLAN, 10)
    assert found["rdp"] >= found["prv"]
    assert found["prv"] == pytest.approx(found["pld"], rel=0.01, abs=0.002)


def test_an_epsilon_that_promises_nothing_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """PLD of it would take tens of GB, before a run or a signature."""

    def computed(*_: object) -> float:
        raise AssertionError("the accountant was asked")

    for name in ("epsilon_prv", "epsilon_pld"):
        monkeypatch.setattr(f"fedaipc.privacy.plan.{name}", computed)
    found = planned_epsilon(dataclasses.replace(PLAN, noise_multiplier=0.1, sampling_rate=1.0), 999)
    assert found["prv"] == found["pld"] == found["rdp"] > 100_000
