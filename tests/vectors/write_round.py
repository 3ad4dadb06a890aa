"""Writes round.json: one whole round, frozen byte for byte, for tests/secagg/test_transcript.py.

Run as `python tests/vectors/write_round.py`. The record is what makes two releases of fedaipc
understand each other: a PC that was updated and one that was not are in one round. So it is made
once for each version of the wire format (fedaipc.secagg.wire.VERSION) and never again; the script
refuses to replace a record of the version that it would write. Where the test fails, the code has
changed what it sends: undo that, or count the version up and only then write a new record.

How it was made: a roster of seven members, of which the public draw asks five. All five published
keys and gave out shares; four of them uploaded, and the fifth, which is the one in the middle, is
absent from the set but answers as a member of its group. Every secret is in the record; all other
randomness came from the operating system, as in a real round.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedaipc.secagg.aggregator import Aggregator
from fedaipc.secagg.committee import Agreement, Complaint, Unmask, agree, release
from fedaipc.secagg.encoding import BITS, Encoding
from fedaipc.secagg.keys import ExchangeKey, SigningKey, fingerprint
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.round_keys import Group, Keys, share_secrets
from fedaipc.secagg.terms import Terms, thresholds
from fedaipc.secagg.uploads import LedgerHead, mask_update
from fedaipc.secagg.wire import VERSION

RECORD = Path(__file__).with_name("round.json")
MEMBERS, ASKED, SIZE = 7, 5, 21
NOW, NUMBER = 1_800_000_000, 3
FEDERATION, RUN = "reviews", "0123456789abcdef"
CLASSES, WEIGHTS = (16, 64, 256, 32, 128), (16, 48, 48, 32, 48)  # none above 16 + 32 (M32)


def identities() -> tuple[SigningKey, Roster, tuple[Keys, ...]]:
    """The admission key, its roster, and the keys of those who are asked, ascending."""
    admission = SigningKey()
    keys = [Keys(SigningKey(), ExchangeKey()) for _ in range(MEMBERS)]
    own = {key.identity.public: key for key in keys}
    roster = Roster.sign(
        admission,
        federation=FEDERATION,
        version=2,
        beacon=secrets.token_bytes(32),
        members=list(own),
    )
    (group,) = roster.groups(NUMBER, ASKED)
    return admission, roster, tuple(own[identity] for identity in group)


def terms_of(roster: Roster, asked: tuple[Keys, ...]) -> Terms:
    bundles = tuple(
        Bundle(
            federation=FEDERATION,
            run=RUN,
            epoch=1,
            not_after=NOW + 24 * 3600,
            identity=keys.identity.public,
            size_class=size_class,
            share_key=keys.share.public,
        ).signed_by(keys.identity)
        for keys, size_class in zip(asked, CLASSES, strict=True)
    )
    terms = Terms(
        federation=FEDERATION,
        roster_hash=roster.hash,
        run=RUN,
        number=NUMBER,
        job_hash=secrets.token_bytes(32),
        vector_hash=secrets.token_bytes(32),
        size=SIZE,
        bits=32,
        bound=300.5,
        cohort=ASKED,
        thresholds=thresholds(ASKED, group=ASKED, members=MEMBERS, colluding=1, least=0.7, draws=1),
        bundles=bundles,
        weights=WEIGHTS,
    )
    terms.check(roster, roster.groups(NUMBER, ASKED)[0], NOW)
    return terms


def sums(terms: Terms, asked: tuple[Keys, ...]) -> dict[str, Any]:
    """From the shares to the sum."""
    absent = terms.participants[ASKED // 2]
    own, key_shares = {}, {}
    for keys in asked:
        own[keys.identity.public], key_shares[keys.identity.public] = share_secrets(terms, keys)
    group = Group(terms, tuple(key_shares[who].card for who in terms.participants))
    plain, uploads = {}, {}
    for keys, weight in zip(asked, WEIGHTS, strict=True):
        if (who := keys.identity.public) == absent:
            continue
        update = np.random.default_rng().uniform(-1, 1, SIZE).astype("<f4")
        dither = secrets.token_bytes(32)
        words = terms.encoding.encode(update, weight, dither)
        plain[who] = {
            "update": update.tobytes().hex(),
            "dither": dither.hex(),
            "words": words.tolist(),
        }
        head = LedgerHead(weight, secrets.token_bytes(32))
        uploads[who] = mask_update(group, keys, own[who], words, head)
    total = np.zeros(SIZE, terms.encoding.dtype)
    aggregator = Aggregator(group, total)
    for upload in uploads.values():
        aggregator.accept(upload)
    aggregator.recall(key_shares.values())
    proposal = aggregator.proposal()
    agreements: dict[bytes, Agreement] = {}
    for keys in asked:
        answer = agree(group, keys, proposal, None, {})
        if not isinstance(answer, Agreement):
            sys.exit("a member complains of a good upload")
        agreements[keys.identity.public] = answer
    quorum = tuple(agreements.values())[: terms.thresholds.shares]
    requests = {who: Unmask(proposal, quorum, aggregator.blobs(who)) for who in terms.participants}
    releases = {
        keys.identity.public: release(group, keys, requests[keys.identity.public], None)[1]
        for keys in asked
    }
    for one in releases.values():
        aggregator.take(one)
    aggregator.unmask()
    header, _ = proposal.uploads[0]
    seen = {header.uploader: LedgerHead(header.head.count, bytes(32))}
    complaint = agree(group, asked[0], proposal, None, seen)
    if not isinstance(complaint, Complaint):
        sys.exit("a member does not complain of a ledger that did not grow")
    return {
        "absent": absent.hex(),
        "secrets": frames(own),
        "key_shares": frames(key_shares),
        "round_keys": group.encode_keys().hex(),
        "group_context": group.context.hex(),
        "plain": named(plain),
        "uploads": frames(uploads),
        "proposal": proposal.encode().hex(),
        "agreements": frames(agreements),
        "requests": frames(requests),
        "releases": frames(releases),
        "seen": seen[header.uploader].encode().hex(),
        "complaint": complaint.encode().hex(),
        "set_hash": proposal.hash(group).hex(),
        "sum": total.view("<i4").tolist(),
    }


def named(values: dict[bytes, Any]) -> dict[str, Any]:
    return {who.hex(): value for who, value in values.items()}


def frames(values: dict[bytes, Any]) -> dict[str, str]:
    return {who.hex(): value.encode().hex() for who, value in values.items()}


def ring(bits: int) -> dict[str, Any]:
    """One masked and packed vector in a ring of so many bits, with all that made it."""
    update = np.random.default_rng().uniform(-2, 2, SIZE).astype("<f4")
    dither, key = secrets.token_bytes(32), secrets.token_bytes(32)
    encoding = Encoding(bits=bits, count=ASKED, bound=3.25)
    words = encoding.encode(update, 2, dither)
    add_masks(words, [key])
    return {
        "bits": bits,
        "count": encoding.count,
        "bound": encoding.bound,
        "update": update.tobytes().hex(),
        "weight": 2,
        "dither": dither.hex(),
        "mask": key.hex(),
        "packed": encoding.pack(words).hex(),
    }


def main() -> None:
    if RECORD.exists() and json.loads(RECORD.read_text())["version"] >= VERSION:
        sys.exit(f"{RECORD.name} is the record of wire version {VERSION}; it stays as it is")
    admission, roster, asked = identities()
    terms = terms_of(roster, asked)
    record = {
        "about": "One round of five PCs, made by write_round.py, which says when to remake it.",
        "version": VERSION,
        "now": NOW,
        "admission": admission.secret().hex(),
        "keys": [
            {
                "identity": keys.identity.secret().hex(),
                "share": keys.share.secret().hex(),
            }
            for keys in asked
        ],
        "roster": roster.encode().hex(),
        "roster_hash": roster.hash.hex(),
        "group": [who.hex() for who in terms.participants],
        "fingerprints": [fingerprint(who) for who in terms.participants],
        "bundles": [bundle.encode().hex() for bundle in terms.bundles],
        "terms": terms.encode().hex(),
        "context": terms.context.hex(),
        **sums(terms, asked),
        "rings": [ring(bits) for bits in BITS],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
