"""The coordinator among PCs that answer in any order, twice, wrongly, or never.

Updates travel plain here; what secure aggregation adds is in test_sealed_round.py.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from fedaipc.coordinator import exchange, membership
from fedaipc.coordinator.checkpoint import Checkpoint
from fedaipc.errors import BudgetExhausted, RoundError, RunOver
from fedaipc.protocol.messages import EXHAUSTED, REFUSED, UNABLE, encode_refusal, encode_update
from tests.support import coordinator as fakes
from tests.support.coordinator import SIZE, Answer, FakeGrid, Ran, attempt, roster_of

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.protocol.messages import MaskRequest

Pcs = Any


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_START_SECONDS", 0.5)


def run(folder: Path, grid: FakeGrid, *changes: str, **named: Any) -> Ran:
    return fakes.run(
        folder,
        grid,
        "aggregation.kind=plain",
        "federation.stage_timeout=2",
        "federation.round_timeout=3",
        *changes,
        **named,
    )


# Order and repetition


@pytest.mark.parametrize("weighting", ["equal", "size-class"])
def test_replies_in_any_order_give_the_same_model(tmp_path: Path, pcs: Pcs, weighting: str) -> None:
    vectors = set()
    for seed in range(6):
        grid = FakeGrid(pcs(5), seed=seed, batch=1 + seed % 3)
        ran = run(tmp_path / str(seed), grid, f"federation.weighting={weighting}")
        assert ran.error is None
        vectors.add(ran.checkpoint.vector.tobytes())
    assert len(vectors) == 1


def test_the_model_moves_by_the_weighted_mean_of_the_updates(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(5)
    ran = run(tmp_path, FakeGrid(members), "rounds=1")
    weights = [pc.size_class for pc in members]
    updates = [pc.update(1) for pc in members]
    expected = np.average(updates, axis=0, weights=weights)
    np.testing.assert_allclose(ran.checkpoint.vector, expected, atol=1e-6)


def test_repeated_and_old_replies_count_once(tmp_path: Path, pcs: Pcs) -> None:
    clean = run(tmp_path / "a", FakeGrid(pcs(5)))
    noisy = run(tmp_path / "b", FakeGrid(pcs(5), noise=3))
    assert [r.arrived for r in noisy.rounds] == [5, 5]
    assert noisy.checkpoint.vector.tobytes() == clean.checkpoint.vector.tobytes()


def test_every_pc_gets_the_same_request(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(5)
    run(tmp_path, FakeGrid(members))
    for number in range(2):
        requests = [pc.asked[number] for pc in members]
        assert {(r.round, attempt(r), r.job, r.vector.tobytes()) for r in requests} == {
            (number + 1, number + 1, requests[0].job, requests[0].vector.tobytes())
        }


# Broken replies


def zeros(size: int) -> RecordDict:
    return encode_update(bytes(4 * size))


BROKEN: dict[str, Answer] = {
    "an error": Error(code=100, reason=""),
    "an error with a text": Error(code=7, reason="boom"),
    "nothing": RecordDict(),
    "an empty word": RecordDict({"refusal": ConfigRecord({"word": ""})}),
    "an empty text beside": RecordDict({"x": ConfigRecord({"y": ""}), **zeros(SIZE)}),
    "another word": encode_refusal("perhaps"),
    "metrics": RecordDict({"update": MetricRecord({"frame": 1.0})}),
    "too short": zeros(SIZE - 1),
    "too long": zeros(SIZE + 1),
    "a byte too long": encode_update(bytes(4 * SIZE + 1)),
    "empty": zeros(0),
    "an array": RecordDict({"update": ArrayRecord({"frame": Array(np.zeros(SIZE, np.float32))})}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reply_costs_only_itself(tmp_path: Path, pcs: Pcs, name: str) -> None:
    whole = pcs(5)
    whole[0].mask = lambda _: Error(code=100)
    without = run(tmp_path / "a", FakeGrid(whole), "rounds=1")
    broken = pcs(5)
    broken[0].mask = lambda _: BROKEN[name]
    ran = run(tmp_path / "b", FakeGrid(broken), "rounds=1")
    assert ran.error is None
    (result,) = ran.rounds
    assert (result.asked, result.arrived, result.declined, result.dropped) == (5, 4, 0, 1)
    assert ran.checkpoint.vector.tobytes() == without.checkpoint.vector.tobytes()


@pytest.mark.parametrize("name", BROKEN)
def test_a_pc_that_describes_itself_wrongly_is_left_out(
    tmp_path: Path, pcs: Pcs, name: str
) -> None:
    members = pcs(3)
    members[1].setup = lambda _: BROKEN[name]
    ran = run(tmp_path, FakeGrid(members), "rounds=1")
    assert ran.error is None
    assert [len(pc.asked) for pc in members] == [1, 0, 1]


def test_of_two_pcs_of_one_name_the_second_is_left_out(
    tmp_path: Path, pcs: Pcs, caplog: pytest.LogCaptureFixture
) -> None:
    """A name is a PC's own word: to end the run for it would let anybody end it."""
    members = pcs(3)
    members[2].name = "pc-0"
    members[2].describe()
    ran = run(tmp_path, FakeGrid(members), "rounds=1")
    assert ran.error is None
    assert "two PCs have the name pc-0" in caplog.text
    assert [r.asked for r in ran.rounds] == [2]


def test_nobody_there_is_an_error(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(2)
    for pc in members:
        pc.setup = lambda _: Error(code=100)
    ran = run(tmp_path, FakeGrid(members))
    assert isinstance(ran.error, RoundError)
    assert "no PC can take part" in str(ran.error)


# Too few


def test_a_void_round_leaves_the_model_and_spends_an_attempt(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(3)
    members[0].mask = lambda request, pc=members[0]: (
        Error(code=100) if attempt(request) == 2 else pc.usual_mask(request)
    )
    ran = run(tmp_path, FakeGrid(members), "federation.min_clients=3", "rounds=3")
    assert ran.error is None
    assert [(r.round, r.attempt, r.void, r.arrived) for r in ran.rounds] == [
        (1, 1, False, 3), (2, 2, True, 2), (2, 3, False, 3), (3, 4, False, 3),
    ]  # fmt: skip
    assert ran.rounds[1].validation is None
    assert ran.scored == 3
    before, after = members[1].asked[1:3]
    assert before.vector.tobytes() == after.vector.tobytes()
    assert ran.rounds[2].epsilon > ran.rounds[1].epsilon > ran.rounds[0].epsilon
    unbroken = run(tmp_path / "b", FakeGrid(pcs(3)), "rounds=3")
    assert ran.checkpoint.vector.tobytes() == unbroken.checkpoint.vector.tobytes()


def test_too_many_void_rounds_end_the_run(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(3)
    for pc in members[:2]:
        pc.mask = lambda _: Error(code=100)
    changes = ("federation.min_clients=2", "rounds=1", "federation.spare_attempts=1")
    ran = run(tmp_path, FakeGrid(members), *changes)
    assert isinstance(ran.error, RunOver)
    assert "allows no more than 2 attempts" in str(ran.error)
    assert [r.void for r in ran.rounds] == [True] * 2
    assert len(members[2].asked) == 2
    np.testing.assert_array_equal(ran.checkpoint.vector, 0)
    again = run(tmp_path, FakeGrid(members), *changes)
    assert isinstance(again.error, RunOver)
    assert len(members[2].asked) == 2


def test_the_attempt_is_on_the_disk_before_anything_is_sent(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(2)

    def answer(request: MaskRequest) -> Answer:
        assert json.loads((tmp_path / "counters.json").read_text())["attempt"] == attempt(request)
        return members[0].usual_mask(request)

    members[0].mask = answer
    assert run(tmp_path, FakeGrid(members)).error is None


def test_a_coordinator_that_comes_back_uses_new_attempts_and_ends_alike(
    tmp_path: Path, pcs: Pcs
) -> None:
    class Killed(BaseException):
        pass

    members = pcs(3)

    def kill(request: MaskRequest) -> Answer:
        if attempt(request) == 2:
            raise Killed
        return members[1].usual_mask(request)

    members[1].mask = kill
    changes = ("rounds=3", "server.kind=fedadam")
    with pytest.raises(Killed):
        run(tmp_path / "a", FakeGrid(members), *changes)
    ran = run(tmp_path / "a", FakeGrid(members), *changes)
    assert ran.error is None
    for pc in members:
        attempts = [attempt(request) for request in pc.asked]
        assert attempts == sorted(set(attempts))
    unbroken = run(tmp_path / "b", FakeGrid(pcs(3)), *changes)
    assert ran.checkpoint.vector.tobytes() == unbroken.checkpoint.vector.tobytes()
    assert [r.round for r in ran.checkpoint.rounds] == [1, 2, 3]


# Who is asked


def test_a_fraction_asks_a_public_cohort_that_anyone_can_recompute(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    grid = FakeGrid(members)
    ran = run(tmp_path, grid, "federation.fraction=0.4", "rounds=6")
    assert ran.error is None
    for number in range(1, 7):
        asked = {pc.identity for pc in members if number in map(attempt, pc.asked)}
        (cohort,) = roster_of(members).groups(number, 4)
        assert asked == set(cohort)
    assert len([pc for pc in members if pc.asked]) > 4


def test_only_the_named_pcs_are_asked(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(4)
    assert run(tmp_path, FakeGrid(members), "federation.only=[1, 3]").error is None
    assert [len(pc.asked) for pc in members] == [0, 2, 0, 2]


def test_a_pc_with_no_budget_is_not_asked_again_and_the_run_goes_on(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(3)
    members[0].mask = lambda request, pc=members[0]: (
        encode_refusal(EXHAUSTED) if request.round == 2 else pc.usual_mask(request)
    )
    ran = run(tmp_path, FakeGrid(members), "rounds=4")
    assert ran.error is None
    assert [len(pc.asked) for pc in members] == [2, 4, 4]
    assert [(r.asked, r.arrived, r.declined) for r in ran.rounds] == [
        (3, 3, 0), (3, 2, 1), (2, 2, 0), (2, 2, 0),
    ]  # fmt: skip


def test_a_pc_that_is_not_able_once_is_asked_again(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(2)
    members[0].mask = lambda request, pc=members[0]: (
        encode_refusal(UNABLE) if request.round == 1 else pc.usual_mask(request)
    )
    ran = run(tmp_path, FakeGrid(members))
    assert ran.error is None
    assert [len(pc.asked) for pc in members] == [2, 2]


def test_when_all_budgets_are_spent_the_run_says_so_and_keeps_its_model(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(3)
    for pc in members:
        pc.mask = lambda request, pc=pc: (
            encode_refusal(EXHAUSTED) if request.round == 2 else pc.usual_mask(request)
        )
    ran = run(tmp_path, FakeGrid(members), "rounds=4")
    assert isinstance(ran.error, BudgetExhausted)
    assert [(r.round, r.void) for r in ran.rounds] == [(1, False), (2, True)]
    assert [len(pc.asked) for pc in members] == [2, 2, 2]
    kept = Checkpoint.load(tmp_path, "0" * 64)
    assert kept is not None
    assert kept.round == 1
    assert np.abs(kept.vector).sum() > 0


def test_when_everybody_refuses_the_run_ends_at_once(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(3)
    for pc in members:
        pc.mask = lambda _: encode_refusal(REFUSED)
    ran = run(tmp_path, FakeGrid(members))
    assert isinstance(ran.error, RoundError)
    assert "every PC refuses" in str(ran.error)
    assert [len(pc.asked) for pc in members] == [1, 1, 1]


# Silence


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        self.looks += 1
        assert self.looks < 10_000, "it waits without end"
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (exchange, membership):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_silent_pc_is_given_up_and_the_round_goes_on(
    tmp_path: Path, pcs: Pcs, clock: Clock
) -> None:
    members = pcs(3)
    members[1].mask = lambda _: None
    ran = run(tmp_path, FakeGrid(members), "federation.round_timeout=30")
    assert ran.error is None
    assert [(r.arrived, r.dropped) for r in ran.rounds] == [(2, 1), (2, 1)]
    assert 60 <= clock.now < 70


def test_a_pc_that_only_repeats_old_replies_counts_as_silence(
    tmp_path: Path, pcs: Pcs, clock: Clock
) -> None:
    members = pcs(3)
    members[1].mask = lambda _: None
    grid = FakeGrid(members, noise=1)
    ran = run(tmp_path, grid, "federation.round_timeout=30", "rounds=1")
    assert ran.error is None
    assert [(r.arrived, r.dropped) for r in ran.rounds] == [(2, 1)]
    assert 30 <= clock.now < 35


def test_pcs_that_never_connect_do_not_hold_the_run_up_for_good(
    tmp_path: Path, pcs: Pcs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "_START_SECONDS", 60.0)
    late_pcs = pcs(2)
    grid = FakeGrid(late_pcs)
    seen = grid.get_node_ids
    grid.pcs, late = dict(list(grid.pcs.items())[:1]), grid.pcs

    def get_node_ids() -> Any:
        if clock.now > 5:
            grid.pcs = late
        return seen()

    grid.get_node_ids = get_node_ids
    ran = run(tmp_path, grid, members=[late_pcs[1], *pcs(7)])
    assert ran.error is None
    assert [r.asked for r in ran.rounds] == [2, 2]
    assert 55 <= clock.now <= 65
