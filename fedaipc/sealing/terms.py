"""What a round is about: all public parameters in one value, and the hash that binds the round.

SPEC.md, sections 2, 4 and 5. Whoever has the same `Terms` computes the same committee, the same
neighbours and the same context; a PC builds them from what it checked itself.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedaipc.errors import SealingError
from fedaipc.sealing.encoding import Encoding
from fedaipc.sealing.keys import KEY_BYTES
from fedaipc.sealing.wire import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.sealing.roster import Bundle, Roster

EVERYONE_UP_TO = 100  # participants: then all of them are the committee
LEAST_PCS = 3
_HASH_BYTES = 32
_MOST_RISK = 2.0**-40


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Of a round of `count` PCs; `committee` of them hold shares (SPEC.md, section 2)."""

    count: int
    colluding: int
    committee: int
    shares: int
    least: int

    def check(self) -> None:
        """Raise SealingError where a bound that the promise rests on is broken (M1, M2)."""
        if self.count < LEAST_PCS:
            raise SealingError(f"{self.count} PCs cannot be sealed: it takes at least {LEAST_PCS}")
        if not self.colluding >= 1:
            raise SealingError("at least one colluding PC must be tolerated")
        if not 2 * self.shares > self.committee + self.colluding or self.shares > self.committee:
            raise SealingError(
                f"{self.shares} shares of {self.committee} let {self.colluding} colluding PCs "
                "agree on two sets, or cannot be reached"
            )
        if not max(LEAST_PCS, self.colluding + 2) <= self.least <= self.count:
            raise SealingError(
                f"a set of {self.least} of {self.count} PCs, {self.colluding} of them colluding, "
                "hides no single PC"
            )


def usual_thresholds(count: int) -> Thresholds:
    """The defaults of SPEC.md, section 2, for rounds of `count` PCs.

    Raises SealingError below three PCs. Above `EVERYONE_UP_TO` the committee is drawn: the smallest
    for which more than `colluding` bad members among those drawn is less likely than 2^-40 (the
    hypergeometric tail), with 60 % of it as threshold.
    """
    if count < LEAST_PCS:
        raise SealingError(f"{count} PCs cannot be sealed: it takes at least {LEAST_PCS}")
    colluding = max(1, count // 10)
    least = max(LEAST_PCS, math.ceil(0.7 * count), colluding + 2)
    if count <= EVERYONE_UP_TO:
        shares = (count + colluding) // 2 + 1
        return Thresholds(count, colluding, count, min(shares, count), min(least, count))
    size = next(
        m for m in range(EVERYONE_UP_TO, count + 1)
        if _tail(count, colluding, m, 2 * math.ceil(0.6 * m) - m) <= _MOST_RISK
    )  # fmt: skip
    shares = math.ceil(0.6 * size)
    return Thresholds(count, min(colluding, 2 * shares - size - 1), size, shares, least)


def _tail(count: int, bad: int, drawn: int, at_least: int) -> float:
    """Probability of `at_least` or more bad ones among `drawn` of `count` PCs."""
    ways = sum(
        math.comb(bad, k) * math.comb(count - bad, drawn - k)
        for k in range(at_least, min(bad, drawn) + 1)
    )
    return ways / math.comb(count, drawn)


@dataclass(frozen=True)
class Terms:
    """One round. `bundles` ascend by identity; `weights` belong to them in this order."""

    roster: Roster
    run: str
    number: int
    job_hash: bytes
    vector_hash: bytes
    size: int
    bits: int
    bound: float
    thresholds: Thresholds
    bundles: tuple[Bundle, ...]
    weights: tuple[int, ...]

    def check(self, cohort_size: int, now: float) -> None:
        """Raise SealingError where the round breaks SPEC.md, sections 2 to 4 (M1 to M4, M8 to M11).

        `cohort_size` and the thresholds are the job's; the owner's policy is another matter.
        """
        self.thresholds.check()
        names = self.participants
        if self.thresholds.count != len(names) or len(self.weights) != len(names):
            raise SealingError("the round names another number of PCs than it has keys of")
        for kind, keys in (
            ("identity", names),
            ("mask key", [bundle.mask_key for bundle in self.bundles]),
            ("share key", [bundle.share_key for bundle in self.bundles]),
        ):
            if len(set(keys)) != len(keys):
                raise SealingError(f"two PCs of the round have one {kind}")
        if list(names) != sorted(names):
            raise SealingError("the PCs of the round are out of order")
        cohort = self.roster.cohort(self.number, cohort_size)
        if not cohort.issuperset(names):
            raise SealingError("the round asks a PC that the public draw did not choose")
        if min(self.weights, default=0) < 1:
            raise SealingError("a weight is not a whole number from 1 on")
        for bundle in self.bundles:
            bundle.check(self.roster, self.run, now)
        _ = self.encoding

    @property
    def participants(self) -> tuple[bytes, ...]:
        return tuple(bundle.identity for bundle in self.bundles)

    @cached_property
    def encoding(self) -> Encoding:
        return Encoding(bits=self.bits, count=len(self.bundles), bound=self.bound)

    @cached_property
    def committee(self) -> tuple[bytes, ...]:
        """Identities of the members, ascending (M12)."""
        return self.roster.committee(self.participants, self.number, self.thresholds.committee)

    def neighbours(self, own: bytes) -> list[bytes]:
        """With whom `own` shares pairwise masks (M12)."""
        return self.roster.neighbours(own, self.participants, self.number)

    def bundle(self, identity: bytes) -> Bundle:
        """Raises SealingError where `identity` takes no part."""
        for bundle in self.bundles:
            if bundle.identity == identity:
                return bundle
        raise SealingError("a PC that takes no part in the round is named")

    @cached_property
    def context(self) -> bytes:
        """The 32 bytes that everything in the round is bound to (M13)."""
        return _hash(
            Writer()
            .string(b"fedaipc round")
            .text(self.roster.federation)
            .text(self.run)
            .number(self.number)
            .fixed(self.job_hash, _HASH_BYTES)
            .fixed(self.vector_hash, _HASH_BYTES)
            .number(self.size)
            .number(self.bits)
            .real(self.bound)
            .number(self.thresholds.count)
            .number(self.thresholds.colluding)
            .number(self.thresholds.committee)
            .number(self.thresholds.shares)
            .number(self.thresholds.least)
            .fixed(self.roster.hash, _HASH_BYTES)
            .items([hashlib.sha256(b.encode()).digest() for b in self.bundles], _HASH_BYTES)
            .items([weight.to_bytes(8, "big") for weight in self.weights], 8)
        )


def check_value(context: bytes, key: bytes) -> bytes:
    """16 bytes that show whether a rebuilt key is the dealer's."""
    return _hash(Writer().string(b"fedaipc check").fixed(context, 32).fixed(key, KEY_BYTES))[:16]


def commitment(context: bytes, dealer: bytes, member: bytes, share: bytes) -> bytes:
    """16 bytes that show whether a share is the one that was dealt."""
    writer = Writer().string(b"fedaipc share").fixed(context, 32)
    return _hash(writer.fixed(dealer, KEY_BYTES).fixed(member, KEY_BYTES).string(share))[:16]


def set_hash(context: bytes, headers: Sequence[bytes]) -> bytes:
    """Of the agreed set: the signed headers in the order of their identities."""
    digests = [hashlib.sha256(header).digest() for header in headers]
    return _hash(Writer().string(b"fedaipc set").fixed(context, 32).items(digests, _HASH_BYTES))


def _hash(writer: Writer) -> bytes:
    return hashlib.sha256(writer.done()).digest()
