"""Sealed rounds over the real coordinator and real keys: who may vanish, lie, or come back.

The sum is compared with that of the same PCs in the open, bit for bit: both have one encoding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Error, RecordDict

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
from fedaipc.secagg import tree, uploads
from fedaipc.secagg.committee import Release
from fedaipc.secagg.roster import Bundle
from fedaipc.secagg.uploads import Upload, list_hash
from tests.support.coordinator import SIZE, Answer, FakeGrid, FakePc, Ran, attempt, roster_of, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Pcs = Any
GONE = Error(code=100, reason="")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_START_SECONDS", 0.5)


ONE = "rounds=1"


def in_the_open(folder: Path, members: list[FakePc], gone: set[int], *changes: str) -> bytes:
    """The model after one round of those that are not gone, without any sealing."""
    for pc in members:
        pc.mask = (lambda _: GONE) if pc.number in gone else None
    ran = run(folder / "open", FakeGrid(members), ONE, "aggregation.kind=plain", *changes)
    assert ran.error is None
    assert ran.rounds[0].arrived == len(members) - len(gone)
    return ran.checkpoint.vector.tobytes()


def vanish(stage: str, members: list[FakePc]) -> None:
    for pc in members:
        if stage == "setup":
            pc.setup = lambda _: GONE
        elif stage == "mask":
            pc.mask = lambda _: GONE
        else:
            pc.member = lambda now, request, pc=pc: (
                GONE if now == f"query.{stage}" else pc.usual_member(now, request)
            )


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


def changed(pc: FakePc, request: MaskRequest, change: Callable[[Upload], Upload]) -> RecordDict:
    """The PC's own upload, changed and signed again by itself."""
    usual = decode_update(pc.usual_mask(request))
    assert isinstance(usual, bytes)
    upload = change(Upload.decode(usual))
    signature = Client(pc.folder).key_store.identity.sign(upload.header.signed_part())
    return encode_update(dataclasses.replace(upload, signature=signature).encode())


def wrong_blobs(upload: Upload, places: list[int]) -> Upload:
    """Blobs that no member can open, under hashes that fit."""
    size = len(upload.blobs) // len(upload.leaves)
    blobs, leaves = bytearray(upload.blobs), list(upload.leaves)
    for place in places:
        blobs[place * size] ^= 1
        own = hashlib.sha256(blobs[place * size : (place + 1) * size]).digest()
        leaves[place] = own + leaves[place][32:]
    header = dataclasses.replace(upload.header, leaves_root=tree.root(leaves))
    return dataclasses.replace(upload, header=header, blobs=bytes(blobs), leaves=tuple(leaves))


def wrong_checks(upload: Upload, places: list[int]) -> Upload:
    checks = list(upload.checks)
    for place in places:
        checks[place] = bytes(16)
    header = dataclasses.replace(upload.header, checks_hash=list_hash(checks))
    return dataclasses.replace(upload, header=header, checks=tuple(checks))


def test_a_dealer_of_whom_many_complain_is_left_out_and_named(
    tmp_path: Path, pcs: Pcs, caplog: pytest.LogCaptureFixture
) -> None:
    """M19, M20."""
    members = pcs(10)
    liar = members[3]
    liar.mask = lambda request: changed(liar, request, lambda u: wrong_blobs(u, list(range(10))))
    ran = run(tmp_path / "sealed", FakeGrid(members))
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [
        (9, False, ("pc-3",)), (9, False, ()),
    ]  # fmt: skip
    assert len(liar.asked) == 1
    assert re.search(r"pc-\d says of pc-3: its encrypted shares cannot be read", caplog.text)


def test_a_pc_that_was_left_out_stays_out_when_the_coordinator_starts_again(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    liar = members[3]
    liar.mask = lambda request: changed(liar, request, lambda u: wrong_blobs(u, list(range(10))))
    first = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert first.checkpoint.banned == {liar.identity}
    assert first.checkpoint.disputes
    second = run(tmp_path / "sealed", FakeGrid(members))
    assert second.error is None
    assert second.checkpoint.round == 2
    assert second.checkpoint.banned == {liar.identity}
    assert second.checkpoint.disputes == first.checkpoint.disputes
    assert len(liar.asked) == 1


def test_a_complaint_of_one_member_is_not_believed(tmp_path: Path, pcs: Pcs) -> None:
    """M20: else one PC could throw out all others."""
    members = pcs(10)
    liar = members[3]
    liar.mask = lambda request: changed(liar, request, lambda u: wrong_blobs(u, [0]))
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [(10, False, ())]
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), set())


def test_a_dealer_whose_pairs_do_not_fit_is_left_out_and_named(tmp_path: Path, pcs: Pcs) -> None:
    members = pcs(10)
    liar = members[2]
    liar.mask = lambda request: changed(liar, request, lambda u: wrong_checks(u, [1, 2, 3, 4]))
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.blamed) for r in ran.rounds] == [(9, ("pc-2",))]
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), {2})


def test_a_dealer_of_shares_of_another_key_voids_one_round_and_is_not_asked_again(
    tmp_path: Path, pcs: Pcs
) -> None:
    """M27."""
    members = pcs(10)
    liar = members[2]
    liar.mask = lambda request: changed(liar, request, lambda u: wrong_checks(u, [0]))
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    void, good = ran.rounds
    assert (void.void, void.blamed) == (True, ("pc-2",))
    assert void.why_void is not None
    assert liar.identity.hex()[:16] in void.why_void
    assert (good.arrived, good.asked) == (9, 9)
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), {2})


def test_a_member_with_wrong_shares_is_named_and_the_others_open(tmp_path: Path, pcs: Pcs) -> None:
    """M26."""
    members = pcs(10)

    def lie(stage: str, request: MemberRequest, pc: FakePc) -> Answer:
        usual = pc.usual_member(stage, request)
        if stage == AGREE:
            return usual
        release = Client(pc.folder).unmask(request)
        found = Release.decode(release)
        wrong = dataclasses.replace(found.released[0], own=bytes(33))
        return encode_answer(Release(found.member, (wrong, *found.released[1:])).encode())

    for pc in members[:2]:
        pc.member = lambda stage, request, pc=pc: lie(stage, request, pc)
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    (result,) = ran.rounds
    assert not result.void
    assert set(result.blamed) <= {"pc-0", "pc-1"}
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), set())


def test_a_dealer_of_what_are_no_shares_is_left_out_and_named(
    tmp_path: Path, pcs: Pcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M19, M27: it commits to them as to any other."""
    members = pcs(10)
    liar = members[2]

    def deal_nonsense(request: MaskRequest) -> Answer:
        def split(keys: Any, threshold: int, count: int) -> list[list[bytes]]:
            return [[b"\xff" * 33] * len(keys) for _ in range(count)]

        with monkeypatch.context() as patch:
            patch.setattr(uploads, "split_all", split)
            return liar.usual_mask(request)

    liar.mask = deal_nonsense
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [(9, False, ("pc-2",))]
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), {2})


def test_a_member_that_got_a_bad_blob_is_not_blamed_for_what_it_cannot_release(
    tmp_path: Path, pcs: Pcs
) -> None:
    """M20, M24: an uploader with one victim, and silent when shares are asked for."""
    members = pcs(10)
    liar = members[3]
    liar.mask = lambda request: changed(liar, request, lambda u: wrong_blobs(u, [attempt(request)]))
    vanish("unmask", [liar])
    ran = run(tmp_path, FakeGrid(members), "rounds=4")
    assert ran.error is None
    assert not any(r.void for r in ran.rounds)
    honest = {pc.name for pc in members} - {liar.name}
    assert not honest & {name for r in ran.rounds for name in r.blamed}
    assert ran.rounds[-1].asked >= 8  # the liar and at most one that quarrelled with it are out


def test_a_few_that_give_wrong_checks_to_few_each_cannot_void_a_run(
    tmp_path: Path, pcs: Pcs
) -> None:
    """Three of thirty, each with no more victims than may collude: no proof against any."""
    members = pcs(30)
    for number, liar in enumerate(members[:3]):
        places = [8 + 3 * number + i for i in range(3)]
        liar.mask = lambda request, liar=liar, places=places: changed(
            liar, request, lambda u: wrong_checks(u, places)
        )
    ran = run(tmp_path, FakeGrid(members), "rounds=3", "federation.spare_attempts=3")
    assert ran.error is None
    assert ran.rounds[-1].arrived >= 24
    assert sum(r.void for r in ran.rounds) <= 3


def test_who_quarrelled_in_a_void_round_is_not_in_the_next(tmp_path: Path, pcs: Pcs) -> None:
    """M20: four of forty, each with four victims, silent afterwards: twenty are left to agree."""
    members = pcs(40)
    order = sorted(pc.identity for pc in members)
    liars, honest = members[:4], [order.index(pc.identity) for pc in members[4:]]
    for number, liar in enumerate(liars):
        places = honest[4 * number : 4 * number + 4]
        liar.mask = lambda request, liar=liar, places=places: changed(
            liar, request, lambda u: wrong_blobs(u, places)
        )
    vanish("agree", liars)
    ran = run(tmp_path, FakeGrid(members))
    assert ran.error is None
    assert [(r.void, r.asked, r.arrived) for r in ran.rounds] == [
        (True, 40, 0), (False, 36, 36), (False, 36, 36),
    ]  # fmt: skip


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


@pytest.mark.parametrize("what", ["one mask key", "its twin", "another's bundle", "an old bundle"])
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
        key = other.mask_key
        if what == "its twin":
            key = key[:-1] + bytes([key[-1] ^ 0x80])
        forged = dataclasses.replace(bundle, mask_key=key).signed_by(own.key_store.identity)
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
    kept: dict[str, RecordDict] = {}

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

    def lie(request: MaskRequest) -> Answer:
        own = decode_update(members[4].usual_mask(request))
        assert isinstance(own, bytes)
        sent[attempt(request)] = own
        if change == "another's":
            other = decode_update(members[5].usual_mask(request))
            assert isinstance(other, bytes)
            return encode_update(other)
        if change == "old":
            return encode_update(sent[1])
        return encode_update(own[:-1] if change == "cut" else own[:-1] + bytes([own[-1] ^ 1]))

    members[4].mask = lie
    ran = run(tmp_path / "sealed", FakeGrid(members))
    assert ran.error is None
    assert [r.arrived for r in ran.rounds] == [10 if change == "old" else 9, 9]


def test_the_coordinator_keeps_uploads_on_its_disk_and_no_update_in_memory(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    seen: list[int] = []

    def look(stage: str, request: MemberRequest, pc: FakePc) -> Answer:
        files = list((tmp_path / "uploads").iterdir())
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
