"""Whole rounds: what the sum is, who may be missing, and what a lying coordinator gets."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedaipc.errors import BadShares, EncodingError, SecAggError
from fedaipc.secagg.committee import (
    NO_SHARE,
    Agreement,
    Complaint,
    Proposal,
    Release,
    Unmask,
    agree,
    release,
)
from fedaipc.secagg.keys import ExchangeKey
from fedaipc.secagg.round_keys import open_shares
from fedaipc.secagg.uploads import LedgerHead
from tests.support.secagg import SharedOut, Sum, federation, resigned, shared_out

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fedaipc.secagg.terms import Terms
    from fedaipc.secagg.uploads import Upload

SEVEN = shared_out(*federation(7))
GROUP, KEYS = SEVEN.group, SEVEN.keys
PCS = GROUP.members
SHARES = GROUP.terms.thresholds.shares


def encoded(terms: Terms, who: bytes) -> np.ndarray:
    number = terms.participants.index(who)
    update = np.random.default_rng(number).uniform(-1, 1, terms.size).astype("f4")
    return terms.encoding.encode(update, 1, who)


def uploads(found: SharedOut) -> dict[bytes, Upload]:
    return {who: found.upload(who, encoded(found.group.terms, who)) for who in found.group.members}


UPLOADS = uploads(SEVEN)


def summed(inside: Collection[bytes], found: SharedOut = SEVEN) -> Sum:
    all_uploads = UPLOADS if found is SEVEN else uploads(found)
    return Sum(found.group, found.key_shares.values(), all_uploads, inside)


def agreements(total: Sum, members: Sequence[bytes]) -> tuple[Agreement, ...]:
    signed = []
    for member in members:
        proposal = Proposal.decode(total.proposal.encode())
        answer = agree(total.group, KEYS[member], proposal, None, {})
        assert isinstance(answer, Agreement)
        signed.append(Agreement.decode(answer.encode()))
    return tuple(signed)


def released(total: Sum, member: bytes, signed: Sequence[Agreement]) -> Release:
    request = Unmask.decode(total.unmask(member, signed).encode())
    digest, answer = release(total.group, KEYS[member], request, signed[0].set_hash)
    assert digest == signed[0].set_hash
    return Release.decode(answer.encode())


def opened(total: Sum, signing: Sequence[bytes], releasing: Sequence[bytes]) -> np.ndarray:
    signed = agreements(total, signing)
    return total.open(released(total, member, signed) for member in releasing)


def plain(terms: Terms, inside: Collection[bytes]) -> np.ndarray:
    total = sum(encoded(terms, who) for who in inside)
    return terms.encoding.decode(np.asarray(total, terms.encoding.dtype))


# What comes out


def test_the_sum_is_the_plain_sum_for_every_set_of_survivors_and_none_below_the_least() -> None:
    for size in range(8):
        for inside in itertools.combinations(PCS, size):
            total = summed(inside[::-1])
            if size < GROUP.terms.thresholds.least:
                with pytest.raises(SecAggError, match="are unmasked"):
                    _ = total.proposal
                continue
            assert np.array_equal(opened(total, PCS[:5], PCS[2:]), plain(GROUP.terms, inside))


def test_every_committee_of_threshold_size_opens_and_none_below() -> None:
    inside = PCS[1:]
    for members in itertools.combinations(PCS, SHARES):
        assert np.array_equal(opened(summed(inside), members, members), plain(GROUP.terms, inside))
    few = PCS[: SHARES - 1]
    with pytest.raises(SecAggError, match="members agreed"):
        opened(summed(inside), few, PCS)
    with pytest.raises(SecAggError, match="members released"):
        opened(summed(inside), PCS, few)


@pytest.mark.parametrize("bits", [16, 24])
def test_smaller_rings_sum_as_exactly(bits: int) -> None:
    found = shared_out(*federation(5, bits=bits))
    inside = found.group.members[:4]
    total = opened(summed(inside, found), inside, inside)
    assert np.array_equal(total, plain(found.group.terms, inside))


def test_three_pcs_are_the_fewest() -> None:
    found = shared_out(*federation(3))
    everyone = found.group.members
    total = opened(summed(everyone, found), everyone, everyone)
    assert np.array_equal(total, plain(found.group.terms, everyone))
    with pytest.raises(SecAggError, match="are unmasked"):
        _ = summed(everyone[:2], found).proposal


def test_those_that_gave_no_round_key_hold_shares_and_have_no_further_part() -> None:
    """M11, M35: one is silent from the start, another after it gave its key."""
    found = SEVEN.only(PCS[1:])
    total = summed(PCS[2:], found)
    signed = agreements(total, PCS[1:])
    assert np.array_equal(
        total.open(released(total, member, signed) for member in PCS[2:]),
        plain(GROUP.terms, PCS[2:]),
    )
    stranger = Agreement(PCS[0], signed[0].set_hash, signed[0].signature)
    with pytest.raises(SecAggError, match="takes no part"):
        stranger.check(found.group)


# What a lying coordinator gets


def test_a_second_set_is_never_signed_and_never_opened() -> None:
    """M21, M23, M25: the attack that opens one vector by two overlapping sets."""
    first, second = summed(PCS), summed(PCS[1:])
    signed = agreements(first, PCS)
    recorded = signed[0].set_hash
    with pytest.raises(SecAggError, match="another set"):
        agree(GROUP, KEYS[PCS[0]], second.proposal, recorded, {})
    elsewhere = agreements(second, PCS)  # of members that forgot: they count into c
    for who in PCS:
        with pytest.raises(SecAggError, match="another set"):
            release(GROUP, KEYS[who], second.unmask(who, elsewhere), recorded)
    again = agree(GROUP, KEYS[PCS[0]], first.proposal, recorded, {})
    assert again == signed[0]


def test_shares_of_one_pc_are_of_its_own_mask_or_of_its_round_key_never_of_both() -> None:
    """M24: "active" and "dead" at once is what opens a vector elsewhere."""
    inside = PCS[:5]
    total = summed(inside)
    signed = agreements(total, PCS)
    for member in PCS:
        shares = released(total, member, signed).shares
        assert len(shares) == len(PCS)
        for sharer, share, blob in zip(PCS, shares, total.aggregator.blobs(member), strict=True):
            round_key, own_mask = open_shares(GROUP, KEYS[member], sharer, blob)
            assert share == (own_mask if sharer in inside else round_key)


def test_a_coordinator_that_shows_two_views_of_the_round_keys_opens_neither() -> None:
    """M13, M21: half of the PCs see another group, and each upload is for one view alone."""
    views = SEVEN.only(PCS[:6]), SEVEN.only(PCS[1:])
    contexts = {view.group.context for view in views}
    assert len(contexts) == 2
    upload = views[0].upload(PCS[2], encoded(GROUP.terms, PCS[2]))
    upload.check(views[0].group)
    with pytest.raises(SecAggError, match="another round"):
        upload.check(views[1].group)
    signed = agreements(summed(PCS[:5], views[0]), PCS[:5])
    with pytest.raises(SecAggError, match="signature"):
        signed[2].check(views[1].group)


def test_the_round_key_of_a_pc_that_dropped_out_tells_nothing_of_another_round() -> None:
    """M15: it is drawn anew, and so is its own mask; a late upload stays masked by that."""
    later = shared_out(dataclasses.replace(GROUP.terms, number=2), KEYS)
    gone = PCS[6]
    assert later.secrets[gone].exchange.public != SEVEN.secrets[gone].exchange.public
    assert later.secrets[gone].own_mask != SEVEN.secrets[gone].own_mask
    words = encoded(GROUP.terms, gone)
    late = SEVEN.upload(gone, words.copy())
    rebuilt = SEVEN.secrets[gone].exchange  # what the shares of the others give
    without = dataclasses.replace(SEVEN.secrets[gone], exchange=rebuilt, own_mask=bytes(32))
    guess = dataclasses.replace(SEVEN, secrets={**SEVEN.secrets, gone: without})
    pairs_alone = guess.upload(gone, np.zeros_like(words))
    zero_mask = GROUP.terms.encoding.unpack(pairs_alone.vector, GROUP.terms.size)
    left = GROUP.terms.encoding.unpack(late.vector, GROUP.terms.size) - zero_mask
    assert not np.array_equal(left, words)


@pytest.mark.parametrize("forge", ["stranger", "another set", "one signer", "wrong signature"])
def test_a_forged_quorum_opens_nothing(forge: str) -> None:
    """M22."""
    total = summed(PCS)
    signed = list(agreements(total, PCS))
    match forge:
        case "stranger":
            signed[0] = dataclasses.replace(signed[0], member=bytes(32))
        case "another set":
            signed = list(agreements(summed(PCS[1:]), PCS))
        case "one signer":
            signed = [signed[0]] * 7
        case _:
            signed[3] = dataclasses.replace(signed[3], signature=signed[2].signature)
    with pytest.raises(SecAggError):
        release(GROUP, KEYS[PCS[0]], total.unmask(PCS[0], signed), None)


@pytest.mark.parametrize("change", ["too small", "twice", "order", "another round", "header"])
def test_what_is_no_set_of_the_round_is_not_signed(change: str) -> None:
    """M18."""
    proposed = list(summed(PCS).proposal.uploads)
    match change:
        case "too small":
            proposed = proposed[:4]
        case "twice":
            proposed = [*proposed[:1], *proposed]
        case "order":
            proposed = proposed[::-1]
        case "another round":
            other = SEVEN.only(PCS[:6]).upload(PCS[0], encoded(GROUP.terms, PCS[0]))
            proposed[0] = other.header, other.signature
        case _:
            header, signature = proposed[0]
            proposed[0] = dataclasses.replace(header, vector_hash=bytes(32)), signature
    with pytest.raises(SecAggError):
        agree(GROUP, KEYS[PCS[0]], Proposal(tuple(proposed)), None, {})


def test_a_vector_that_was_swapped_after_it_was_signed_is_refused() -> None:
    """M17."""
    wrong = dataclasses.replace(UPLOADS[PCS[0]], vector=UPLOADS[PCS[1]].vector)
    with pytest.raises(SecAggError, match="not the one that its uploader signed"):
        wrong.check(GROUP)


# A ledger only grows


@pytest.mark.parametrize(("seen", "grown"), [(2, True), (3, False), (4, False), (2**64 - 1, False)])
def test_a_member_complains_of_a_ledger_that_did_not_grow(seen: int, grown: bool) -> None:
    """M31: each upload is one charge more than the last that was seen."""
    heads = {PCS[2]: LedgerHead(seen, bytes(32)), PCS[4]: LedgerHead(1, bytes(32))}
    answer = agree(GROUP, KEYS[PCS[0]], summed(PCS).proposal, None, heads)
    if grown:
        assert isinstance(answer, Agreement)
        return
    assert isinstance(answer, Complaint)
    assert (answer.member, answer.uploader) == (PCS[0], PCS[2])
    Complaint.decode(answer.encode()).check(GROUP)
    for other in ({"uploader": PCS[3]}, {"member": PCS[3]}):
        with pytest.raises(SecAggError, match="signature"):
            dataclasses.replace(answer, **other).check(GROUP)


def test_a_set_that_was_agreed_on_is_agreed_on_again_though_its_heads_are_recorded() -> None:
    """M25, M31."""
    proposal = summed(PCS).proposal
    first = agree(GROUP, KEYS[PCS[0]], proposal, None, {})
    assert isinstance(first, Agreement)
    heads = {who: upload.header.head for who, upload in UPLOADS.items()}
    assert agree(GROUP, KEYS[PCS[0]], proposal, first.set_hash, heads) == first
    # It was recorded by an unmask, without a look.
    later = {**heads, PCS[1]: LedgerHead(9, bytes(32))}
    assert isinstance(agree(GROUP, KEYS[PCS[0]], proposal, first.set_hash, later), Complaint)


def test_nobody_else_can_state_an_uploaders_head() -> None:
    """M31: it is under the signature."""
    proposed = list(summed(PCS).proposal.uploads)
    header = dataclasses.replace(proposed[0][0], head=LedgerHead(9, bytes(32)))
    proposed[0] = header, proposed[0][1]
    with pytest.raises(SecAggError, match="signature"):
        agree(GROUP, KEYS[PCS[0]], Proposal(tuple(proposed)), None, {})


# Bad sharers and bad members are told apart


@pytest.mark.parametrize("inside", [PCS, PCS[:6]], ids=["uploaded", "dropped out"])
def test_a_blob_that_cannot_be_opened_costs_one_share(inside: tuple[bytes, ...]) -> None:
    """M19, M20, M24: of a PC that uploaded and of one that did not."""
    bad = PCS[6]
    wrong = bytes([SEVEN.key_shares[bad].blobs[0][0] ^ 1]) + SEVEN.key_shares[bad].blobs[0][1:]
    found = resigned(SEVEN, bad, blobs=(wrong, *SEVEN.key_shares[bad].blobs[1:]))
    total = summed(inside, found)
    signed = agreements(total, PCS)
    first = released(total, PCS[0], signed)
    assert first.shares[6] == NO_SHARE
    assert NO_SHARE not in first.shares[:6]
    assert total.aggregator.take(first) == (bad,)
    assert total.aggregator.missing == SHARES
    for member in PCS[1:]:
        assert total.aggregator.take(released(total, member, signed)) == ()
    assert np.array_equal(total.open([]), plain(GROUP.terms, inside))


def test_a_members_wrong_or_missing_share_is_left_out_and_the_others_open() -> None:
    """M26."""
    inside = PCS[:6]
    total = summed(inside)
    signed = agreements(total, PCS)
    releases = [released(total, member, signed) for member in PCS]
    good = releases[0].shares
    round_key, own_mask = open_shares(
        GROUP, KEYS[PCS[0]], PCS[0], total.aggregator.blobs(PCS[0])[0]
    )
    assert good[0] == own_mask
    for wrong in (bytes(33), NO_SHARE, good[1], round_key, releases[1].shares[0]):
        lie = Release(PCS[0], (wrong, *good[1:]))
        assert total.aggregator.take(lie) == (PCS[0],)
    for few in (good[1:], (*good, good[0]), ()):
        with pytest.raises(SecAggError, match="what the set asks for"):
            total.aggregator.take(Release(PCS[0], few))
    assert total.aggregator.take(Release(PCS[1], good)) == PCS  # what was for another member
    with pytest.raises(SecAggError):
        total.aggregator.take(Release(bytes(32), good))
    assert np.array_equal(total.open(releases[1:]), plain(GROUP.terms, inside))


def test_a_sharer_of_shares_of_another_own_mask_is_named_and_the_total_stays() -> None:
    """M27."""
    liar = PCS[3]
    found = resigned(SEVEN, liar, check=bytes(16))
    total = summed(PCS, found)
    before = total.total.copy()
    with pytest.raises(BadShares, match=f"PC {liar.hex()[:16]} gave out shares") as caught:
        opened(total, PCS, PCS)
    assert caught.value.pcs == (liar,)
    assert np.array_equal(total.total, before)


def test_a_sharer_of_shares_of_another_round_key_is_named_where_it_drops_out() -> None:
    """M27: what is rebuilt must be the secret half of what all others used."""
    liar = PCS[6]
    other = ExchangeKey()
    card = dataclasses.replace(SEVEN.key_shares[liar].card, public=other.public)
    signature = KEYS[liar].identity.sign(card.signed_part(GROUP.terms.context))
    card = dataclasses.replace(card, signature=signature)
    # Its blobs open under its new round key alone, so it seals the old shares again.
    found = resealed(SEVEN.instead(dataclasses.replace(SEVEN.key_shares[liar], card=card)), liar)
    total = summed(PCS[:6], found)
    before = total.total.copy()
    with pytest.raises(BadShares) as caught:
        opened(total, PCS, PCS[:6])
    assert caught.value.pcs == (liar,)
    assert np.array_equal(total.total, before)


def resealed(found: SharedOut, liar: bytes) -> SharedOut:
    """The shares that `liar` gave out in SEVEN, encrypted for its present round key."""
    from fedaipc.secagg import round_keys

    terms, blobs = GROUP.terms, []
    for place, bundle in enumerate(terms.bundles):
        shares = open_shares(
            GROUP, KEYS[bundle.identity], liar, SEVEN.key_shares[liar].blobs[place]
        )
        who = liar + bundle.identity + found.group.card(liar).public
        cipher = round_keys._cipher(KEYS[liar].share, bundle.share_key, terms.context, who)
        blobs.append(cipher.encrypt(bytes(12), b"".join(shares), None))
    return resigned(found, liar, blobs=tuple(blobs))


def test_of_two_uploads_by_one_pc_the_first_counts() -> None:
    total = summed(PCS[:6])
    again = SEVEN.upload(PCS[0], encoded(GROUP.terms, PCS[0]))
    with pytest.raises(SecAggError, match="two uploads"):
        total.aggregator.accept(again)
    assert np.array_equal(opened(total, PCS, PCS), plain(GROUP.terms, PCS[:6]))


# Frames


@pytest.mark.parametrize("kind", ["proposal", "agreement", "complaint", "unmask", "release"])
def test_frames_come_back_and_their_damage_is_refused_or_changes_nothing_quietly(kind: str) -> None:
    """M29, M30."""
    total = summed(PCS)
    signed = agreements(total, PCS)
    frame: Any = {
        "proposal": total.proposal,
        "agreement": signed[0],
        "complaint": Complaint(PCS[0], PCS[1], bytes(64)),
        "unmask": total.unmask(PCS[0], signed),
        "release": released(total, PCS[0], signed),
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
