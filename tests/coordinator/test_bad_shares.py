"""PCs that give out bad shares, and members that say so of good ones, in masked rounds."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import RecordDict

from fedaipc.client.client import Client
from fedaipc.protocol.messages import AGREE, MemberRequest, Readiness, RoundRequest, encode_answer
from fedaipc.secagg import round_keys, shares
from fedaipc.secagg.committee import Release
from fedaipc.secagg.round_keys import KeyShares
from fedaipc.secagg.terms import Terms
from tests.support.coordinator import GONE, ONE, Answer, FakeGrid, FakePc, in_the_open, run, vanish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

Pcs = Any


def bad_shares(
    pc: FakePc, request: RoundRequest, change: Callable[[KeyShares], KeyShares]
) -> RecordDict:
    """The PC's own key_shares, changed and signed again by itself."""
    said = Readiness.decode(pc.usual_ready(request))
    key_store, terms = Client(pc.folder).key_store, Terms.decode(request.terms)
    key_shares = change(KeyShares.decode(said.shares))
    digest = hashlib.sha256(
        b"".join((key_shares.check, *key_shares.commitments, *key_shares.blobs))
    ).digest()
    card = dataclasses.replace(key_shares.card, shares_hash=digest)
    signature = key_store.identity.sign(card.signed_part(terms.context))
    card = dataclasses.replace(card, signature=signature)
    key_store.keep_secrets(dataclasses.replace(key_store.secrets(), card=card))
    key_shares = dataclasses.replace(key_shares, card=card)
    return Readiness(None, pc.charged, key_shares.encode()).encode()


def wrong_blobs(key_shares: KeyShares, places: Iterable[int]) -> KeyShares:
    """Blobs that no member can decrypt."""
    blobs = list(key_shares.blobs)
    for place in places:
        blobs[place] = bytes([blobs[place][0] ^ 1]) + blobs[place][1:]
    return dataclasses.replace(key_shares, blobs=tuple(blobs))


def wrong_commitments(key_shares: KeyShares, places: Iterable[int]) -> KeyShares:
    """Commitments to other shares than those in the blobs."""
    values = list(key_shares.commitments)
    for place in places:
        values[place] = bytes(32)
    return dataclasses.replace(key_shares, commitments=tuple(values))


def wrong_check(key_shares: KeyShares) -> KeyShares:
    return dataclasses.replace(key_shares, check=bytes(16))


BAD: dict[str, Callable[[KeyShares, Iterable[int]], KeyShares]] = {
    "blobs": wrong_blobs, "commitments": wrong_commitments,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("gone", [False, True], ids=["uploads", "drops out"])
def test_a_sharer_of_whom_many_complain_voids_one_attempt_and_is_named(
    tmp_path: Path, pcs: Pcs, caplog: pytest.LogCaptureFixture, kind: str, gone: bool
) -> None:
    """M19, M20, M26: its secret is needed, whether or not it uploads."""
    members = pcs(10)
    liar = members[3]
    liar.ready = lambda request: bad_shares(liar, request, lambda d: BAD[kind](d, range(10)))
    if gone:
        vanish("mask", [liar])
    ran = run(tmp_path / "sealed", FakeGrid(members))
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [
        (0, True, ("pc-3",)), (9, False, ()), (9, False, ()),
    ]  # fmt: skip
    assert len(liar.asked) == 1
    assert re.search(r"pc-\d says of pc-3: its encrypted shares cannot be read", caplog.text)


def test_all_that_give_out_bad_shares_are_named_in_one_attempt(tmp_path: Path, pcs: Pcs) -> None:
    """M27: else each would void an attempt of its own, for which all are charged."""
    members = pcs(10)
    for liar in members[:2]:
        liar.ready = lambda request, liar=liar: bad_shares(liar, request, wrong_check)
    liar = members[2]
    liar.ready = lambda request: bad_shares(liar, request, lambda d: wrong_blobs(d, range(10)))
    ran = run(tmp_path, FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [
        (0, True, ("pc-0", "pc-1", "pc-2")), (7, False, ()),
    ]  # fmt: skip


def test_a_pc_that_was_left_out_stays_out_when_the_coordinator_starts_again(
    tmp_path: Path, pcs: Pcs
) -> None:
    members = pcs(10)
    liar = members[3]
    liar.ready = lambda request: bad_shares(liar, request, lambda d: wrong_blobs(d, range(10)))
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
    liar.ready = lambda request: bad_shares(liar, request, lambda d: BAD[kind](d, [place]))
    ran = run(tmp_path / "sealed", FakeGrid(members), ONE)
    assert ran.error is None
    assert [(r.arrived, r.void, r.blamed) for r in ran.rounds] == [(10, False, ())]
    assert ran.checkpoint.vector.tobytes() == in_the_open(tmp_path, pcs(10), set())


@pytest.mark.parametrize("lie", ["another own mask", "another round key"])
def test_a_sharer_of_shares_of_another_key_voids_one_round_and_is_not_asked_again(
    tmp_path: Path, pcs: Pcs, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M27: it is seen when the key is rebuilt; the round key is where its PC drops out."""
    members = pcs(10)
    liar = members[2]
    if lie == "another own mask":
        liar.ready = lambda request: bad_shares(liar, request, wrong_check)
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


def test_a_sharer_of_what_are_no_shares_is_named(
    tmp_path: Path, pcs: Pcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M19: it commits to them and encrypts them as any other."""
    members = pcs(10)
    liar = members[2]

    def share_nonsense(request: RoundRequest) -> Answer:
        def split(keys: Any, threshold: int, count: int) -> list[list[bytes]]:
            return [[b"\xff" * 33] * len(keys) for _ in range(count)]

        with monkeypatch.context() as patch:
            patch.setattr(round_keys, "split_all", split)
            return liar.usual_ready(request)

    liar.ready = share_nonsense
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
    """M20, M24: a sharer with one victim, and silent when shares are asked for."""
    members = pcs(10)
    liar = members[3]
    liar.ready = lambda request: bad_shares(
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
        liar.ready = lambda request, liar=liar, places=places: bad_shares(
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
    liar.ready = lambda request: bad_shares(liar, request, lambda d: wrong_blobs(d, [place]))
    vanish("unmask", [liar, *silent])
    ran = run(tmp_path, FakeGrid(members), ONE, "federation.spare_attempts=3")
    assert ran.rounds[0].void
    assert ran.rounds[0].why_void == "5 members released their shares; it takes 6"
    assert ran.rounds[0].blamed == ()
    assert ran.checkpoint.banned >= {liar.identity, members[4].identity}


@pytest.mark.parametrize("lie", ["another's", "cut", "flipped", "nothing", "a copied key"])
def test_a_broken_key_shares_costs_its_sender_alone_and_nobody_is_charged_for_it(
    tmp_path: Path, pcs: Pcs, lie: str
) -> None:
    """M17: it is as if the PC had not answered."""
    members = pcs(10)
    liar, victim = members[4], members[5]
    kept: list[bytes] = []

    def honest(request: RoundRequest) -> Answer:
        answer = victim.usual_ready(request)
        kept.append(Readiness.decode(answer).shares)
        return answer

    def lied(request: RoundRequest) -> Answer:
        own = Readiness.decode(liar.usual_ready(request)).shares
        if lie in ("another's", "a copied key") and not kept:
            return None  # it waits until it has seen the victim's
        if lie == "a copied key":
            card = KeyShares.decode(kept[-1]).card
            return bad_shares(
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
