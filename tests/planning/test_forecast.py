"""Energy, traffic, cost and GPUs by hand; fleets that never finish; tables and plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedaipc.doctor.forecast import round_bytes
from fedaipc.errors import ConfigError
from fedaipc.report.plot_style import figure_bytes
from tests.support.fleets_planned import INSTANT, ONE, PRICES, VALUES, a_fleet, a_job, a_plan


def test_energy_traffic_and_cost_of_ten_pcs_are_those_of_a_hand() -> None:
    server = {**INSTANT, "dollars_per_hour": 3.0, "dollars_per_gib": 5.0}
    one = {**ONE, "frozen_texts_per_second": 20.0, "watts": 25.0}
    (found,) = a_plan(a_job(), a_fleet(one, server=server), [10], repeats=2).fleets
    busy = 10 * (3 * 1000 / 10 + 1000 / 20)  # seconds of all PCs
    up, down = round_bytes(a_job(), 10, VALUES)
    out = 3 * 10 * down + 10 * 10 * 32  # the list of ten members went to ten PCs
    assert found.run_seconds is not None
    dollars = busy * 25 / 3.6e6 * 0.2 + busy / 3600 * 0.01
    dollars += found.run_seconds.median / 3600 * 3.0 + out / 2**30 * 5.0
    assert found.watt_hours is not None
    assert found.watt_hours.median == pytest.approx(busy * 25 / 3600)
    assert found.round_watt_hours == pytest.approx(busy * 25 / 3600 / 3)
    assert (found.bytes_up, found.bytes_down) == (up, down)
    assert found.server_bytes is not None
    assert found.server_bytes.median == 3 * 10 * up + out
    assert found.dollars is not None
    assert found.dollars.median == pytest.approx(dollars)
    assert found.round_dollars == pytest.approx(dollars / 3)


def test_a_gpu_does_the_same_work_and_breaks_even_where_it_costs_the_same() -> None:
    (found,) = a_plan(a_job(), a_fleet(), [10], repeats=2).fleets
    unmeasured, measured = found.gpus
    assert (unmeasured.speed_up, unmeasured.hours, unmeasured.cost_ratio) == (None, None, None)
    hours = 10 * 3 * 1000 / 800 / 3600
    assert found.run_seconds is not None
    assert found.dollars is not None
    assert measured.speed_up == pytest.approx(800 / 10)
    assert measured.hours == pytest.approx(hours)
    assert measured.watt_hours == pytest.approx(hours * 700)
    assert measured.dollars == pytest.approx(hours * 2.0)
    assert measured.time_ratio == pytest.approx(found.run_seconds.median / 3600 / hours)
    assert measured.cost_ratio == pytest.approx(found.dollars.median / (hours * 2.0))
    # At R = break-even the GPU's hours cost what the fleet costs.
    assert measured.break_even is not None
    work = 10 * 3 * 1000 / 10 / 3600  # hours of one PC
    assert work / measured.break_even * 2.0 == pytest.approx(found.dollars.median)


@pytest.mark.parametrize("fraction", [0.2, 1.0])
def test_without_waste_a_gpu_breaks_even_as_beside_one_pc(fraction: float) -> None:
    """A PC computes its frozen layers once it is drawn, and not before."""
    job = a_job(federation={"fraction": fraction}, aggregation={"kind": "plain"})
    fleet = a_fleet({**ONE, "frozen_texts_per_second": 5.0})
    (found,) = a_plan(job, fleet, [100], repeats=10).fleets
    pc_hour = 50 / 1000 * 0.2 + 0.01
    assert found.gpus[0].break_even == pytest.approx(0.4 / pc_hour, rel=0.05)


def test_void_rounds_cost_the_fleet_and_not_the_gpu() -> None:
    calm, rough = (
        a_plan(a_job(), a_fleet(dropout={"mask": chance}), [10], repeats=20).fleets[0]
        for chance in (0.0, 0.25)
    )
    assert calm.void_rounds is not None
    assert rough.void_rounds is not None
    assert calm.void_rounds.high == 0 < rough.void_rounds.high
    assert calm.dollars is not None
    assert rough.dollars is not None
    assert rough.dollars.high > calm.dollars.high
    assert rough.gpus[1].dollars == calm.gpus[1].dollars


def test_a_size_has_the_same_answer_in_any_list() -> None:
    fleet = a_fleet({**ONE, "available": 0.9}, dropout={"mask": 0.1})
    both = a_plan(a_job(), fleet, [10, 30], repeats=4)
    alone = a_plan(a_job(), fleet, [30], repeats=4)
    assert both.fleets[1] == alone.fleets[0]
    assert both.fleets[1] != a_plan(a_job(), fleet, [30], repeats=4, seed=1).fleets[0]


def test_a_fleet_that_is_too_small_or_never_there_is_said_in_one_line() -> None:
    plan = a_plan(a_job(), a_fleet(available=0.3), [2, 50], repeats=2)
    two, fifty = plan.fleets
    assert (two.finished, two.run_seconds, two.phases) == (0.0, None, {})
    lines = plan.lines()
    assert lines[0].startswith("2 PCs: 100% of the runs do not finish: too few PCs take part")
    assert "50 PCs: 100% of the runs do not finish: too few PCs are there" in lines[1]
    assert not [line for line in lines if "\n" in line]
    assert fifty.void_rounds is not None
    json.dumps(plan.to_dict(), allow_nan=False)
    assert "-" in str(plan)
    assert figure_bytes(plan.figure(), ".svg", "fleet")


def test_more_than_the_formats_and_keys_allow_is_noted() -> None:
    slow = {**ONE, "texts_per_second": 0.011}  # 25 hours a round
    federation = {"round_timeout": 1e5}
    job = a_job(rounds=1, warm_up={"source": "short-reviews"}, federation=federation)
    notes = " ".join(a_plan(job, a_fleet(slow), [3, 200_000], repeats=1).notes)
    assert "100,000 members at most" in notes
    assert "outlives the PCs' keys" in notes
    assert "warm-up" in notes
    plain = a_plan(a_job(aggregation={"kind": "plain"}), a_fleet(), [3], repeats=1)
    assert "not sealed" in " ".join(plain.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clients": []}, "numbers of PCs from 1"),
        ({"clients": [0]}, "numbers of PCs from 1"),
        ({"clients": [10**9]}, "to 10,000,000"),
        ({"repeats": 0}, "repeats = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_what_cannot_be_simulated_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        a_plan(a_job(), a_fleet(), **{"clients": [10], **changes})


def test_settings_that_name_single_pcs_or_too_many_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"federation\.only"):
        a_plan(a_job(federation={"only": [0, 1, 2]}), a_fleet(), [10])
    few = a_plan(a_job(federation={"min_clients": 15}), a_fleet(), [10], repeats=1)
    assert "federation.min_clients = 15: every round would be void" in str(few.fleets[0].why)


def test_the_model_is_opened_only_where_nobody_counted_its_values(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="opened"):
        a_plan(a_job(), a_fleet(parameters=None), [3], tmp_path)


def test_tables_have_a_row_for_each_fleet_and_gpu() -> None:
    plan = a_plan(a_job(), a_fleet(), [10, 100], repeats=1)
    time, cost, gpus = plan.tables()
    assert (len(time.rows), len(cost.rows), len(gpus.rows)) == (2, 2, 2 * len(PRICES.gpu))
    assert "<table" in plan._repr_html_()


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_plot_has_fleet_and_measured_gpu(ending: str) -> None:
    figure = a_plan(a_job(), a_fleet(), [10, 100], repeats=2).figure()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["fleet", "GPU: measured"]
    assert figure_bytes(figure, ending, "fleet")
