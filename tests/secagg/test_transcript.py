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

from fedaipc.secagg import uploads as module
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
from fedaipc.secagg.shares import combine
from fedaipc.secagg.terms import Terms, Thresholds, check_value
from fedaipc.secagg.uploads import Keys, Upload, pair_key
from fedaipc.secagg.wire import VERSION
from tests.support.secagg import blob_of

ROUND: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "round.json").read_text()
)


def one(name: str) -> bytes:
    return bytes.fromhex(ROUND[name])


def of(name: str) -> dict[bytes, bytes]:
    return {bytes.fromhex(who): bytes.fromhex(frame) for who, frame in ROUND[name].items()}


def keys_of(secret: dict[str, str]) -> Keys:
    identity, mask, share = (bytes.fromhex(secret[name]) for name in ("identity", "mask", "share"))
    return Keys(SigningKey(identity), ExchangeKey(mask), ExchangeKey(share))


ADMISSION = SigningKey(one("admission"))
KEYS = {keys.identity.public: keys for keys in map(keys_of, ROUND["keys"])}
PCS = tuple(KEYS)
ABSENT = one("absent")
INSIDE = tuple(who for who in PCS if who != ABSENT)


def roster() -> Roster:
    return Roster.decode(one("roster"), ADMISSION.public)


def terms() -> Terms:
    return Terms.decode(one("terms"))


def uploads() -> dict[bytes, Upload]:
    return {who: Upload.decode(frame) for who, frame in of("uploads").items()}


def summed() -> tuple[Aggregator, np.ndarray]:
    """A coordinator that has the recorded uploads, and its total."""
    total = np.zeros(terms().size, terms().encoding.dtype)
    aggregator = Aggregator(terms(), total)
    for upload in uploads().values():
        aggregator.accept(upload)
    aggregator.recall(uploads().values())
    return aggregator, total


def proposed(aggregator: Aggregator, member: bytes) -> Proposal:
    place = terms().place(member)
    return aggregator.proposal(member, {d: blob_of(u, place) for d, u in uploads().items()})


# Frames


def test_the_record_is_of_this_wire_version() -> None:
    """M29: every frame says so itself. See write_round.py where this fails."""
    assert ROUND["version"] == VERSION
    frames = [one(name) for name in ("roster", "terms", "damaged", "complaint")]
    frames += [bytes.fromhex(bundle) for bundle in ROUND["bundles"]]
    for name in ("uploads", "proposals", "agreements", "requests", "releases"):
        frames += of(name).values()
    assert {frame[1] for frame in frames} == {VERSION}
    assert {frame[0] for frame in frames} == set(range(1, 11)) - {4}  # a header has no frame


@pytest.mark.parametrize(
    ("name", "decode"),
    [
        ("uploads", Upload.decode),
        ("proposals", Proposal.decode),
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
    assert Proposal.decode(one("damaged")).encode() == one("damaged")
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
        public = (bundle.identity, bundle.mask_key, bundle.share_key)
        assert public == (who, own.mask.public, own.share.public)
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


# Masks


def test_an_update_has_the_recorded_words() -> None:
    for place, who in enumerate(PCS):
        if who == ABSENT:
            continue
        plain = ROUND["plain"][who.hex()]
        update = np.frombuffer(bytes.fromhex(plain["update"]), "<f4")
        weight, dither = terms().weights[place], bytes.fromhex(plain["dither"])
        assert terms().encoding.encode(update, weight, dither).tolist() == plain["words"]


def test_an_upload_is_signed_as_recorded_and_accepted() -> None:
    """M17."""
    for who, upload in uploads().items():
        upload.check(terms())
        assert upload.header.uploader == who
        assert KEYS[who].identity.sign(upload.header.signed_part()) == upload.signature


def test_a_dealer_masks_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """M15, M27: with the own key that the releases give, and pair keys that both ends have."""
    found = {who: Release.decode(frame) for who, frame in of("releases").items()}
    for number, uploader in enumerate(INSIDE):
        for other in terms().neighbours(uploader):
            key = pair_key(terms(), KEYS[uploader], other)
            assert key == pair_key(terms(), KEYS[other], uploader)
        own = combine({PCS.index(who): r.released[number].own for who, r in found.items()})
        draws = SimpleNamespace(token_bytes=lambda _, own=own: own)
        monkeypatch.setattr(module, "secrets", draws)
        words = np.array(ROUND["plain"][uploader.hex()]["words"], "<u4")
        upload = module.mask_and_share(
            terms(), KEYS[uploader], words, uploads()[uploader].header.head
        )
        assert upload.vector == uploads()[uploader].vector
        assert upload.checks == uploads()[uploader].checks
        assert upload.checks[0] == check_value(terms().context, own)


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


def test_every_member_is_shown_the_recorded_set() -> None:
    """M18."""
    aggregator, _ = summed()
    assert aggregator.uploaders == INSIDE
    assert aggregator.set_hash == one("set_hash")
    for who, frame in of("proposals").items():
        assert proposed(aggregator, who).encode() == frame
        assert Proposal.decode(frame).hash(terms()) == one("set_hash")


@pytest.mark.parametrize("recorded", [None, one("set_hash")])
def test_every_member_agrees_byte_for_byte(recorded: bytes | None) -> None:
    """M21, M25."""
    for who, frame in of("proposals").items():
        answer = agree(terms(), KEYS[who], Proposal.decode(frame), recorded, {})
        assert answer.encode() == of("agreements")[who]
        assert isinstance(answer, Agreement)
        assert answer.set_hash == one("set_hash")
        answer.check(terms())
        assert read_answer(of("agreements")[who]) == answer


def test_a_member_complains_byte_for_byte_of_a_damaged_blob() -> None:
    """M19."""
    answer = agree(terms(), KEYS[PCS[0]], Proposal.decode(one("damaged")), None, {})
    assert answer.encode() == one("complaint")
    assert isinstance(answer, Complaint)
    assert (answer.member, answer.uploader) == (PCS[0], INSIDE[0])
    answer.check(terms())


def test_a_request_is_the_proposal_with_the_first_agreements() -> None:
    """M22."""
    signed = tuple(Agreement.decode(frame) for frame in of("agreements").values())
    quorum = signed[: terms().thresholds.shares]
    for who, frame in of("requests").items():
        request = Unmask(Proposal.decode(of("proposals")[who]), quorum)
        assert request.encode() == frame


@pytest.mark.parametrize("recorded", [None, one("set_hash")])
def test_every_member_releases_byte_for_byte(recorded: bytes | None) -> None:
    """M23 to M25."""
    for who, frame in of("requests").items():
        digest, answer = release(terms(), KEYS[who], Unmask.decode(frame), recorded)
        assert digest == one("set_hash")
        assert answer.encode() == of("releases")[who]
        assert [len(uploader.pairs) for uploader in answer.released] == [1] * len(INSIDE)


@pytest.mark.parametrize("members", list(itertools.combinations(range(5), 4)), ids=str)
def test_every_committee_opens_the_recorded_sum(members: tuple[int, ...]) -> None:
    """M26."""
    aggregator, total = summed()
    for place in members:
        aggregator.take(Release.decode(of("releases")[PCS[place]]))
    aggregator.unmask()
    assert total.view("<i4").tolist() == ROUND["sum"]
    words = np.array([plain["words"] for plain in ROUND["plain"].values()], "<u4")
    assert np.array_equal(words.sum(axis=0, dtype="<u4"), total)
    scaled = terms().encoding.decode(total) * terms().encoding.scale
    assert np.rint(scaled).astype(int).tolist() == ROUND["sum"]
