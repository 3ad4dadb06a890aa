"""Whole rounds: what the sum is, who may be missing, and what a lying coordinator gets."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg import tree
from fedaipc.secagg.committee import (
    Agreement,
    Complaint,
    Proposal,
    Reason,
    Release,
    Unmask,
    agree,
    release,
)
from fedaipc.secagg.uploads import LedgerHead, Upload, list_hash, mask_and_share, open_shares
from tests.support.secagg import HEAD, Sum, blob_of, federation

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fedaipc.secagg.terms import Terms
    from fedaipc.secagg.uploads import Keys

SEVEN, KEYS = federation(7)
PCS = SEVEN.participants


def update(terms: Terms, who: bytes) -> np.ndarray:
    number = terms.participants.index(who)
    return np.random.default_rng(number).uniform(-1, 1, terms.size).astype("f4")


def encoded(terms: Terms, who: bytes) -> np.ndarray:
    return terms.encoding.encode(update(terms, who), 1, who)


def uploads(terms: Terms, keys: dict[bytes, Keys]) -> dict[bytes, Upload]:
    return {
        who: mask_and_share(terms, keys[who], encoded(terms, who), HEAD)
        for who in terms.participants
    }


UPLOADS = uploads(SEVEN, KEYS)


def agreements(
    terms: Terms, keys: dict[bytes, Keys], found: Sum, members: Sequence[bytes]
) -> tuple[Agreement, ...]:
    signed = []
    for member in members:
        proposal = Proposal.decode(found.proposal(member).encode())
        answer = agree(terms, keys[member], proposal, None, {})
        assert isinstance(answer, Agreement)
        signed.append(Agreement.decode(answer.encode()))
    return tuple(signed)


def opened(
    terms: Terms,
    keys: dict[bytes, Keys],
    found: Sum,
    signing: Sequence[bytes],
    releasing: Sequence[bytes],
) -> np.ndarray:
    signed = agreements(terms, keys, found, signing)
    digests = {agreement.member: agreement.set_hash for agreement in signed}
    releases = []
    for member in releasing:
        request = Unmask.decode(Unmask(found.proposal(member), signed).encode())
        digest, answer = release(terms, keys[member], request, digests.get(member))
        assert digest == signed[0].set_hash
        releases.append(Release.decode(answer.encode()))
    return found.open(releases)


def plain(terms: Terms, inside: Collection[bytes]) -> np.ndarray:
    total = sum(encoded(terms, who) for who in inside)
    return terms.encoding.decode(np.asarray(total, terms.encoding.dtype))


# What comes out


def test_the_sum_is_the_plain_sum_for_every_set_of_survivors_and_none_below_the_least() -> None:
    for size in range(8):
        for inside in itertools.combinations(PCS, size):
            summed = Sum(SEVEN, UPLOADS, inside[::-1])
            if size < SEVEN.thresholds.least:
                with pytest.raises(SecAggError, match="are unmasked"):
                    summed.proposal(PCS[0])
                continue
            total = opened(SEVEN, KEYS, summed, PCS[:5], PCS[2:])
            assert np.array_equal(total, plain(SEVEN, inside))


def test_every_committee_of_threshold_size_opens_and_none_below() -> None:
    inside = PCS[1:]
    for members in itertools.combinations(PCS, SEVEN.thresholds.shares):
        total = opened(SEVEN, KEYS, Sum(SEVEN, UPLOADS, inside), members, members)
        assert np.array_equal(total, plain(SEVEN, inside))
    few = PCS[: SEVEN.thresholds.shares - 1]
    with pytest.raises(SecAggError, match="members agreed"):
        opened(SEVEN, KEYS, Sum(SEVEN, UPLOADS, inside), few, PCS)
    with pytest.raises(SecAggError, match="members released"):
        opened(SEVEN, KEYS, Sum(SEVEN, UPLOADS, inside), PCS, few)


@pytest.mark.parametrize("bits", [16, 24])
def test_smaller_rings_sum_as_exactly(bits: int) -> None:
    terms, keys = federation(5, bits=bits)
    found, inside = uploads(terms, keys), terms.participants[:4]
    members = terms.participants[: terms.thresholds.shares]
    total = opened(terms, keys, Sum(terms, found, inside), members, members)
    assert np.array_equal(total, plain(terms, inside))


def test_three_pcs_are_the_fewest() -> None:
    terms, keys = federation(3)
    found = uploads(terms, keys)
    everyone = terms.participants
    total = opened(terms, keys, Sum(terms, found, everyone), everyone, everyone)
    assert np.array_equal(total, plain(terms, everyone))
    with pytest.raises(SecAggError, match="are unmasked"):
        Sum(terms, found, everyone[:2]).proposal(everyone[0])


# What a lying coordinator gets


def test_a_second_set_is_never_signed_and_never_opened() -> None:
    """M21, M23, M25: the attack that opens one vector by two overlapping sets."""
    first, second = Sum(SEVEN, UPLOADS, PCS), Sum(SEVEN, UPLOADS, PCS[1:])
    signed = agreements(SEVEN, KEYS, first, PCS)
    recorded = signed[0].set_hash
    with pytest.raises(SecAggError, match="another set"):
        agree(SEVEN, KEYS[PCS[0]], second.proposal(PCS[0]), recorded, {})
    elsewhere = agreements(SEVEN, KEYS, second, PCS)  # of members that forgot: they count into c
    for who in PCS:
        request = Unmask(second.proposal(who), elsewhere)
        with pytest.raises(SecAggError, match="another set"):
            release(SEVEN, KEYS[who], request, recorded)
    again = agree(SEVEN, KEYS[PCS[0]], first.proposal(PCS[0]), recorded, {})
    assert again == signed[0]


def test_shares_of_one_pc_are_of_its_own_key_or_of_its_pairs_never_of_both() -> None:
    """M24: "active" and "dead" at once is what opens a vector elsewhere."""
    inside = PCS[:5]
    summed = Sum(SEVEN, UPLOADS, inside)
    signed = agreements(SEVEN, KEYS, summed, PCS)
    for member in PCS:
        _, found = release(SEVEN, KEYS[member], Unmask(summed.proposal(member), signed), None)
        assert tuple(one.uploader for one in found.released) == inside
        for one in found.released:
            assert len(one.pairs) == 2
            proposed = opened_blob(one.uploader, member)
            outside = [proposed[1 + SEVEN.neighbours(one.uploader).index(pc)] for pc in PCS[5:]]
            assert (one.own, list(one.pairs)) == (proposed[0], outside)


def opened_blob(uploader: bytes, member: bytes) -> list[bytes]:
    place = SEVEN.place(member)
    upload = UPLOADS[uploader]
    blob = blob_of(upload, place)
    return open_shares(SEVEN, KEYS[member], upload.header, upload.leaves[place], blob)


@pytest.mark.parametrize("forge", ["stranger", "another set", "one signer", "wrong signature"])
def test_a_forged_quorum_opens_nothing(forge: str) -> None:
    """M22."""
    summed = Sum(SEVEN, UPLOADS, PCS)
    signed = list(agreements(SEVEN, KEYS, summed, PCS))
    match forge:
        case "stranger":
            signed[0] = dataclasses.replace(signed[0], member=bytes(32))
        case "another set":
            signed = list(agreements(SEVEN, KEYS, Sum(SEVEN, UPLOADS, PCS[1:]), PCS))
        case "one signer":
            signed = [signed[0]] * 7
        case _:
            signed[3] = dataclasses.replace(signed[3], signature=signed[2].signature)
    request = Unmask(summed.proposal(PCS[0]), tuple(signed))
    with pytest.raises(SecAggError):
        release(SEVEN, KEYS[PCS[0]], request, None)


@pytest.mark.parametrize("change", ["too small", "twice", "order", "another round", "header"])
def test_what_is_no_set_of_the_round_is_not_signed(change: str) -> None:
    """M18."""
    proposed = list(Sum(SEVEN, UPLOADS, PCS).proposal(PCS[0]).uploads)
    match change:
        case "too small":
            proposed = proposed[:4]
        case "twice":
            proposed = [*proposed[:1], *proposed]
        case "order":
            proposed = proposed[::-1]
        case "another round":
            later = dataclasses.replace(SEVEN, number=2)
            other = mask_and_share(later, KEYS[PCS[0]], encoded(SEVEN, PCS[0]), HEAD)
            proposed[0] = dataclasses.replace(
                proposed[0], header=other.header, signature=other.signature
            )
        case _:
            header = dataclasses.replace(proposed[0].header, vector_hash=bytes(32))
            proposed[0] = dataclasses.replace(proposed[0], header=header)
    with pytest.raises(SecAggError):
        agree(SEVEN, KEYS[PCS[0]], Proposal(tuple(proposed)), None, {})


def test_a_vector_that_was_swapped_after_it_was_signed_is_refused() -> None:
    """M17."""
    wrong = dataclasses.replace(UPLOADS[PCS[0]], vector=UPLOADS[PCS[1]].vector)
    with pytest.raises(SecAggError, match="not the one that its uploader signed"):
        wrong.check(SEVEN)


# A ledger only grows


@pytest.mark.parametrize(("seen", "grown"), [(2, True), (3, False), (4, False), (2**64 - 1, False)])
def test_a_member_complains_of_a_ledger_that_did_not_grow(seen: int, grown: bool) -> None:
    """M31: each upload is one charge more than the last that was seen."""
    proposal = Sum(SEVEN, UPLOADS, PCS).proposal(PCS[0])
    heads = {PCS[2]: LedgerHead(seen, bytes(32)), PCS[4]: LedgerHead(1, bytes(32))}
    answer = agree(SEVEN, KEYS[PCS[0]], proposal, None, heads)
    if grown:
        assert isinstance(answer, Agreement)
        return
    assert isinstance(answer, Complaint)
    assert (answer.uploader, answer.reason) == (PCS[2], Reason.LEDGER)
    assert "older copy" in answer.reason.text
    answer.check(SEVEN)
    other = dataclasses.replace(answer, reason=Reason.SHARES)
    with pytest.raises(SecAggError, match="signature"):
        other.check(SEVEN)


def test_a_set_that_was_agreed_on_is_agreed_on_again_though_its_heads_are_recorded() -> None:
    """M25, M31."""
    proposal = Sum(SEVEN, UPLOADS, PCS).proposal(PCS[0])
    first = agree(SEVEN, KEYS[PCS[0]], proposal, None, {})
    assert isinstance(first, Agreement)
    heads = {who: upload.header.head for who, upload in UPLOADS.items()}
    assert agree(SEVEN, KEYS[PCS[0]], proposal, first.set_hash, heads) == first
    later = {
        **heads,
        PCS[1]: LedgerHead(9, bytes(32)),
    }  # it was recorded by an unmask, without a look
    assert isinstance(agree(SEVEN, KEYS[PCS[0]], proposal, first.set_hash, later), Complaint)


def test_nobody_else_can_state_a_dealers_head() -> None:
    """M31: it is under the signature."""
    proposed = list(Sum(SEVEN, UPLOADS, PCS).proposal(PCS[0]).uploads)
    header = dataclasses.replace(proposed[0].header, head=LedgerHead(9, bytes(32)))
    proposed[0] = dataclasses.replace(proposed[0], header=header)
    with pytest.raises(SecAggError, match="signature"):
        agree(SEVEN, KEYS[PCS[0]], Proposal(tuple(proposed)), None, {})


# Bad uploaders and bad members are told apart


def test_a_blob_that_does_not_open_names_its_dealer_and_the_rest_goes_on() -> None:
    """M19, M20."""
    bad = PCS[2]
    found = dict(UPLOADS)
    found[bad] = resigned(found[bad])
    summed = Sum(SEVEN, found, PCS)
    answer = agree(SEVEN, KEYS[PCS[0]], summed.proposal(PCS[0]), None, {})
    assert isinstance(answer, Complaint)
    assert (answer.uploader, answer.reason) == (bad, Reason.SHARES)
    Complaint.decode(answer.encode()).check(SEVEN)
    summed.leave_out(bad)
    inside = [who for who in PCS if who != bad]
    total = opened(SEVEN, KEYS, summed, PCS, PCS)
    assert np.array_equal(total, plain(SEVEN, inside))


def resigned(upload: Upload) -> Upload:
    """A dishonest uploader's: a blob for the first member that does not open, properly signed."""
    wrong = bytes([upload.blobs[0] ^ 1]) + bytes(upload.blobs[1:])
    own = hashlib.sha256(blob_of(dataclasses.replace(upload, blobs=wrong), 0)).digest()
    leaves = (own + upload.leaves[0][32:], *upload.leaves[1:])
    header = dataclasses.replace(upload.header, leaves_root=tree.root(leaves))
    signature = KEYS[header.uploader].identity.sign(header.signed_part())
    return dataclasses.replace(
        upload, header=header, signature=signature, leaves=leaves, blobs=wrong
    )


def test_a_members_wrong_or_missing_share_is_left_out_and_the_others_open() -> None:
    """M26."""
    inside = PCS[:6]
    summed = Sum(SEVEN, UPLOADS, inside)
    signed = agreements(SEVEN, KEYS, summed, PCS)
    releases = [release(SEVEN, KEYS[m], Unmask(summed.proposal(m), signed), None)[1] for m in PCS]
    good = releases[0].released
    first = good[0]
    for wrong in (
        dataclasses.replace(first, own=bytes(33)),
        dataclasses.replace(first, own=first.pairs[0]),
        dataclasses.replace(first, pairs=(bytes(33),)),
        dataclasses.replace(first, pairs=()),
        dataclasses.replace(first, commitments=()),
        dataclasses.replace(first, pairs=(), commitments=()),
        dataclasses.replace(first, commitments=first.commitments[::-1]),
        dataclasses.replace(first, uploader=PCS[6]),
    ):
        with pytest.raises(SecAggError):
            summed.aggregator.take(Release(releases[0].member, (wrong, *good[1:])))
    for few in (good[1:], good[:1] * 6, ()):
        with pytest.raises(SecAggError):
            summed.aggregator.take(Release(releases[0].member, few))
    with pytest.raises(SecAggError):  # what was for another member
        summed.aggregator.take(Release(PCS[1], good))
    assert np.array_equal(summed.open(releases[1:]), plain(SEVEN, inside))


def test_a_dealer_whose_pair_disagrees_with_all_others_is_found() -> None:
    terms = SEVEN
    bad = PCS[4]
    other = dataclasses.replace(KEYS[bad], mask=KEYS[PCS[0]].mask)  # not the key it published
    found = {**UPLOADS, bad: mask_and_share(terms, other, encoded(terms, bad), HEAD)}
    assert Sum(terms, found, PCS).aggregator.disagreeing() == [
        tuple(sorted((bad, pc))) for pc in PCS if pc != bad
    ]
    assert Sum(terms, UPLOADS, PCS).aggregator.disagreeing() == []


def test_of_two_that_disagree_alone_the_pair_is_named() -> None:
    """A uploader that lies to one PC only cannot be told from that PC."""
    liar, victim = PCS[1], PCS[4]
    found = dict(UPLOADS)
    checks = list(found[liar].checks)
    checks[1 + SEVEN.neighbours(liar).index(victim)] = bytes(16)
    header = dataclasses.replace(found[liar].header, checks_hash=list_hash(checks))
    found[liar] = dataclasses.replace(
        found[liar],
        header=header,
        checks=tuple(checks),
        signature=KEYS[liar].identity.sign(header.signed_part()),
    )
    assert Sum(SEVEN, found, PCS).aggregator.disagreeing() == [tuple(sorted((liar, victim)))]


def test_a_dealer_of_shares_that_give_another_key_is_named_and_the_total_stays() -> None:
    """M27."""
    liar = PCS[3]
    found = dict(UPLOADS)
    checks = (bytes(16), *found[liar].checks[1:])
    header = dataclasses.replace(found[liar].header, checks_hash=list_hash(checks))
    signature = KEYS[liar].identity.sign(header.signed_part())
    found[liar] = dataclasses.replace(
        found[liar], header=header, checks=checks, signature=signature
    )
    summed = Sum(SEVEN, found, PCS)
    before = summed.total.copy()
    with pytest.raises(SecAggError, match=f"PC {liar.hex()[:16]} uploaded shares"):
        opened(SEVEN, KEYS, summed, PCS, PCS)
    assert np.array_equal(summed.total, before)


def test_of_two_uploads_by_one_pc_the_first_counts() -> None:
    summed = Sum(SEVEN, UPLOADS, PCS[:6])
    with pytest.raises(SecAggError, match="two uploads"):
        summed.aggregator.accept(mask_and_share(SEVEN, KEYS[PCS[0]], encoded(SEVEN, PCS[0]), HEAD))
    total = opened(SEVEN, KEYS, summed, PCS, PCS)
    assert np.array_equal(total, plain(SEVEN, PCS[:6]))


# Frames


@pytest.mark.parametrize("kind", ["proposal", "agreement", "complaint", "unmask", "release"])
def test_frames_come_back_and_their_damage_is_refused_or_changes_nothing_quietly(kind: str) -> None:
    """M29, M30."""
    summed = Sum(SEVEN, UPLOADS, PCS)
    signed = agreements(SEVEN, KEYS, summed, PCS)
    proposal = summed.proposal(PCS[0])
    request = Unmask(proposal, signed)
    frame: Any = {
        "proposal": proposal,
        "agreement": signed[0],
        "complaint": Complaint(PCS[0], PCS[1], Reason.LEDGER, bytes(64)),
        "unmask": request,
        "release": release(SEVEN, KEYS[PCS[0]], request, None)[1],
    }[kind]
    content = frame.encode()
    assert type(frame).decode(content).encode() == content
    for place in range(0, len(content), max(1, len(content) // 400)):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 1])
                        + content[place + 1 :]):  # fmt: skip
            try:
                again = type(frame).decode(damaged)
            except (EncodingError, SecAggError):
                continue
            assert again.encode() == damaged
            assert again != frame
