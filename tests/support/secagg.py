"""A small federation with real keys, for tests of secure aggregation."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.secagg.aggregator import Aggregator
from fedaipc.secagg.committee import Proposal, Unmask
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.round_keys import Group, Keys, KeyShares, RoundSecrets, share_secrets
from fedaipc.secagg.terms import Terms, Thresholds, thresholds
from fedaipc.secagg.uploads import LedgerHead, Upload, mask_update

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from fedaipc.secagg.committee import Agreement, Release

NOW = 1_800_000_000.0
HEAD = LedgerHead(3, bytes(range(32)))  # of a ledger with two charges


def federation(count: int, **changes: Any) -> tuple[Terms, dict[bytes, Keys]]:
    """Terms of a round of `count` PCs, and everybody's keys by identity."""
    keys = [
        Keys(
            SigningKey(number.to_bytes(32, "big")),
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
            size_class=64, share_key=own[identity].share.public,
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


@dataclasses.dataclass(frozen=True)
class SharedOut:
    """A group whose PCs have all shared out their secrets."""

    keys: dict[bytes, Keys]
    group: Group
    secrets: dict[bytes, RoundSecrets]
    key_shares: dict[bytes, KeyShares]

    def upload(self, who: bytes, words: np.ndarray, head: LedgerHead = HEAD) -> Upload:
        return mask_update(self.group, self.keys[who], self.secrets[who], words, head)

    def only(self, taking_part: Sequence[bytes]) -> SharedOut:
        """The same where the others gave no answer in time."""
        cards = tuple(self.key_shares[who].card for who in sorted(taking_part))
        return dataclasses.replace(self, group=Group(self.group.terms, cards))

    def instead(self, changed: KeyShares) -> SharedOut:
        """The same with another key_shares by one of the PCs."""
        key_shares = {**self.key_shares, changed.card.identity: changed}
        cards = tuple(key_shares[who].card for who in self.group.members)
        return dataclasses.replace(
            self, key_shares=key_shares, group=Group(self.group.terms, cards)
        )


def shared_out(terms: Terms, keys: dict[bytes, Keys]) -> SharedOut:
    made = {who: share_secrets(terms, keys[who]) for who in terms.participants}
    secrets = {who: own for who, (own, _) in made.items()}
    key_shares = {who: KeyShares.decode(one.encode()) for who, (_, one) in made.items()}
    for one in key_shares.values():
        one.verify(terms)
    group = Group(terms, tuple(key_shares[who].card for who in terms.participants))
    return SharedOut(keys, group, secrets, key_shares)


def resigned(found: SharedOut, who: bytes, **changes: Any) -> SharedOut:
    """A dishonest sharer's: its key_shares with `changes`, properly signed."""
    key_shares = dataclasses.replace(found.key_shares[who], **changes)
    digest = hashlib.sha256(
        b"".join((key_shares.check, *key_shares.commitments, *key_shares.blobs))
    ).digest()
    card = dataclasses.replace(key_shares.card, shares_hash=digest)
    signature = found.keys[who].identity.sign(card.signed_part(found.group.terms.context))
    card = dataclasses.replace(card, signature=signature)
    own = dataclasses.replace(found.secrets[who], card=card)
    changed = found.instead(dataclasses.replace(key_shares, card=card))
    return dataclasses.replace(changed, secrets={**found.secrets, who: own})


class Sum:
    """A coordinator that keeps all uploads in memory."""

    def __init__(
        self,
        group: Group,
        key_shares: Iterable[KeyShares],
        uploads: Mapping[bytes, Upload],
        inside: Collection[bytes],
    ) -> None:
        self.group = group
        self.total = np.zeros(group.terms.size, group.terms.encoding.dtype)
        self.aggregator = Aggregator(group, self.total)
        self.uploads = {who: Upload.decode(uploads[who].encode()) for who in inside}
        for upload in self.uploads.values():
            self.aggregator.accept(upload)
        self.aggregator.recall(one for one in key_shares if one.card.identity in group.members)

    @property
    def proposal(self) -> Proposal:
        return self.aggregator.proposal()

    def unmask(self, member: bytes, agreements: Iterable[Agreement]) -> Unmask:
        return Unmask(self.proposal, tuple(agreements), self.aggregator.blobs(member))

    def leave_out(self, uploader: bytes) -> None:
        self.aggregator.leave_out(uploader, self.uploads.pop(uploader).vector)

    def open(self, releases: Iterable[Release]) -> np.ndarray:
        for one in releases:
            self.aggregator.take(one)
        self.aggregator.unmask()
        return self.group.terms.encoding.decode(self.total)
