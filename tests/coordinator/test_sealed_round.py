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
    Readiness,
    RoundRequest,
    SetupRequest,
    decode_update,
    encode_answer,
    encode_refusal,
    encode_update,
)
from fedaipc.secagg import round_keys, shares
from fedaipc.secagg.committee import Release
from fedaipc.secagg.roster import Bundle
from fedaipc.secagg.round_keys import Deal
from fedaipc.secagg.terms import Terms
from tests.support.coordinator import SIZE, Answer, FakeGrid, FakePc, Ran, attempt, roster_of, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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


def bad_deal(pc: FakePc, request: RoundRequest, change: Callable[[Deal], Deal]) -> RecordDict:
    """The PC's own deal, changed and signed again by itself."""
    said = Readiness.decode(pc.usual_ready(request))
    key_store, terms = Client(pc.folder).key_store, Terms.decode(request.terms)
    deal = change(Deal.decode(said.deal))
    digest = hashlib.sha256(b"".join((deal.check, *deal.commitments, *deal.blobs))).digest()
    card = dataclasses.replace(deal.card, deal_hash=digest)
    signature = key_store.identity.sign(card.signed_part(terms.context))
    card = dataclasses.replace(card, signature=signature)
    key_store.keep_secrets(dataclasses.replace(key_store.secrets(), card=card))
    deal = dataclasses.replace(deal, card=card)
    return Readiness(None, pc.charged, deal.encode()).encode()


def wrong_blobs(deal: Deal, places: Iterable[int]) -> Deal:
    """Blobs that no member can decrypt."""
    blobs = list(deal.blobs)
    for place in places:
        blobs[place] = bytes([blobs[place][0] ^ 1]) + blobs[place][1:]
    return dataclasses.replace(deal, blobs=tuple(blobs))


def wrong_commitments(deal: Deal, places: Iterable[int]) -> Deal:
    """Commitments to other shares than those in the blobs."""
    values = list(deal.commitments)
    for place in places:
        values[place] = bytes(32)
    return dataclasses.replace(deal, commitments=tuple(values))


def wrong_check(deal: Deal) -> Deal:
    return dataclasses.replace(deal, check=bytes(16))


BAD: dict[str, Callable[[Deal, Iterable[int]], Deal]] = {
    "blobs": wrong_blobs, "commitments": wrong_commitments,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("gone", [False, True], ids=["uploads", "drops out"])
def test_a_dealer_of_whom_many_complain_voids_one_attempt_and_is_named(
    tmp_path: Path, pcs: Pcs, caplog: pytest.LogCaptureFixture, kind: str, gone: bool
) -> None:
    """M19, M20, M26: its secret is needed, whether or not it uploads."""
    members = pcs(10)
    liar = members[3]
    liar.ready = lambda request: bad_deal(liar, request, lambda d: BAD[kind](d, range(10)))
    if gone:
        vanish("mask", [liar])
    ran = run(tmp_path / "sealed", FakeGrid(members))
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [
        (0, True, ("pc-3",)), (9, False, ()), (9, False, ()),
    ]  # fmt: skip
    assert len(liar.asked) == 1
    assert re.search(r"pc-\d says of pc-3: its encrypted shares cannot be read", caplog.text)


def test_a_pc_that_was_left_out_stays_out_when_the_coordinator_starts_again(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    liar = members[3]
    liar.ready = lambda request: bad_deal(liar, request, lambda d: wrong_blobs(d, range(10)))
    first = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert first.checkpoint.banned == {liar.identity}
    assert first.checkpoint.disputes
    second = run(tmp_path / "sealed", FakeGrid(members))
    assert second.error is None
    assert second.checkpoint.round == 2
    assert second.checkpoint.banned == {liar.identity}
    assert second.checkpoint.disputes == first.checkpoint.disputes
    assert len(liar.asked) == 1


@pytest.mark.parametrize("kind", BAD)
def test_a_share_that_one_member_lacks_is_taken_from_another(
    tmp_path: Path, pcs: Pcs, kind: str
) -> None:
    """M20: of one word nobody knows who lies; else one PC could throw out all others."""
    members = pcs(10)
    liar = members[3]
    victim = min(pc.identity for pc in members if pc is not liar)
    place = sorted(pc.identity for pc in members).index(victim)
    liar.ready = lambda request: bad_deal(liar, request, lambda d: BAD[kind](d, [place]))
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [(10, False, ())]
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), set())


@pytest.mark.parametrize("lie", ["another own mask", "another round key"])
def test_a_dealer_of_shares_of_another_key_voids_one_round_and_is_not_asked_again(
    tmp_path: Path, pcs: Pcs, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M27: it is seen when the key is rebuilt; the round key is where its PC drops out."""
    members = pcs(10)
    liar = members[2]
    if lie == "another own mask":
        liar.ready = lambda request: bad_deal(liar, request, wrong_check)
    else:
        vanish("mask", [liar])
        real = shares.split_all

        def split(keys: Any, threshold: int, count: int) -> list[list[bytes]]:
            return real((bytes(32), keys[1]), threshold, count)

        def lied(request: RoundRequest) -> Answer:
            with monkeypatch.context() as patch:
                patch.setattr(round_keys, "split_all", split)
                return liar.usual_ready(request)

        liar.ready = lied
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    void, good = ran.rounds
    assert (void.void, void.blamed) == (True, ("pc-2",))
    assert void.why_void is not None
    assert liar.identity.hex()[:16] in void.why_void
    assert (good.arrived, good.asked) == (9, 9)
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), {2})


def test_a_dealer_of_what_are_no_shares_is_named(
    tmp_path: Path, pcs: Pcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M19: it commits to them and encrypts them as any other."""
    members = pcs(10)
    liar = members[2]

    def deal_nonsense(request: RoundRequest) -> Answer:
        def split(keys: Any, threshold: int, count: int) -> list[list[bytes]]:
            return [[b"\xff" * 33] * len(keys) for _ in range(count)]

        with monkeypatch.context() as patch:
            patch.setattr(round_keys, "split_all", split)
            return liar.usual_ready(request)

    liar.ready = deal_nonsense
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [
        (0, True, ("pc-2",)), (9, False, ()),
    ]  # fmt: skip
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), {2})


def test_a_member_with_wrong_shares_is_not_believed_and_the_others_open(
    tmp_path: Path, pcs: Pcs
) -> None:
    """M26."""
    members = pcs(10)

    def lie(stage: str, request: MemberRequest, pc: FakePc) -> Answer:
        usual = pc.usual_member(stage, request)
        if stage == AGREE:
            return usual
        found = Release.decode(Client(pc.folder).unmask(request))
        return encode_answer(Release(found.member, (bytes(33), *found.shares[1:])).encode())

    for pc in members[:2]:
        pc.member = lambda stage, request, pc=pc: lie(stage, request, pc)
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    (result,) = ran.rounds
    assert not result.void
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), set())


def test_a_member_that_got_a_bad_blob_is_not_blamed_for_what_it_cannot_release(
    tmp_path: Path, pcs: Pcs
) -> None:
    """M20, M24: a dealer with one victim, and silent when shares are asked for."""
    members = pcs(10)
    liar = members[3]
    liar.ready = lambda request: bad_deal(
        liar, request, lambda d: wrong_blobs(d, [Terms.decode(request.terms).number])
    )
    vanish("unmask", [liar])
    ran = run(tmp_path, FakeGrid(members), "rounds=4")
    assert ran.error is None
    assert not any(r.void for r in ran.rounds)
    honest = {pc.name for pc in members} - {liar.name}
    assert not honest & {name for r in ran.rounds for name in r.blamed}
    assert ran.rounds[-1].asked >= 8  # the liar and at most one that quarrelled with it are out


def test_a_few_that_give_bad_shares_to_few_each_cannot_void_a_run(tmp_path: Path, pcs: Pcs) -> None:
    """Three of thirty, each with no more victims than may collude: no proof against any."""
    members = pcs(30)
    for number, liar in enumerate(members[:3]):
        places = [8 + 3 * number + i for i in range(3)]
        liar.ready = lambda request, liar=liar, places=places: bad_deal(
            liar, request, lambda d: wrong_commitments(d, places)
        )
    ran = run(tmp_path, FakeGrid(members), "rounds=3", "federation.spare_attempts=3")
    assert ran.error is None
    assert ran.rounds[-1].arrived >= 24
    assert sum(r.void for r in ran.rounds) <= 3


def test_who_quarrelled_in_a_void_round_is_not_in_the_next(tmp_path: Path, pcs: Pcs) -> None:
    """M20: three of ten that are silent at the end, and one of them has a victim more."""
    members = pcs(10)
    order = sorted(pc.identity for pc in members)
    liar, silent = members[0], members[1:4]
    place = order.index(members[4].identity)
    liar.ready = lambda request: bad_deal(liar, request, lambda d: wrong_blobs(d, [place]))
    vanish("unmask", [liar, *silent])
    ran = run(tmp_path, FakeGrid(members), ONE, "federation.spare_attempts=3")
    assert ran.rounds[0].void
    assert ran.rounds[0].why_void == "5 members released their shares; it takes 6"
    assert ran.rounds[0].blamed == ()
    assert ran.checkpoint.banned >= {liar.identity, members[4].identity}


@pytest.mark.parametrize("lie", ["another's", "cut", "flipped", "nothing", "a copied key"])
def test_a_broken_deal_costs_its_sender_alone_and_nobody_is_charged_for_it(
    tmp_path: Path, pcs: Pcs, lie: str
) -> None:
    """M17: it is as if the PC had not answered."""
    members = pcs(10)
    liar, victim = members[4], members[5]
    kept: list[bytes] = []

    def honest(request: RoundRequest) -> Answer:
        answer = victim.usual_ready(request)
        kept.append(Readiness.decode(answer).deal)
        return answer

    def lied(request: RoundRequest) -> Answer:
        own = Readiness.decode(liar.usual_ready(request)).deal
        if lie in ("another's", "a copied key") and not kept:
            return None  # it waits until it has seen the victim's
        if lie == "a copied key":
            card = Deal.decode(kept[-1]).card
            return bad_deal(
                liar,
                request,
                lambda d: dataclasses.replace(
                    d, card=dataclasses.replace(d.card, public=card.public)
                ),
            )
        sent = {
            "another's": lambda: kept[-1], "cut": lambda: own[:-1], "nothing": lambda: b"",
            "flipped": lambda: own[:-1] + bytes([own[-1] ^ 1]),
        }[lie]()  # fmt: skip
        return Readiness(None, 0, sent).encode()

    victim.ready, liar.ready = honest, lied
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void, r.dropped) for r in ran.rounds] == [(9, False, 1)]
    assert liar.asked == []
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), {4})


def test_who_is_silent_when_asked_is_not_waited_for_twice(tmp_path: Path, pcs: Pcs) -> None:
    """M11: the terms stay as they are, so the others are asked once."""
    members = pcs(10)
    members[0].ready = lambda _: GONE
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.asked, r.arrived) for r in ran.rounds] == [(10, 9)]
    assert [len(pc.offered) for pc in members] == [1] * 10
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), {0})


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
