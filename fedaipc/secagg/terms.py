"""What a round is about: all public parameters in one value, and the hash that binds the round.

SPEC.md, sections 2, 4 and 5. Whoever has the same `Terms` has the same context. A PC makes them
itself from what it checked, and takes nothing of them from the coordinator but the key bundles.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from fedaipc.errors import SecAggError
from fedaipc.secagg.encoding import Encoding
from fedaipc.secagg.keys import canonical
from fedaipc.secagg.roster import MAX_IN_A_GROUP, Bundle
from fedaipc.secagg.wire import Reader, Writer, parsed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.secagg.roster import Roster

TERMS = 3
MIN_PCS = 3
_HASH_BYTES = 32
_MAX_RISK = 2.0**-40  # of all groups in all attempts of a job


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds of a group of `count` PCs that take part; all of them hold shares (SPEC.md,
    section 2).

    `colluding` of them may work for the coordinator, `shares` rebuild a key, and `least` PCs are
    in every sum that is unmasked.
    """

    count: int
    colluding: int
    shares: int
    least: int

    def check(self) -> None:
        """Raise SecAggError where a bound that the promise rests on is broken (M1, M2)."""
        if self.colluding < 1:
            raise SecAggError("at least one colluding PC must be tolerated")
        if not max(MIN_PCS, self.colluding + 2) <= self.least <= self.count:
            raise SecAggError(
                f"too few PCs take part ({self.count}, of which {self.colluding} may collude): a "
                f"sum of {self.least} cannot be reached, or does not hide a single PC"
            )
        if not 2 * self.shares > self.count + self.colluding or self.shares > self.count:
            raise SecAggError(
                f"{self.shares} shares of {self.count} let {self.colluding} colluding PCs "
                "agree on two sets, or cannot be reached"
            )


PLAIN = Thresholds(0, 0, 0, 0)  # of a round whose updates travel unmasked


def capped(classes: Sequence[int], bounds: Thresholds) -> tuple[int, ...]:
    """Weights by size class, none above what hides it in every sum that is unmasked (M32).

    Such a sum has at least `least` PCs, of which `colluding` may subtract their own part. The
    lightest `least` - 1 - `colluding` others are the least that can be left beside a PC. No
    weight is above their total, so none is more than half of what the honest PCs put into the
    sum.
    """
    if bounds == PLAIN:
        return tuple(classes)
    most = sum(sorted(classes)[: bounds.least - 1 - bounds.colluding])
    return tuple(min(size, most) for size in classes)


def thresholds(
    count: int, *, group: int, members: int, colluding: int, least: float, draws: int
) -> Thresholds:
    """Those of a group of `group` PCs, drawn from `members`, of which `count` take part.

    `colluding` is of all members, `least` a share of the group, `draws` how many groups the job
    may draw in all its attempts. Both bounds follow from the group
    and not from who takes part: else a coordinator could shrink them by leaving PCs out. Raises
    SecAggError where a bound cannot be kept.
    """
    inside = colluding_in(group, members, colluding, draws)
    found = Thresholds(
        count=count,
        colluding=inside,
        shares=(count + inside) // 2 + 1,
        least=max(MIN_PCS, inside + 2, math.ceil(least * group)),
    )
    found.check()
    return found


@lru_cache(maxsize=256)
def colluding_in(group: int, members: int, colluding: int, draws: int) -> int:
    """How many of `colluding` among `members` any of `draws` drawn groups holds at most.

    Except with odds of 2^-40, by the exact hypergeometric tail and the sum over the draws; all of
    them where everybody is drawn.
    """
    ways = math.comb(members, group)
    beyond = 0
    for number in range(min(group, colluding), 0, -1):
        beyond += math.comb(colluding, number) * math.comb(members - colluding, group - number)
        if beyond / ways * draws > _MAX_RISK:
            return number
    return 1


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One group of one round. `bundles` ascend by identity; `weights` are in the same order.

    `cohort` is how many PCs the ring has room for: all that the round may ask, over all groups.
    """

    federation: str
    roster_hash: bytes
    run: str
    number: int
    job_hash: bytes
    vector_hash: bytes
    size: int
    bits: int
    bound: float
    cohort: int
    thresholds: Thresholds
    bundles: tuple[Bundle, ...]
    weights: tuple[int, ...]

    def check(self, roster: Roster, group: Sequence[bytes], now: float) -> None:
        """Raise SecAggError where the round breaks SPEC.md, sections 2 to 4 (M1 to M4, M8 to M11).

        `group` is what the roster's draw gave; the owner's policy is another matter.
        """
        names = self.participants
        if self.sealed:
            self.thresholds.check()
            if self.thresholds.count != len(names):
                raise SecAggError("the round names another number of PCs than it has keys of")
        if len(self.weights) != len(names) or min(self.weights, default=0) < 1:
            raise SecAggError("the round has not one weight from 1 on for each PC")
        if capped(self.weights, self.thresholds) != self.weights:
            raise SecAggError("one PC's weight is more than half of a sum that may be unmasked")
        for kind, keys in (
            ("identity", names),
            ("share key", [canonical(bundle.share_key) for bundle in self.bundles]),
        ):
            if len(set(keys)) != len(keys):
                raise SecAggError(f"two PCs of the round have one {kind}")
        if list(names) != sorted(names):
            raise SecAggError("the PCs of the round are out of order")
        if not set(group).issuperset(names):
            raise SecAggError("the round asks a PC that the public draw did not choose")
        if (self.federation, self.roster_hash) != (roster.federation, roster.hash):
            raise SecAggError("the round belongs to another list of members")
        for bundle in self.bundles:
            bundle.check(roster, self.run, now)
        _ = self.encoding

    def __hash__(self) -> int:  # the context covers all of it
        return hash(self.context)

    @property
    def sealed(self) -> bool:
        """Whether updates are masked; otherwise they travel as they are."""
        return self.thresholds != PLAIN

    @cached_property
    def participants(self) -> tuple[bytes, ...]:
        """Identities of those that are asked and get shares, ascending."""
        return tuple(bundle.identity for bundle in self.bundles)

    @cached_property
    def encoding(self) -> Encoding:
        return Encoding(bits=self.bits, count=self.cohort, bound=self.bound)

    def place(self, identity: bytes) -> int:
        """The number of a PC among the participants. Raises SecAggError for any other PC."""
        try:
            return self._places[identity]
        except KeyError:
            raise SecAggError("a PC that takes no part in the round is named") from None

    def largest_share(self, own: bytes) -> float:
        """The largest share of the honest weight that `own` may have in an unmasked sum (M32)."""
        place, bounds = self.place(own), self.thresholds
        others = sorted(self.weights[:place] + self.weights[place + 1 :])
        weight = self.weights[place]
        return weight / (weight + sum(others[: bounds.least - 1 - bounds.colluding]))

    def bundle(self, identity: bytes) -> Bundle:
        """Raises SecAggError where `identity` takes no part."""
        return self.bundles[self.place(identity)]

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {identity: place for place, identity in enumerate(self.participants)}

    @cached_property
    def context(self) -> bytes:
        """The 32 bytes that everything before the masks is bound to, and then the group (M13)."""
        return hashlib.sha256(
            self._fields(Writer().string(b"fedaipc round"))
            .items([hashlib.sha256(b.encode()).digest() for b in self.bundles], _HASH_BYTES)
            .done()
        ).digest()

    def encode(self) -> bytes:
        return self._frame

    @cached_property
    def _frame(self) -> bytes:
        writer = self._fields(Writer(TERMS)).number(len(self.bundles), 4)
        for bundle in self.bundles:
            writer.string(bundle.encode())
        return writer.done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Terms:
        """Raises EncodingError; whether they keep the rules is for `check`."""
        return _decoded(bytes(content))

    def _fields(self, writer: Writer) -> Writer:
        return (
            writer.text(self.federation)
            .text(self.run)
            .number(self.number)
            .fixed(self.roster_hash, _HASH_BYTES)
            .fixed(self.job_hash, _HASH_BYTES)
            .fixed(self.vector_hash, _HASH_BYTES)
            .number(self.size)
            .number(self.bits)
            .real(self.bound)
            .number(self.cohort)
            .number(self.thresholds.count)
            .number(self.thresholds.colluding)
            .number(self.thresholds.shares)
            .number(self.thresholds.least)
            .items([weight.to_bytes(8, "big") for weight in self.weights], 8)
        )


@lru_cache(maxsize=8)  # a group's PCs get the same; a call that raises is not kept
def _decoded(content: bytes) -> Terms:
    return parsed(content, TERMS, _read)


def _read(reader: Reader) -> Terms:
    return Terms(
        federation=reader.text(100),
        run=reader.text(100),
        number=reader.number(),
        roster_hash=reader.fixed(_HASH_BYTES),
        job_hash=reader.fixed(_HASH_BYTES),
        vector_hash=reader.fixed(_HASH_BYTES),
        size=reader.number(),
        bits=reader.number(),
        bound=reader.real(),
        cohort=reader.number(),
        thresholds=Thresholds(reader.number(), reader.number(), reader.number(), reader.number()),
        weights=tuple(int.from_bytes(w, "big") for w in reader.items(8, MAX_IN_A_GROUP)),
        bundles=tuple(
            Bundle.decode(reader.string(1024)) for _ in range(reader.count(MAX_IN_A_GROUP))
        ),
    )
