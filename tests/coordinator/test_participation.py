"""One PC must not cost the others: who is asked, who is left out, and what each was charged."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, RecordDict

from fedaipc.coordinator import membership, participation
from fedaipc.coordinator.checkpoint import Checkpoint
from fedaipc.coordinator.participation import Participation
from fedaipc.errors import BudgetExhausted, RoundError, RunOver
from fedaipc.privacy.budget import best_filter, charged_epsilon
from fedaipc.protocol.job import make_job
from fedaipc.protocol.messages import (
    AGREE,
    EXHAUSTED,
    REFUSED,
    UNABLE,
    UNMASK,
    Readiness,
    encode_answer,
    encode_refusal,
)
from fedaipc.secagg.round_keys import Group
from fedaipc.secagg.terms import Terms
from tests.support import coordinator as fakes
from tests.support.coordinator import Answer, FakeGrid, FakePc, Ran, attempt
from tests.support.jobs import LABELS, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.protocol.messages import MaskRequest, RoundRequest

Pcs = Any


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_START_SECONDS", 0.5)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves the clock by which PCs rest."""

    def move(seconds: float) -> None:
        clock = SimpleNamespace(time=lambda: time.time() + seconds)
        monkeypatch.setattr(participation, "time", clock)

    return move


def run(folder: Path, members: list[FakePc], *changes: str) -> Ran:
    quick = ("federation.stage_timeout=2", "federation.round_timeout=3")
    return fakes.run(folder, FakeGrid(members), *quick, *changes)


def refuse(word: str, charged: int | None = 0) -> Any:
    return lambda _: Readiness(word, charged).encode()


def first_two(offer: RoundRequest, pc: FakePc) -> bool:
    """Whether the PC is one of the first two of those that were drawn and are there."""
    return Terms.decode(offer.terms).participants.index(pc.identity) < 2


def crash(_: MaskRequest) -> Answer:
    return Error(code=100, reason="")


# Before anybody is charged


@pytest.mark.parametrize("word", [REFUSED, UNABLE])
def test_a_refusal_without_which_no_sum_is_had_costs_nobody_and_is_named(
    tmp_path: Path, pcs: Pcs, word: str
) -> None:
    """Three PCs are the fewest that can be summed, and one has an owner who allows less."""
    members = pcs(3)
    members[1].ready = refuse(word)
    for _ in range(3):  # the server tries again, for days perhaps
        ran = run(tmp_path, members)
        assert type(ran.error) is RoundError
        assert "pc-1" in str(ran.error)
        assert "min_clients" not in str(ran.error)
    assert [pc.asked for pc in members] == [[], [], []]
    assert ran.rounds == []
    assert not (tmp_path / "uploads").exists()  # what the others gave out is of no use any more
    members[1].ready = None  # the owner has changed the rule: no attempt was used up
    ran = run(tmp_path, members)
    assert ran.error is None
    assert [r.attempt for r in ran.rounds] == [1, 2]


def test_a_pc_that_refused_for_good_is_not_asked_again_and_the_others_go_on(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(5)
    members[2].ready = refuse(REFUSED)
    ran = run(tmp_path, members, "rounds=4")
    assert ran.error is None
    assert len(members[2].offered) == 1
    assert [pc.charged for pc in members] == [4, 4, 0, 4, 4]
    assert [(r.asked, r.arrived, r.declined, r.dropped) for r in ran.rounds] == [
        (5, 4, 1, 0), (4, 4, 0, 0), (4, 4, 0, 0), (4, 4, 0, 0),
    ]  # fmt: skip


def test_a_pc_that_is_not_able_now_is_asked_again(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(5)
    members[2].ready = lambda offer: members[2].usual_ready(
        offer, UNABLE if offer.round == 1 else None, 0
    )
    ran = run(tmp_path, members, "rounds=3")
    assert ran.error is None
    assert [pc.charged for pc in members] == [3, 3, 2, 3, 3]


def test_all_agree_to_the_very_terms_that_the_round_then_has(tmp_path: Path, pcs: Pcs) -> None:
    """Where one declines, terms stay as they are, and the others are asked once."""
    members = pcs(6)
    members[5].ready = refuse(REFUSED)
    members[0].ready = refuse(UNABLE)
    ran = run(tmp_path, members, "rounds=1", "aggregation.threshold=0.6")
    assert ran.error is None
    for pc in members[1:5]:
        (offer,), (request,) = pc.offered, pc.asked
        assert offer.terms == request.terms
        group = Group.of(Terms.decode(request.terms), request.round_keys)
        assert set(group.members) == {one.identity for one in members[1:5]}
    assert [pc.charged for pc in members] == [0, 1, 1, 1, 1, 0]


def test_where_more_decline_than_shares_can_be_spared_the_others_are_asked_again(
    tmp_path: Path, pcs: Pcs
) -> None:
    """Half of ten may be missing from a sum, and it takes six shares of ten: so other terms."""
    members = pcs(10)
    for pc in members[:5]:
        pc.ready = refuse(UNABLE)
    ran = run(tmp_path, members, "rounds=1", "aggregation.threshold=0.5")
    assert ran.error is None
    assert [(r.arrived, r.declined) for r in ran.rounds] == [(5, 5)]
    for pc in members[5:]:
        first, second = (Terms.decode(offer.terms) for offer in pc.offered)
        assert (first.thresholds.count, second.thresholds.count) == (10, 5)
        assert [request.terms for request in pc.asked] == [pc.offered[1].terms]


BROKEN: list[Answer] = [
    None,
    Error(code=100, reason=""),
    RecordDict(),
    RecordDict({"ready": ConfigRecord()}),
    RecordDict({"ready": ConfigRecord({"charged": -1})}),
    RecordDict({"ready": ConfigRecord({"charged": 1.5})}),
    RecordDict({"ready": ConfigRecord({"charged": 0, "refusal": "perhaps"})}),
]


@pytest.mark.parametrize("answer", BROKEN, ids=range(len(BROKEN)))
def test_who_does_not_say_that_it_takes_part_does_not(
    tmp_path: Path, pcs: Pcs, answer: Answer
) -> None:
    members = pcs(5)
    members[4].ready = lambda _: answer
    ran = run(tmp_path, members, "rounds=1", "federation.round_timeout=0.3")
    assert ran.error is None
    assert [pc.charged for pc in members] == [1, 1, 1, 1, 0]
    assert [(r.asked, r.arrived, r.dropped) for r in ran.rounds] == [(5, 4, 1)]


def test_when_all_refuse_the_run_is_over_and_nobody_was_charged(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(4)
    for pc in members:
        pc.ready = refuse(REFUSED)
    ran = run(tmp_path, members)
    assert isinstance(ran.error, RunOver)
    assert "every PC refuses" in str(ran.error)
    assert not any(pc.asked for pc in members)


def test_budgets_that_are_spent_end_the_run_before_it_charges_the_others(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(3)
    members[0].ready = lambda offer: members[0].usual_ready(
        offer, EXHAUSTED if offer.round == 2 else None
    )
    ran = run(tmp_path, members)
    assert isinstance(ran.error, BudgetExhausted)
    assert [pc.charged for pc in members] == [1, 1, 1]


# Who makes attempts void


def test_pcs_that_crash_in_each_round_are_left_out_after_a_second_chance(
    tmp_path: Path, pcs: Pcs, later: Any
) -> None:
    """Two of five run out of memory: four are needed, so each attempt with both is lost."""
    members = pcs(5)
    for pc in members[:2]:
        pc.mask = crash
    ran = run(tmp_path, members, "rounds=1")
    assert type(ran.error) is RoundError
    assert [r.void for r in ran.rounds] == [True, True]
    for _ in range(3):  # the server comes back and tries
        ran = run(tmp_path, members, "rounds=1")
        assert "pc-0 did not do its part in 2 void attempts" in str(ran.error)
        assert "pc-1 did not do its part in 2 void attempts" in str(ran.error)
    assert [pc.charged for pc in members] == [2, 2, 2, 2, 2]
    later(3600)
    members[0].mask = None  # somebody gave it more memory
    ran = run(tmp_path, members, "rounds=1")
    assert ran.error is None
    assert [r.arrived for r in ran.rounds] == [4]
    assert [pc.charged for pc in members] == [3, 3, 3, 3, 3]


def test_where_the_others_suffice_they_go_on_without_those_that_made_it_void(
    tmp_path: Path, pcs: Pcs
) -> None:
    """Seven of ten are needed: two always crash, and two others were away for a moment."""
    members = pcs(10)
    for pc in members[:4]:
        pc.mask = lambda request, pc=pc: (
            crash(request) if attempt(request) == 1 or pc.number < 2 else pc.usual_mask(request)
        )
    ran = run(tmp_path, members, "rounds=4")
    assert ran.error is None
    # 1: four are silent. 2: six are too few, so all get another chance, and two fail. Then eight.
    assert [r.void for r in ran.rounds] == [True, False, False, False, False]
    assert [pc.charged for pc in members] == [2, 2, 5, 5, 5, 5, 5, 5, 5, 5]


def test_a_member_that_vanishes_before_the_sum_is_unmasked_rests_too(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(3)
    members[2].member = lambda *_: None
    ran = run(tmp_path, members, "federation.stage_timeout=0.3")
    assert "pc-2 did not do its part in 2 void attempts" in str(ran.error)
    assert [pc.charged for pc in members] == [2, 2, 2]


def failures(ran: Ran, members: list[FakePc]) -> dict[int, int]:
    """How often each PC did not do its part, by number."""
    numbers = {pc.identity: pc.number for pc in members}
    return {numbers[pc]: count for pc, (count, _) in ran.checkpoint.failures.items()}


def test_nobody_rests_for_a_round_in_which_others_sent_too_few_updates(
    tmp_path: Path, pcs: Pcs
) -> None:
    """Members that were never asked have not been silent."""
    members = pcs(5)
    for pc in members[:2]:
        pc.mask = crash
    ran = run(tmp_path, members, "rounds=1")
    assert failures(ran, members) == {0: 2, 1: 2}


def test_a_pc_that_declines_after_it_said_yes_rests_where_that_made_the_round_void(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    for pc in members[:4]:
        pc.mask = lambda _: encode_refusal(UNABLE)
    ran = run(tmp_path, members, "rounds=2")
    assert failures(ran, members) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert type(ran.error) is RoundError
    assert "pc-0 did not do its part in 2 void attempts" in str(ran.error)
    assert [pc.charged for pc in members[4:]] == [2] * 6


@pytest.mark.parametrize("stage", [AGREE, UNMASK])
def test_a_member_that_answers_with_garbage_rests(tmp_path: Path, pcs: Pcs, stage: str) -> None:
    members = pcs(3)
    members[0].member = lambda asked, request: (
        encode_answer(b"x") if asked == stage else members[0].usual_member(asked, request)
    )
    ran = run(tmp_path, members)
    assert failures(ran, members) == {0: 2}
    assert [pc.charged for pc in members] == [2, 2, 2]


@pytest.mark.slow
def test_a_pc_that_makes_every_other_attempt_void_rests_longer_each_time(
    tmp_path: Path, pcs: Pcs, later: Any
) -> None:
    """A good attempt does not wash a void one away."""
    members = pcs(3)
    members[0].mask = lambda request: (
        crash(request) if attempt(request) % 2 else members[0].usual_mask(request)
    )
    ran, waits = run(tmp_path, members, "rounds=9"), []
    for hours in range(1, 200):
        waits.append(len(members[1].asked))
        if ran.error is None or isinstance(ran.error, RunOver):
            break
        later(hours * 400.0)
        ran = run(tmp_path, members, "rounds=9")
    counts = failures(ran, members)
    assert counts[0] >= 6
    assert waits[10] < waits[100]  # it takes hours, and nobody was charged meanwhile
    assert waits[10] <= 7


def test_a_pc_that_never_says_whether_it_takes_part_costs_its_time_once(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    members[0].ready = lambda _: None
    changes = ("federation.round_timeout=2", "federation.stage_timeout=0.2")
    ran = run(tmp_path, members, "rounds=4", *changes)
    assert ran.error is None
    assert [r.phases["setup"] >= 2 for r in ran.rounds] == [True, False, False, False]
    assert {offer.round for offer in members[0].offered} == {1}  # then it rests
    assert failures(ran, members) == {}


def test_a_pc_that_is_away_for_a_moment_is_asked_in_the_next_round(
    tmp_path: Path, pcs: Pcs
) -> None:
    """Nobody had to wait for it, so there is nothing to rest for."""
    members = pcs(10)
    members[0].ready = lambda offer: (
        Error(code=100, reason="") if offer.round == 1 else members[0].usual_ready(offer)
    )
    ran = run(tmp_path, members, "rounds=2")
    assert ran.error is None
    assert [pc.charged for pc in members] == [1, *[2] * 9]


def test_keys_that_run_out_while_pcs_make_ready_charge_nobody(
    tmp_path: Path, pcs: Pcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = pcs(10)
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(membership, "time", clock)

    def slow(offer: RoundRequest) -> Answer:  # it answers a day later
        clock.time = lambda: time.time() + 24 * 3600
        return members[0].usual_ready(offer)

    members[0].ready = slow
    ran = run(tmp_path, members, "rounds=1")
    assert type(ran.error) is RoundError
    assert "has keys that end soon" in str(ran.error)
    assert not any(pc.asked for pc in members)


def test_one_spent_budget_does_not_end_a_run_that_can_do_without(tmp_path: Path, pcs: Pcs) -> None:
    """Even where others are not able for a moment."""
    members = pcs(10)
    members[0].ready = refuse(EXHAUSTED)
    for pc in members[1:4]:
        pc.ready = lambda offer, pc=pc: pc.usual_ready(
            offer, UNABLE if offer.round == 2 else None, 1
        )
    ran = run(tmp_path, members, "rounds=2")
    assert type(ran.error) is RoundError
    assert "pc-0 has spent its budget" in str(ran.error)
    for pc in members[1:4]:
        pc.ready = None
    assert run(tmp_path, members, "rounds=2").error is None


def test_one_refusal_does_not_speak_for_pcs_that_are_away(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(6)
    members[0].ready = refuse(REFUSED)
    ran = fakes.run(tmp_path, FakeGrid(members[:1]), members=members[1:])
    assert type(ran.error) is RoundError


def test_pcs_that_are_made_to_vanish_do_not_rest(tmp_path: Path, pcs: Pcs) -> None:
    """A simulation of drop-outs goes through its attempts."""
    members = pcs(3)
    members[0].mask = lambda request: (
        crash(request) if attempt(request) < 4 else members[0].usual_mask(request)
    )
    ran = run(tmp_path, members, "rounds=1", "federation.dropout_rate=0.5")
    assert ran.error is None
    assert [r.void for r in ran.rounds] == [True, True, True, False]


def test_a_run_that_waits_uses_up_no_attempt_and_gets_new_keys(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(3)
    for _ in range(5):
        ran = fakes.run(tmp_path, FakeGrid(members[:2]), members=members[2:])
        assert "too few PCs" in str(ran.error)
    counters = json.loads((tmp_path / "counters.json").read_text())
    assert counters == {"attempt": 0, "epoch": 5}
    assert run(tmp_path, members).error is None


def test_a_pc_that_was_proved_wrong_is_named_so_while_it_rests() -> None:
    liar = b"a"
    there = SimpleNamespace(members={liar: SimpleNamespace(name="pc-0")}, late=set)
    kept = Checkpoint(layout_hash="", vector=np.zeros(1, dtype=np.float32))
    kept.banned.add(liar)
    kept.failures[liar] = 2, time.time() + 100
    asked = Participation(cast("Any", there), kept, {liar}, lambda _: False, ["pc-0"])
    told = str(asked.too_few("1 of 3, and 3 are needed"))
    assert "; pc-0 was proved wrong and is left out of this run (if it is waited for" in told
    assert "rests" not in told


def test_a_fleet_that_waits_names_who_is_not_there(tmp_path: Path, pcs: Pcs) -> None:
    """It goes on by itself: nobody has to resume it."""
    members = pcs(4)
    ran = fakes.run(tmp_path, FakeGrid(members[:2]), members=members[2:], fleet=True)
    assert str(ran.error) == (
        "too few PCs take part, and none was charged: 2 of 4, and 3 are needed; "
        "not there: pc-2, pc-3; it goes on by itself when more do"
    )
    ran = fakes.run(tmp_path, FakeGrid([]), members=members, fleet=True)
    assert "0 of 4, and 3 are needed; not there: pc-0, pc-1, pc-2, pc-3;" in str(ran.error)
    many = pcs(9)
    ran = fakes.run(tmp_path / "many", FakeGrid(many[:2]), members=many[2:], fleet=True)
    assert "not there: pc-2, pc-3, pc-4, pc-5, pc-6, 2 more;" in str(ran.error)
    changes = ("federation.fraction=0.4",)
    ran = fakes.run(tmp_path / "few", FakeGrid(many[:1]), *changes, members=many[1:], fleet=True)
    assert " of 4 that were drawn, and 3 are needed" in str(ran.error)


def test_a_draw_that_too_few_answer_is_drawn_anew(tmp_path: Path, pcs: Pcs) -> None:
    """Each attempt of a fraction asks others; the ones of a draw may be gone for good."""
    members = pcs(9)
    for pc in members:  # two of each of the first two draws are not able
        pc.ready = lambda offer, pc=pc: pc.usual_ready(
            offer,
            UNABLE if Terms.decode(offer.terms).number < 3 and first_two(offer, pc) else None,
            0,
        )
    changes = ("federation.fraction=0.4", "rounds=1")
    for _ in range(2):
        assert type(run(tmp_path, members, *changes).error) is RoundError
    ran = run(tmp_path, members, *changes)
    assert ran.error is None
    assert sum(pc.charged for pc in members) == 4
    assert [(r.attempt, r.charged) for r in ran.rounds] == [(3, 1)]


def test_waiting_for_pcs_ends_no_run_whatever_is_drawn(tmp_path: Path, pcs: Pcs) -> None:
    """Seven of nine are not able for a night: no draw helps, and none is used up."""
    members = pcs(9)
    for pc in members[:7]:
        pc.ready = refuse(UNABLE)
    changes = ("federation.fraction=0.4", "rounds=2")
    for _ in range(20):
        assert type(run(tmp_path, members, *changes).error) is RoundError
    for pc in members:
        pc.ready = None
    ran = run(tmp_path, members, *changes)
    assert ran.error is None
    assert ran.rounds[-1].charged <= 2


def test_draws_leave_half_of_the_spare_attempts_to_rounds_that_are_void(
    tmp_path: Path, pcs: Pcs
) -> None:
    """Two of those that are drawn are never able."""
    members = pcs(9)

    for pc in members:
        pc.ready = lambda offer, pc=pc: Readiness(
            UNABLE if first_two(offer, pc) else None, 0
        ).encode()
    changes = ("federation.fraction=0.4", "rounds=2")
    for _ in range(30):
        assert type(run(tmp_path, members, *changes).error) is RoundError
    assert json.loads((tmp_path / "counters.json").read_text())["attempt"] == 5
    assert not any(pc.asked for pc in members)


# What was charged


class Killed(BaseException):
    pass


def epsilon(charges: int) -> float:
    """Of so many attempts, as a fresh ledger of this job has it."""
    settings = tiny("federation.clients=3", "rounds=4")
    job = make_job(settings, LABELS, "0" * 64, "0123456789abcdef", (32, 64), 1)
    order = best_filter(job.schedule, job.rounds, settings.federation.lifetime_epsilon)
    return charged_epsilon(job.schedule, charges, order)


@pytest.mark.parametrize("before", [True, False], ids=["before the charge", "after it"])
def test_what_a_run_shows_as_spent_is_what_the_ledgers_were_charged(
    tmp_path: Path, pcs: Pcs, before: bool
) -> None:
    """However often the coordinator is killed, and whatever it had sent by then."""
    members, killed = pcs(3), 0

    def kill(request: MaskRequest) -> Answer:
        nonlocal killed
        if request.round == 2 and killed < 2:
            killed += 1
            if before:
                members[0].charged -= 1
            raise Killed
        return members[0].usual_mask(request)

    members[0].mask = kill
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path, members, "rounds=4")
    for pc in members:  # whatever of them had been reached
        pc.charged = 1 if before else 3
    ran = run(tmp_path, members, "rounds=4")
    assert ran.error is None
    last = ran.checkpoint.rounds[-1]
    assert last.attempt == 6
    assert last.charged == max(pc.charged for pc in members) == (4 if before else 6)
    assert last.epsilon == epsilon(last.charged)


def test_an_attempt_that_was_cut_off_counts_until_the_ledgers_say_otherwise(
    tmp_path: Path, pcs: Pcs
) -> None:
    """A PC that was charged in it and is gone for good has told nobody."""
    members = pcs(4)

    def kill(_: MaskRequest) -> Answer:
        raise Killed

    members[0].mask = kill
    with pytest.raises(Killed):
        run(tmp_path, members, "rounds=1")
    for pc in members:
        pc.charged = 0
    gone = FakeGrid(members[1:])
    ran = fakes.run(tmp_path, gone, "rounds=1", members=members[:1])
    assert ran.error is None
    assert ran.rounds[-1].charged == 1


@pytest.mark.parametrize(("word", "charges"), [(REFUSED, 0), (EXHAUSTED, 0), (UNABLE, 1)])
def test_what_a_pc_is_charged_that_declines_with_the_model_in_hand(
    tmp_path: Path, pcs: Pcs, word: str, charges: int
) -> None:
    """One that is not able may have failed to sync a ledger that holds the charge."""
    members = pcs(5)
    members[3].mask = lambda _: encode_refusal(word)
    for pc in members:
        pc.ready = lambda offer, pc=pc: pc.usual_ready(offer, charged=0)  # none knows better
    ran = run(tmp_path, members, "rounds=1")
    assert ran.error is None
    assert ran.checkpoint.charges[members[3].identity] == charges
    assert ran.checkpoint.charges[members[0].identity] == 1


def test_a_pc_cannot_make_a_run_look_dearer_than_its_attempts(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(3)
    members[1].ready = lambda offer: members[1].usual_ready(offer, charged=10**9)
    ran = run(tmp_path, members)
    assert ran.error is None
    assert [r.charged for r in ran.rounds] == [1, 2]
