"""A small federation with real keys, for tests of secure aggregation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.secagg.aggregator import Aggregator
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.terms import Terms, Thresholds, thresholds
from fedaipc.secagg.uploads import Keys, LedgerHead, Upload, blob_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from fedaipc.secagg.committee import Proposal, Release

NOW = 1_800_000_000.0
HEAD = LedgerHead(3, bytes(range(32)))  # of a ledger with two charges


def federation(count: int, **changes: Any) -> tuple[Terms, dict[bytes, Keys]]:
    """Terms of a round of `count` PCs, and everybody's keys by identity."""
    keys = [
        Keys(
            SigningKey(number.to_bytes(32, "big")),
            ExchangeKey((1000 + number).to_bytes(32, "big")),
            ExchangeKey((2000 + number).to_bytes(32, "big")),
        )
        for number in range(1, count + 1)
    ]
    own = {key.identity.public: key for key in keys}
    roster = Roster.sign(
        SigningKey(bytes(31) + b"\xff"), federation="f", version=1, beacon=bytes(32),
        members=list(own),
    )  # fmt: skip
    bundles = tuple(
        Bundle(
            federation="f", run="r", epoch=1, not_after=int(NOW) + 60, identity=identity,
            size_class=64,
            mask_key=own[identity].mask.public, share_key=own[identity].share.public,
        ).signed_by(own[identity].identity)
        for identity in sorted(own)
    )  # fmt: skip
    terms = Terms(
        federation="f", roster_hash=roster.hash, run="r", number=1, job_hash=bytes(32),
        vector_hash=bytes(32), size=50, bits=32, bound=1.0, cohort=count,
        thresholds=usual(count), bundles=bundles, weights=(1,) * count,
    )  # fmt: skip
    terms = dataclasses.replace(terms, **changes)
    terms.check(roster, roster.groups(1, count)[0], NOW)
    return terms, own


def usual(count: int) -> Thresholds:
    """Of a federation of `count` PCs that all take part, a tenth of them colluding."""
    colluding = max(1, count // 10)
    return thresholds(count, group=count, members=count, colluding=colluding, least=0.7, draws=1)


class Sum:
    """A coordinator that keeps all uploads in memory."""

    def __init__(
        self, terms: Terms, uploads: Mapping[bytes, Upload], inside: Collection[bytes]
    ) -> None:
        self.terms = terms
        self.total = np.zeros(terms.size, terms.encoding.dtype)
        self.aggregator = Aggregator(terms, self.total)
        self.uploads = {who: Upload.decode(uploads[who].encode()) for who in inside}
        for upload in self.uploads.values():
            self.aggregator.accept(upload)
        self.aggregator.recall(self.uploads.values())

    def proposal(self, member: bytes) -> Proposal:
        place = self.terms.place(member)
        blobs = {who: blob_of(upload, place) for who, upload in self.uploads.items()}
        return self.aggregator.proposal(member, blobs)

    def leave_out(self, uploader: bytes) -> None:
        self.aggregator.leave_out(uploader, self.uploads.pop(uploader).vector)

    def open(self, releases: Iterable[Release]) -> np.ndarray:
        for one in releases:
            self.aggregator.take(one)
        self.aggregator.unmask()
        return self.terms.encoding.decode(self.total)


def blob_of(upload: Upload, place: int) -> bytes:
    """The sealed message of the member at `place`."""
    size = blob_bytes(len(upload.leaves))
    return bytes(upload.blobs[place * size : (place + 1) * size])
