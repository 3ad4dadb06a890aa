"""A recorded round is replayed: who speaks this wire version sends these bytes and no others.

`tests/vectors/round.json` holds it and write_round.py made it. A change of a label, an order, a
width or a derivation breaks this file. Such a change is a new wire version: with it, and with it
alone, a new record may be written.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedaipc.secagg import round_keys as module
from fedaipc.secagg.aggregator import Aggregator
from fedaipc.secagg.committee import (
    Agreement,
    Complaint,
    Proposal,
    Release,
    Unmask,
    agree,
    read_answer,
    release,
)
from fedaipc.secagg.encoding import BITS, Encoding
from fedaipc.secagg.keys import ExchangeKey, SigningKey, fingerprint
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.round_keys import Group, Keys, KeyShares, RoundSecrets, open_shares, pair_key
from fedaipc.secagg.shares import combine
from fedaipc.secagg.terms import Terms, Thresholds
from fedaipc.secagg.uploads import LedgerHead, Upload, mask_update
from fedaipc.secagg.wire import VERSION

ROUND: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "round.json").read_text()
)


def one(name: str) -> bytes:
    return bytes.fromhex(ROUND[name])


def of(name: str) -> dict[bytes, bytes]:
    return {bytes.fromhex(who): bytes.fromhex(frame) for who, frame in ROUND[name].items()}


def keys_of(secret: dict[str, str]) -> Keys:
    identity, share = (bytes.fromhex(secret[name]) for name in ("identity", "share"))
    return Keys(SigningKey(identity), ExchangeKey(share))


ADMISSION = SigningKey(one("admission"))
KEYS = {keys.identity.public: keys for keys in map(keys_of, ROUND["keys"])}
PCS = tuple(KEYS)
ABSENT = one("absent")
INSIDE = tuple(who for who in PCS if who != ABSENT)
SECRETS = {who: RoundSecrets.decode(content) for who, content in of("secrets").items()}


def roster() -> Roster:
    return Roster.decode(one("roster"), ADMISSION.public)


def terms() -> Terms:
    return Terms.decode(one("terms"))


def group() -> Group:
    return Group.of(terms(), one("round_keys"))


def uploads() -> dict[bytes, Upload]:
    return {who: Upload.decode(frame) for who, frame in of("uploads").items()}


def key_shares() -> dict[bytes, KeyShares]:
    return {who: KeyShares.decode(frame) for who, frame in of("key_shares").items()}


def summed() -> tuple[Aggregator, np.ndarray]:
    """A coordinator that has the recorded uploads, and its total."""
    total = np.zeros(terms().size, terms().encoding.dtype)
    aggregator = Aggregator(group(), total)
    for upload in uploads().values():
        aggregator.accept(upload)
    aggregator.recall(key_shares().values())
    return aggregator, total


# Frames


def test_the_record_is_of_this_wire_version() -> None:
    """M29: every frame says so itself. See write_round.py where this fails."""
    assert ROUND["version"] == VERSION
    frames = [one(name) for name in ("roster", "terms", "round_keys", "proposal", "complaint")]
    frames += [bytes.fromhex(bundle) for bundle in ROUND["bundles"]]
    for name in ("key_shares", "uploads", "agreements", "requests", "releases"):
        frames += of(name).values()
    assert {frame[1] for frame in frames} == {VERSION}
    assert {frame[0] for frame in frames} == set(range(1, 12))


@pytest.mark.parametrize(
    ("name", "decode"),
    [
        ("key_shares", KeyShares.decode),
        ("uploads", Upload.decode),
        ("agreements", Agreement.decode),
        ("requests", Unmask.decode),
        ("releases", Release.decode),
    ],
)
def test_every_frame_comes_back_byte_for_byte(name: str, decode: Callable[[bytes], Any]) -> None:
    """M30."""
    found = of(name)
    assert tuple(found) == (INSIDE if name == "uploads" else PCS)
    for frame in found.values():
        assert decode(frame).encode() == frame


def test_the_frames_that_stand_alone_come_back_byte_for_byte() -> None:
    """M30."""
    assert roster().encode() == one("roster")
    assert terms().encode() == one("terms")
    assert group().encode_keys() == one("round_keys")
    assert Proposal.decode(one("proposal")).encode() == one("proposal")
    assert Complaint.decode(one("complaint")).encode() == one("complaint")
    for content in map(bytes.fromhex, ROUND["bundles"]):
        assert Bundle.decode(content).encode() == content


# Who takes part


def test_the_roster_is_signed_as_recorded_and_draws_the_recorded_group() -> None:
    """M5, M12."""
    found = roster()
    assert found.hash == one("roster_hash")
    assert found.groups(terms().number, 5) == (PCS,)
    assert [who.hex() for who in PCS] == ROUND["group"]
    again = Roster.sign(
        ADMISSION,
        federation=found.federation,
        version=found.version,
        beacon=found.beacon,
        members=found.members[::-1],
    )
    assert again.encode() == one("roster")


def test_bundles_are_signed_as_recorded_and_may_be_used() -> None:
    """M8."""
    for content, (who, own) in zip(ROUND["bundles"], KEYS.items(), strict=True):
        bundle = Bundle.decode(bytes.fromhex(content))
        bundle.check(roster(), terms().run, ROUND["now"])
        assert (bundle.identity, bundle.share_key) == (who, own.share.public)
        assert bundle.signed_by(own.identity).encode().hex() == content


def test_the_terms_keep_every_rule_and_have_the_recorded_context() -> None:
    """M13, M32: at least four of five are in a sum, so no weight is above the two lightest."""
    found = terms()
    found.check(roster(), PCS, ROUND["now"])
    assert found.context == one("context")
    assert [bundle.encode().hex() for bundle in found.bundles] == ROUND["bundles"]
    assert found.participants == PCS
    assert tuple(bundle.size_class for bundle in found.bundles) == (16, 64, 256, 32, 128)
    assert found.weights == (16, 48, 48, 32, 48)
    assert found.thresholds == Thresholds(count=5, colluding=1, shares=4, least=4)


def test_a_pc_has_the_recorded_fingerprint() -> None:
    """Two people compare it, perhaps with what one of them wrote down long ago."""
    assert [fingerprint(who) for who in PCS] == ROUND["fingerprints"]


# Shares


def test_a_pc_gives_out_the_recorded_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """M13, M16: with the recorded secrets, and the shares that the blobs hold."""
    for who, made in key_shares().items():
        made.verify(terms())
        opened = [
            open_shares(group(), KEYS[holder], who, blob)
            for holder, blob in zip(PCS, made.blobs, strict=True)
        ]
        own = SECRETS[who]
        for place, secret in enumerate((own.exchange.secret(), own.own_mask)):
            shares = {number: pair[place] for number, pair in enumerate(opened)}
            assert combine(shares) == secret
        draws = SimpleNamespace(token_bytes=lambda _, own=own: own.own_mask)
        monkeypatch.setattr(module, "secrets", draws)
        monkeypatch.setattr(
            module, "ExchangeKey", lambda own=own: ExchangeKey(own.exchange.secret())
        )
        monkeypatch.setattr(module, "split_all", lambda *_, opened=opened: opened)
        again, frame = module.share_secrets(terms(), KEYS[who])
        monkeypatch.undo()
        assert frame.encode() == of("key_shares")[who]
        assert again.encode() == of("secrets")[who]


def test_the_round_keys_have_the_recorded_context() -> None:
    """M13, M35."""
    assert group().members == PCS
    assert group().context == one("group_context")
    for who, own in SECRETS.items():
        group().check(own)
        assert own.card == key_shares()[who].card


# Masks


def test_an_update_has_the_recorded_words() -> None:
    for place, who in enumerate(PCS):
        if who == ABSENT:
            continue
        plain = ROUND["plain"][who.hex()]
        update = np.frombuffer(bytes.fromhex(plain["update"]), "<f4")
        weight, dither = terms().weights[place], bytes.fromhex(plain["dither"])
        assert terms().encoding.encode(update, weight, dither).tolist() == plain["words"]


def test_a_pc_masks_as_recorded() -> None:
    """M15, M17: with its own mask, and with pair keys that both ends have."""
    for who in INSIDE:
        for other in PCS:
            if other != who:
                key = pair_key(group(), SECRETS[who].exchange, who, other)
                assert key == pair_key(group(), SECRETS[other].exchange, other, who)
        words = np.array(ROUND["plain"][who.hex()]["words"], "<u4")
        head = uploads()[who].header.head
        upload = mask_update(group(), KEYS[who], SECRETS[who], words, head)
        assert upload.encode() == of("uploads")[who]
        upload.check(group())


@pytest.mark.parametrize("ring", ROUND["rings"], ids=lambda ring: f"{ring['bits']} bits")
def test_every_ring_encodes_masks_and_packs_as_recorded(ring: dict[str, Any]) -> None:
    encoding = Encoding(bits=ring["bits"], count=ring["count"], bound=ring["bound"])
    update = np.frombuffer(bytes.fromhex(ring["update"]), "<f4")
    words = encoding.encode(update, ring["weight"], bytes.fromhex(ring["dither"]))
    add_masks(words, [bytes.fromhex(ring["mask"])])
    assert encoding.pack(words).hex() == ring["packed"]


def test_there_is_a_record_of_every_ring() -> None:
    assert tuple(ring["bits"] for ring in ROUND["rings"]) == BITS


# Agreement and release


def test_the_set_is_the_recorded_one() -> None:
    """M18."""
    aggregator, _ = summed()
    assert aggregator.uploaders == INSIDE
    assert aggregator.proposal().encode() == one("proposal")
    assert Proposal.decode(one("proposal")).hash(group()) == one("set_hash")


@pytest.mark.parametrize("recorded", [None, one("set_hash")])
def test_every_member_agrees_byte_for_byte(recorded: bytes | None) -> None:
    """M21, M25."""
    for who in PCS:
        answer = agree(group(), KEYS[who], Proposal.decode(one("proposal")), recorded, {})
        assert answer.encode() == of("agreements")[who]
        assert isinstance(answer, Agreement)
        assert answer.set_hash == one("set_hash")
        answer.check(group())
        assert read_answer(of("agreements")[who]) == answer


def test_a_member_complains_byte_for_byte_of_a_ledger_that_went_back() -> None:
    """M31."""
    seen = {INSIDE[0]: LedgerHead.decode(one("seen"))}
    answer = agree(group(), KEYS[PCS[0]], Proposal.decode(one("proposal")), None, seen)
    assert answer.encode() == one("complaint")
    assert isinstance(answer, Complaint)
    assert (answer.member, answer.uploader) == (PCS[0], INSIDE[0])
    answer.check(group())


def test_a_request_is_the_proposal_with_the_first_agreements_and_a_members_blobs() -> None:
    """M22."""
    aggregator, _ = summed()
    signed = tuple(Agreement.decode(frame) for frame in of("agreements").values())
    quorum = signed[: terms().thresholds.shares]
    for who, frame in of("requests").items():
        request = Unmask(Proposal.decode(one("proposal")), quorum, aggregator.blobs(who))
        assert request.encode() == frame


@pytest.mark.parametrize("recorded", [None, one("set_hash")])
def test_every_member_releases_byte_for_byte(recorded: bytes | None) -> None:
    """M23 to M25."""
    for who, frame in of("requests").items():
        digest, answer = release(group(), KEYS[who], Unmask.decode(frame), recorded)
        assert digest == one("set_hash")
        assert answer.encode() == of("releases")[who]
        for sharer, share in zip(PCS, answer.shares, strict=True):
            pair = open_shares(
                group(), KEYS[who], sharer, key_shares()[sharer].blobs[PCS.index(who)]
            )
            assert share == pair[0 if sharer == ABSENT else 1]


@pytest.mark.parametrize("members", list(itertools.combinations(range(5), 4)), ids=str)
def test_every_committee_opens_the_recorded_sum(members: tuple[int, ...]) -> None:
    """M26, M27."""
    aggregator, total = summed()
    for place in members:
        assert aggregator.take(Release.decode(of("releases")[PCS[place]])) == ()
    aggregator.unmask()
    assert total.view("<i4").tolist() == ROUND["sum"]
    words = np.array([plain["words"] for plain in ROUND["plain"].values()], "<u4")
    assert np.array_equal(words.sum(axis=0, dtype="<u4"), total)
    scaled = terms().encoding.decode(total) * terms().encoding.scale
    assert np.rint(scaled).astype(int).tolist() == ROUND["sum"]
