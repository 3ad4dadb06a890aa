"""The simulation of events against closed forms, and what must never be the other way round."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fedaipc.fleet import node
from fedaipc.planning import events, waiting
from fedaipc.planning.events import _Run
from fedaipc.planning.load import make_load, make_pcs
from fedaipc.planning.waiting import listened, served, turns
from tests.support.fleets_planned import INSTANT, ONE, VALUES, a_fleet, a_job, a_run

PLAIN = {"kind": "plain", "bits": 32}
CHANCES = st.floats(0, 1)


def of_two(**changes: Any) -> list[dict[str, Any]]:
    """A quick class and a slow one, both with these keys."""
    quick = {**ONE, "name": "quick", "share": 0.5, **changes}
    return [quick, {**quick, "name": "slow", "texts_per_second": 2.0}]


# Closed forms.


def test_one_pc_without_randomness_takes_what_a_hand_computes() -> None:
    line = {"down_mbit": 2.0, "up_mbit": 1.0, "latency_ms": 100.0}
    one = {**ONE, **line, "frozen_texts_per_second": 50.0, "round_seconds": 3.0, "watts": 20.0}
    server = {**INSTANT, "exchange_seconds": 0.5, "evaluation_seconds": 7.0}
    job = a_job(aggregation=PLAIN, evaluation={"every": 2}, federation={"clients": 1})
    run = a_run(job, a_fleet(one, server=server), 1)
    down = 4 * VALUES + 2 * 1100  # the model, and the job's text twice
    sent = 8 * down / 2e6 + 8 * 4 * VALUES / 1e6
    # Looks: a PC that was busy a moment ago looks each 0.02 s, and it is half of that on average.
    ready = 0.5 + 4 * 0.1 + 0.01
    exchange = sent + 4 * 0.1 + 0.5 + 1000 / 10 + 3.0
    setup = 0.5 + 4 * 0.1 + 0.01  # in the first round, whose frozen layers take 20 s
    first = setup + ready + exchange + 20.0 + max(0.02, (setup + ready) / 20) / 2 + 0.5
    later = ready + exchange + max(0.02, ready / 20) / 2 + 0.5  # the coordinator looks each second
    # The second and the last round are evaluated.
    assert run.rounds == pytest.approx([first, later + 7, later + 7], rel=1e-3)
    assert run.seconds == pytest.approx(sum(run.rounds))
    assert (run.why, run.void, run.waited, run.arrived) == (None, 0, 0.0, [1, 1, 1])
    assert run.watt_seconds == pytest.approx(20.0 * (3 * 100 + 20))
    assert run.busy_seconds == pytest.approx(3 * 103 + 20)
    assert run.bytes_in == 3 * 4 * VALUES
    assert run.bytes_out == 3 * down + 32  # the list of members has one key


def test_a_sealed_round_unmasks_one_group_after_the_other() -> None:
    server = {**INSTANT, "exchange_seconds": 1.0, "unmask_seconds": 0.1}
    job = a_job(federation={"clients": 20})
    small, large = (a_run(job, a_fleet(server=server), clients) for clients in (100, 300))
    # Agree and unmask take an exchange each and the server's work, in one group or in three.
    for groups, run in ((1, small), (3, large)):
        unmask = run.phases[-1][2]
        looks = unmask - groups * (2 + 0.1 * 100)
        assert 0 < looks < groups * 2 * waiting.LONGEST_LOOK


def test_a_round_waits_for_the_slowest_class() -> None:
    both = a_run(a_job(), a_fleet(*of_two()), 10)
    assert both.rounds[-1] == pytest.approx(1000 / 2.0, rel=0.02)
    assert both.arrived == [10, 10, 10]


def test_uploads_are_taken_in_one_after_the_other() -> None:
    server = {**INSTANT, "down_mbit": 8 * 4 * VALUES / 1e6}  # an upload of plain values a second
    run = a_run(a_job(aggregation=PLAIN), a_fleet(server=server), 50)
    assert run.rounds[-1] == pytest.approx(100 + 50, rel=0.02)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5)), min_size=1, max_size=20))
def test_a_queue_serves_as_a_loop_would(batches: list[tuple[float, int]]) -> None:
    arrival, counts = (np.array(column) for column in zip(*batches, strict=True))
    clock, wanted = 0.0, np.zeros(len(batches))
    for place in np.argsort(arrival, kind="stable"):
        clock = max(clock, arrival[place]) + 0.5 * counts[place]
        wanted[place] = clock
    assert served(arrival.astype(float), counts, 0.5) == pytest.approx(wanted)


@given(
    st.lists(st.floats(0, 100), max_size=20),
    st.floats(0.5, 30),
    st.booleans(),
)
def test_silence_ends_a_stage_as_a_loop_would(
    times: list[float], timeout: float, silent: bool
) -> None:
    last, all_there = 0.0, True
    for time in sorted(times):
        if time - last > timeout:
            all_there = False
            break
        last = time
    wanted = last if all_there and not silent else last + timeout
    assert listened(np.array(times), timeout, silent=silent)[0] == pytest.approx(wanted)


def test_pauses_between_looks_are_those_of_a_pc() -> None:
    assert waiting.SHORTEST_LOOK == node._SHORTEST
    assert waiting.LONGEST_LOOK == node._LONGEST
    assert waiting.PATIENT_LOOK == node._PATIENT


# Who is there.


@given(st.integers(1, 10_000), st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_classes_share_all_pcs(clients: int, weights: list[float]) -> None:
    shares = np.array(weights) / sum(weights)
    classes = [{**ONE, "name": str(n), "share": share} for n, share in enumerate(shares)]
    pcs, _ = make_pcs(a_job(), a_fleet(*classes), Path(), 65.0)
    counts = pcs.counts(clients)
    assert counts.sum() == clients
    assert np.all(np.abs(counts - shares * clients) < 1 + 1e-6)


@given(st.lists(CHANCES, min_size=24, max_size=24))
def test_each_hour_has_its_share_of_the_pcs(available: list[float]) -> None:
    hours = np.array(available)[:, None]
    leave, join = turns(hours)
    before = np.roll(hours, 1, axis=0)
    assert np.all((leave >= 0) & (leave <= 1 + 1e-12) & (join >= 0) & (join <= 1 + 1e-12))
    assert before * (1 - leave) + (1 - before) * join == pytest.approx(hours, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(3, 450), st.floats(0.1, 1), st.floats(0, 1), st.integers(0, 100))
def test_a_draw_is_a_partition_of_those_that_are_there(
    clients: int, fraction: float, available: float, seed: int
) -> None:
    job = a_job(aggregation=PLAIN, federation={"fraction": fraction})
    fleet = a_fleet(*of_two(available=available))
    pcs, _ = make_pcs(job, fleet, Path(), 65.0)
    load = make_load(job, clients, VALUES)
    run = _Run(job, fleet, pcs, load, np.random.default_rng(seed))
    cells = run._drawn()
    assert cells.shape == (len(load.groups), 4)
    assert np.all(cells.sum(1) <= load.groups)
    assert np.all(cells.sum(0) <= run._there)
    if load.cohort == clients:
        assert np.array_equal(cells.sum(0), run._there)


def test_groups_are_those_of_the_roster() -> None:
    for clients in (3, 99, 100, 101, 250, 1001):
        load = make_load(a_job(), clients, VALUES)
        assert load.groups.sum() == clients
        assert load.groups.max() <= 100
        assert load.groups.max() - load.groups.min() <= 1


def test_a_run_waits_for_the_hour_at_which_enough_are_there() -> None:
    night = [0.0] * 10 + [1.0] * 8 + [0.0] * 6
    run = a_run(a_job(), a_fleet(available=night, start_hour=20), 10)
    assert run.why is None
    assert run.waited == pytest.approx(14 * 3600)  # from 20 to 10 o'clock
    assert run.void == 0


def test_pcs_that_leave_within_a_round_make_it_void() -> None:
    evening = [0.0] * 9 + [1.0] * 8 + [0.0] * 7  # until 17 o'clock
    slow = {**ONE, "texts_per_second": 1000 / 7200}  # two hours
    fleet = a_fleet(slow, available=evening, start_hour=16)
    run = a_run(a_job(rounds=1), fleet, 10)
    assert run.void == 1
    assert run.why is None
    assert run.seconds > 17 * 3600  # the next morning


# What must never be the other way round.


@settings(max_examples=30)
@given(
    st.floats(1, 1000), st.floats(1, 1000), st.floats(0, 1000), st.floats(1, 50),
    st.sampled_from([3, 10, 120]), st.sampled_from(["plain", "secagg"]),
)  # fmt: skip
def test_a_slower_network_is_never_faster(
    down: float, up: float, latency: float, slower: float, clients: int, kind: str
) -> None:
    job = a_job(aggregation={"kind": kind})

    def seconds(factor: float) -> float:
        line = {"down_mbit": down / factor, "up_mbit": up / factor, "latency_ms": latency * factor}
        return a_run(job, a_fleet(*of_two(**line)), clients).seconds

    assert seconds(slower) >= seconds(1.0) - 1e-9


@settings(max_examples=30)
@given(st.floats(1, 10_000), st.floats(1, 50), st.sampled_from([3, 10, 120]))
def test_a_slower_server_or_pc_is_never_faster(speed: float, slower: float, clients: int) -> None:
    def seconds(factor: float, server: float) -> float:
        own = {**ONE, "texts_per_second": speed / factor}
        line = {**INSTANT, "down_mbit": 100 / server, "message_seconds": 0.01 * server}
        return a_run(a_job(), a_fleet(own, server=line), clients).seconds

    assert seconds(slower, 1.0) >= seconds(1.0, 1.0)
    assert seconds(1.0, slower) >= seconds(1.0, 1.0)


def void_share(chance: float, attempts: int, seed: int = 1) -> float:
    """Of attempts of ten PCs, of which seven must upload."""
    federation = {"spare_attempts": 10_000, "clients": 10}
    job = a_job(rounds=attempts, federation=federation)
    run = a_run(job, a_fleet(dropout={"mask": chance}), 10, seed)
    tried = run.void + len(run.rounds)
    return run.void / tried


def test_void_rounds_are_as_frequent_as_the_binomial_law_says() -> None:
    for chance in (0.1, 0.25, 0.4):
        wanted = 1 - float(binom.sf(6, 10, 1 - chance))
        attempts = 500
        error = 4 * math.sqrt(wanted * (1 - wanted) / attempts)
        assert void_share(chance, attempts) == pytest.approx(wanted, abs=error)


def test_more_dropouts_never_mean_fewer_void_rounds() -> None:
    shares = [void_share(chance, 150) for chance in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)]
    assert shares[0] == 0.0
    assert all(more >= fewer for fewer, more in itertools.pairwise(shares))


@pytest.mark.parametrize("stage", ["ready", "mask", "agree", "unmask"])
def test_each_stage_that_everybody_leaves_ends_the_run(stage: str) -> None:
    job = a_job(federation={"spare_attempts": 4})
    run = a_run(job, a_fleet(dropout={stage: 1.0}), 10)
    assert run.why is not None
    assert run.rounds == []
    assert run.void == (0 if stage == "ready" else 7)


def test_a_deadline_that_nobody_can_meet_gives_void_rounds() -> None:
    job = a_job(federation={"round_timeout": 50.0, "spare_attempts": 4})
    run = a_run(job, a_fleet(), 10)  # a round takes 100 s
    assert run.void == 7
    assert "7 void rounds: all 7 attempts" in str(run.why)
    assert run.seconds == pytest.approx(7 * 50, rel=0.1)


def test_a_deadline_that_the_slow_class_misses_costs_its_updates() -> None:
    job = a_job(aggregation=PLAIN, federation={"round_timeout": 150.0})  # 500 s after 100 s
    run = a_run(job, a_fleet(*of_two()), 10)
    assert run.arrived == [5, 5, 5]
    assert run.rounds[-1] == pytest.approx(100 + 150, rel=0.02)


def test_a_vanished_pc_is_waited_for_until_it_is_noticed() -> None:
    quick = a_run(a_job(), a_fleet(dropout={"agree": 0.2, "noticed_after": 20.0}), 30)
    slow = a_run(a_job(), a_fleet(dropout={"agree": 0.2, "noticed_after": 600.0}), 30)
    assert np.mean([p[2] for p in slow.phases]) > 10 * np.mean([p[2] for p in quick.phases])


@pytest.mark.parametrize("available", [0.0, 0.3])
def test_a_fleet_that_is_never_there_says_so(available: float) -> None:
    run = a_run(a_job(), a_fleet(available=available), 200)
    assert "too few PCs are there" in str(run.why)
    assert "\n" not in str(run.why)
    assert run.rounds == []
    assert run.seconds >= 30 * 24 * 3600


def test_a_small_draw_of_a_large_fleet_tries_others() -> None:
    """Where half are there, no group of 70 % is; with a lower threshold some are."""
    job = a_job(
        federation={"fraction": 0.01},
        aggregation={"kind": "secagg", "threshold": 0.5, "colluding": 1},
    )
    run = a_run(job, a_fleet(available=0.55), 1000)
    assert run.why is None
    assert all(5 <= arrived <= 10 for arrived in run.arrived)


# Size.


def test_a_million_pcs_take_little_memory() -> None:
    job = a_job(rounds=2)
    fleet = a_fleet(*of_two(available=0.95), dropout={"mask": 0.02, "agree": 0.01})
    pcs, _ = make_pcs(job, fleet, Path(), 65.0)
    load = make_load(job, 1_000_000, VALUES)
    tracemalloc.start()
    try:
        run = events.simulate_run(job, fleet, pcs, load, np.random.default_rng(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.why is None
    assert 0.85e6 < run.arrived[0] < 0.95e6
    assert peak < 48 << 20  # 48 bytes for each PC


def test_the_same_seed_gives_the_same_run() -> None:
    fleet = a_fleet(*of_two(available=0.9), dropout={"mask": 0.1, "ready": 0.05, "unmask": 0.1})
    first, again, other = (a_run(a_job(), fleet, 150, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
