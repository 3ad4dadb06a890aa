"""Sealed rounds over the real coordinator and real keys: who may vanish, lie, or come back.

The sum is compared with that of the same PCs in the open, bit for bit: both have one encoding.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedaipc.client import key_store
from fedaipc.client.client import Client
from fedaipc.coordinator import exchange, membership
from fedaipc.errors import BudgetExhausted, RoundError
from fedaipc.protocol.messages import (
    AGREE,
    EXHAUSTED,
    UNMASK,
    Description,
    MaskRequest,
    MemberRequest,
    SetupRequest,
    decode_update,
    encode_answer,
    encode_refusal,
    encode_update,
)
from fedaipc.secagg.roster import Bundle
from tests.support.coordinator import (
    GONE,
    ONE,
    SIZE,
    Answer,
    FakeGrid,
    FakePc,
    Ran,
    attempt,
    in_the_open,
    roster_of,
    run,
    vanish,
)

if TYPE_CHECKING:
    from pathlib import Path

Pcs = Any


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_START_SECONDS", 0.5)


def lose(
    folder: Path, pcs: Pcs, count: int, stage: str, lost: int, *changes: str
) -> tuple[Ran, bytes, list[FakePc]]:
    """A sealed round whose first PCs vanish in a stage; and the open one of the survivors."""
    members = pcs(count)
    # Spread over the identities, so that pairs with both signs of a mask are cut.
    victims = sorted(members, key=lambda pc: pc.identity)[1::3][:lost]
    victims += [pc for pc in members if pc not in victims][: lost - len(victims)]
    vanish(stage, victims)
    ran = run(folder / "sealed", FakeGrid(members), ONE, *changes)
    silent = victims if stage in ("setup", "mask") else []
    return ran, in_the_open(folder, pcs(count), {pc.number for pc in silent}, *changes), members


# Drop-outs


SHARES = (0, 10, 20, 30)
STAGES = ("setup", "mask", "agree", "unmask")


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "count", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (50, 100))]
)
def test_a_share_of_the_pcs_lost_in_one_stage_changes_nothing_but_its_own_part(
    tmp_path: Path, pcs: Pcs, count: int, stage: str, share: int
) -> None:
    lost = count * share // 100
    ran, expected, _ = lose(tmp_path, pcs, count, stage, lost)
    assert ran.error is None
    (result,) = ran.rounds
    there = count - lost if stage in ("setup", "mask") else count
    assert (result.arrived, result.void) == (there, False)
    assert result.asked == (count - lost if stage == "setup" else count)
    assert ran.checkpoint.vector.tobytes() == expected
    assert not (tmp_path / "sealed" / "uploads").exists()


def test_one_update_too_few_and_the_round_is_void_and_says_so(tmp_path: Path, pcs: Pcs) -> None:
    """M28: of ten PCs seven are the least."""
    members = pcs(10)
    for pc in members[:4]:
        pc.mask = lambda request, pc=pc: GONE if attempt(request) == 1 else pc.usual_mask(request)
    ran = run(tmp_path, FakeGrid(members), ONE)
    assert ran.error is None
    void, good = ran.rounds
    assert (void.void, void.arrived, good.void, good.attempt) == (True, 0, False, 2)
    assert void.why_void == "6 updates; only sums of 7 are unmasked"
    assert void.validation is None


@pytest.mark.parametrize("stage", ["agree", "unmask"])
def test_one_member_too_few_and_the_round_is_void_and_says_so(
    tmp_path: Path, pcs: Pcs, stage: str
) -> None:
    """M28: of ten PCs six hold enough shares."""
    members = pcs(10)
    vanish(stage, members[:5])
    ran = run(tmp_path, FakeGrid(members), ONE, "federation.spare_attempts=0")
    assert isinstance(ran.error, RoundError)
    (result,) = ran.rounds
    assert result.void
    assert result.why_void is not None
    assert result.why_void.startswith("5 members")
    assert "it takes 6" in result.why_void
    np.testing.assert_array_equal(ran.checkpoint.vector, 0)


def test_a_pc_that_comes_back_takes_part_again(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(7)
    first = [True]
    usual = Client(members[0].folder)

    def late(request: Any) -> Answer:
        return GONE if first and first.pop() else usual.setup(request).encode()

    members[0].setup = late
    members[1].mask = lambda request: (
        GONE if attempt(request) == 1 else members[1].usual_mask(request)
    )
    ran = run(tmp_path, FakeGrid(members))
    assert ran.error is None
    assert [(r.asked, r.arrived) for r in ran.rounds] == [(6, 5), (7, 7)]


def test_a_pc_that_comes_back_under_another_node_takes_part_again(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(7)
    grid = FakeGrid(members)

    def restart(request: MaskRequest) -> Answer:
        if attempt(request) == 1:
            del grid.pcs[members[0].node]
            members[0].node += 1000
            grid.pcs[members[0].node] = members[0]
            return GONE
        return members[0].usual_mask(request)

    members[0].mask = restart
    ran = run(tmp_path, grid, "rounds=3")
    assert ran.error is None
    assert [(r.asked, r.arrived) for r in ran.rounds] == [(7, 6), (7, 7), (7, 7)]


def test_a_pc_that_missed_the_update_can_still_give_its_word(tmp_path: Path, pcs: Pcs) -> None:
    """It has noted the round before it vanished: seven PCs, five updates, five members needed."""
    members = pcs(7)
    gone = members[:2]
    for pc in gone:

        def crash(request: MaskRequest, pc: FakePc = pc) -> Answer:
            pc.usual_mask(request)
            return GONE

        pc.mask = crash
    vanish("agree", members[2:4])
    ran = run(tmp_path, FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void) for r in ran.rounds] == [(5, False)]
    assert {AGREE, UNMASK} <= set(gone[0].asked_member)


def test_repeated_and_old_replies_count_once(tmp_path: Path, pcs: Pcs) -> None:
    clean = run(tmp_path / "a", FakeGrid(pcs()))
    noisy = run(tmp_path / "b", FakeGrid(pcs(), noise=3))
    assert [r.arrived for r in noisy.rounds] == [7, 7]
    assert noisy.checkpoint.vector.tobytes() == clean.checkpoint.vector.tobytes()


def test_silent_members_are_given_up(
    tmp_path: Path, pcs: Pcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = pcs(7)
    for pc in members[:2]:
        pc.member = lambda _stage, _request: None
    ran = run(tmp_path, FakeGrid(members), ONE, "federation.stage_timeout=0.2")
    assert ran.error is None
    assert not ran.rounds[0].void
    assert exchange._LONGEST_PAUSE <= 1


def test_new_keys_are_made_for_each_epoch_and_sum_as_well(tmp_path: Path, pcs: Pcs) -> None:
    """M10."""
    members = pcs(5)
    seen: list[bytes] = []
    usual = Client(members[0].folder)

    def watch(request: Any) -> Answer:
        described = usual.setup(request)
        seen.append(described.bundle)
        return described.encode()

    members[0].setup = watch
    changes = ("rounds=4", "aggregation.key_rounds=2")
    ran = run(tmp_path / "a", FakeGrid(members), *changes)
    assert ran.error is None
    assert len(seen) == len(set(seen)) == 2
    other = run(tmp_path / "b", FakeGrid(pcs(5)), "rounds=4")
    assert ran.checkpoint.vector.tobytes() == other.checkpoint.vector.tobytes()


def test_pcs_with_no_budget_end_the_run_before_a_sum_of_too_few(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(10)
    for pc in members[:4]:
        pc.mask = lambda request, pc=pc: (
            encode_refusal(EXHAUSTED) if request.round == 2 else pc.usual_mask(request)
        )
    ran = run(tmp_path, FakeGrid(members), "rounds=4")
    assert isinstance(ran.error, BudgetExhausted)
    assert [(r.void, r.arrived) for r in ran.rounds] == [(False, 10), (True, 0)]


def test_too_few_pcs_are_an_error_and_nobody_is_asked_to_train(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(10)
    vanish("setup", members[:4])
    ran = run(tmp_path, FakeGrid(members))
    assert isinstance(ran.error, RoundError)
    assert "too few PCs take part, and none was charged" in str(ran.error)
    assert not any(pc.asked for pc in members)


# Large rounds are cut into groups


@pytest.mark.slow
def test_more_than_a_hundred_pcs_are_summed_in_groups_as_exactly(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(104)
    vanish("mask", members[:5])
    ran = run(tmp_path / "sealed", FakeGrid(members, batch=200), ONE)
    assert ran.error is None
    assert ran.rounds[0].arrived == 99
    groups = {len(pc.asked[0].terms) for pc in members}
    assert max(groups) < 60 * 400
    expected = in_the_open(tmp_path, pcs(104), set(range(5)))
    assert ran.checkpoint.vector.tobytes() == expected


def test_a_group_that_cannot_be_opened_costs_the_others_nothing(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(102)
    first, second = roster_of(members).groups(1, 102)
    lost = [pc for pc in members if pc.identity in first][:20]
    vanish("mask", lost)
    ran = run(tmp_path / "sealed", FakeGrid(members, batch=200), ONE)
    assert ran.error is None
    assert ran.rounds[0].arrived == len(second)
    gone = {pc.number for pc in members if pc.identity in first}
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(102), gone)


# Lies


@pytest.mark.parametrize("seconds", [60, 11 * 3600], ids=["at once", "in a later round"])
def test_a_pc_whose_keys_end_too_soon_is_left_out(
    tmp_path: Path, pcs: Pcs, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """M8: else all others would refuse the round on its account."""
    members = pcs(10)

    def short(request: SetupRequest) -> Answer:
        with monkeypatch.context() as patch:
            patch.setattr(key_store, "KEY_SECONDS", seconds)
            return Client(members[0].folder).setup(request).encode()

    members[0].setup = short
    ran = run(tmp_path, FakeGrid(members))
    assert ran.error is None
    assert [(r.asked, r.arrived) for r in ran.rounds] == [(9, 9), (9, 9)]


@pytest.mark.parametrize("what", ["one share key", "its twin", "another's bundle", "an old bundle"])
def test_a_pc_that_plays_another_is_left_out_and_the_run_goes_on(
    tmp_path: Path, pcs: Pcs, what: str
) -> None:
    """M9."""
    members = pcs(10)
    liar, victim = members[9], members[0]
    seen: list[bytes] = []
    lied: set[int] = set()
    usual = Client(victim.folder)

    def honest(request: SetupRequest) -> Answer:
        if what == "an old bundle" and request.epoch > 1 and request.epoch not in lied:
            return None  # the liar is faster
        described = usual.setup(request)
        seen.append(described.bundle)
        return described.encode()

    def lie(request: SetupRequest) -> Answer:
        own = Client(liar.folder)
        described = own.setup(request)
        lied.add(request.epoch)
        if not seen:
            return GONE  # it waits until it has seen the victim's
        bundle, other = Bundle.decode(described.bundle), Bundle.decode(seen[0])
        if what in ("another's bundle", "an old bundle"):
            return Description("pc-new", seen[0]).encode()
        key = other.share_key
        if what == "its twin":
            key = key[:-1] + bytes([key[-1] ^ 0x80])
        forged = dataclasses.replace(bundle, share_key=key).signed_by(own.key_store.identity)
        return Description(described.name, forged.encode()).encode()

    victim.setup, liar.setup = honest, lie
    epochs = 2 if what == "an old bundle" else 100
    changes = ("rounds=3", f"aggregation.key_rounds={epochs}")
    ran = run(tmp_path, FakeGrid(members), *changes)
    assert ran.error is None
    assert not any(r.void for r in ran.rounds)
    assert {r.blamed for r in ran.rounds} == {()}
    assert len(victim.asked) == 3
    assert len(liar.asked) == 0


@pytest.mark.parametrize("answer", ["none", "noise", "another's"])
@pytest.mark.parametrize("stage", [AGREE, UNMASK])
def test_an_answer_that_is_none_costs_its_sender_alone(
    tmp_path: Path, pcs: Pcs, stage: str, answer: str
) -> None:
    members = pcs(10)
    kept: dict[str, Answer] = {}

    def lie(now: str, request: MemberRequest, pc: FakePc) -> Answer:
        usual = pc.usual_member(now, request)
        if now != stage:
            return usual
        kept.setdefault(now, usual)
        return {
            "none": RecordDict(), "noise": encode_answer(b"\x07" * 99), "another's": kept[now],
        }[answer]  # fmt: skip

    for pc in members[:3]:
        pc.member = lambda now, request, pc=pc: lie(now, request, pc)
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert not ran.rounds[0].void
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), set())


@pytest.mark.parametrize("change", ["another's", "old", "cut", "flipped"])
def test_a_broken_upload_costs_its_sender_alone(tmp_path: Path, pcs: Pcs, change: str) -> None:
    """M17."""
    members = pcs(10)
    sent: dict[int, bytes] = {}
    others: dict[int, bytes] = {}

    def honest(request: MaskRequest) -> Answer:
        answer = members[5].usual_mask(request)
        other = decode_update(answer)
        assert isinstance(other, bytes)
        others[attempt(request)] = other
        return answer

    def lie(request: MaskRequest) -> Answer:
        if change == "another's":  # it waits until it has seen that
            return encode_update(others[attempt(request)]) if attempt(request) in others else None
        own = decode_update(members[4].usual_mask(request))
        assert isinstance(own, bytes)
        sent[attempt(request)] = own
        if change == "old":
            return encode_update(sent[1])
        return encode_update(own[:-1] if change == "cut" else own[:-1] + bytes([own[-1] ^ 1]))

    members[4].mask, members[5].mask = lie, honest
    ran = run(tmp_path / "sealed", FakeGrid(members))
    assert ran.error is None
    assert [r.arrived for r in ran.rounds] == [10 if change == "old" else 9, 9]


def test_the_coordinator_keeps_uploads_on_its_disk_and_no_update_in_memory(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    seen: list[int] = []

    def look(stage: str, request: MemberRequest, pc: FakePc) -> Answer:
        files = list((tmp_path / "uploads").glob("*.upload"))
        seen.append(len(files))
        plain = {pc.update(1).astype("<f4").tobytes() for pc in members}
        for file in files:
            content = file.read_bytes()
            assert not any(update in content for update in plain)
            assert len(content) > 4 * SIZE
        return pc.usual_member(stage, request)

    members[0].member = lambda stage, request: look(stage, request, members[0])
    for pc in members[1:5]:  # so that every PC is asked
        vanish("agree", [pc])
    ran = run(tmp_path, FakeGrid(members), ONE)
    assert ran.error is None
    assert seen
    assert set(seen) == {10}
