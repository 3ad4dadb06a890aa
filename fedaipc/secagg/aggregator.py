"""The coordinator's side of a round: sum, propose a set, open the sum (SPEC.md, section 5).

All groups of a round add to one vector. Of an upload only header and signature stay in memory
while uploads arrive; its lists are shown again (`recall`) when its group agrees, its vector where
it is left out. The caller keeps both on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.errors import BadDealer, SealingError
from fedaipc.secagg import tree
from fedaipc.secagg.committee import Dealt, Proposal
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.shares import SHARE_BYTES, combine
from fedaipc.secagg.terms import check_value, commitments, set_hash
from fedaipc.secagg.uploads import CHECK_BYTES, LEAF_BYTES, list_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from fedaipc.secagg.committee import Release
    from fedaipc.secagg.terms import Terms
    from fedaipc.secagg.uploads import Header, Upload


@dataclass(frozen=True, slots=True, repr=False)
class _Lists:
    """Of one upload; joined, since many small objects would take three times the memory."""

    checks: bytes
    leaves: bytes
    tree: tree.Tree

    @classmethod
    def of(cls, upload: Upload) -> _Lists:
        joined = (b"".join(upload.checks), b"".join(upload.leaves))
        return cls(*joined, tree.Tree(upload.leaves))

    def check(self, place: int) -> bytes:
        return self.checks[place * CHECK_BYTES : (place + 1) * CHECK_BYTES]

    def leaf(self, place: int) -> bytes:
        return self.leaves[place * LEAF_BYTES : (place + 1) * LEAF_BYTES]


class Aggregator:
    """One group of a round. Every method raises SealingError where the round's rules are broken."""

    def __init__(self, terms: Terms, total: npt.NDArray[Any]) -> None:
        """`total`: ring elements of shape (terms.size,), changed in place; shared by all groups."""
        self.terms = terms
        self._total = total
        self._headers: dict[bytes, tuple[Header, bytes]] = {}
        self._lists: dict[bytes, _Lists] = {}
        # By the member's place and the dealer: of its own key, then of pairs with PCs outside.
        self._shares: dict[int, dict[bytes, bytes]] = {}

    @property
    def dealers(self) -> tuple[bytes, ...]:
        """Whose uploads are in the sum, ascending."""
        return tuple(sorted(self._headers))

    @property
    def ready(self) -> bool:
        """Whether enough members have released their shares."""
        return len(self._shares) >= self.terms.thresholds.shares

    def accept(self, upload: Upload) -> None:
        """Add an upload; of two by one PC the first counts (M17)."""
        upload.check(self.terms)
        dealer = upload.header.dealer
        if dealer in self._headers:
            raise SealingError("a PC has sent two uploads in one round")
        self._total += self.terms.encoding.unpack(upload.vector, self.terms.size)
        self._headers[dealer] = upload.header, upload.signature

    def leave_out(self, dealer: bytes, vector: bytes | memoryview) -> None:
        """Take an upload out again, with the `vector` that was added."""
        del self._headers[dealer]
        self._lists.pop(dealer, None)
        self._total -= self.terms.encoding.unpack(vector, self.terms.size)

    def recall(self, uploads: Iterable[Upload]) -> None:
        """The lists of what was accepted, for the methods below; needs no vectors."""
        for upload in uploads:
            if self._headers.get(upload.header.dealer) != (upload.header, upload.signature):
                raise SealingError("an upload is not the one that was added")
            self._lists[upload.header.dealer] = _Lists.of(upload)

    def disagreeing(self) -> list[tuple[bytes, bytes]]:
        """Pairs of dealers that gave different keys for their pair: one of the two is wrong."""
        return [
            (one, other)
            for one in self.dealers
            for other in self.dealers
            if one < other and self._pair_check(one, other) != self._pair_check(other, one)
        ]

    @property
    def set_hash(self) -> bytes:
        """Of the set that `proposal` shows."""
        signed = [self._headers[dealer] for dealer in self.dealers]
        return set_hash(self.terms.context, [header.encode() + sig for header, sig in signed])

    def proposal(self, member: bytes, blobs: Mapping[bytes, bytes]) -> Proposal:
        """The set as `member` needs it; `blobs` are for it, by dealer.

        Raises SealingError where too few are left (M28).
        """
        least = self.terms.thresholds.least
        if len(self._headers) < least:
            raise SealingError(f"{len(self._headers)} updates; only sums of {least} are opened")
        place = self.terms.place(member)
        return Proposal(
            tuple(
                Dealt(
                    *self._headers[dealer],
                    self._lists[dealer].leaf(place),
                    self._lists[dealer].tree.path(place),
                    blobs[dealer],
                )
                for dealer in self.dealers
            )
        )

    def take(self, release: Release) -> None:
        """Keep a member's shares. Raises SealingError unless all that it owes fit (M26)."""
        terms, member = self.terms, self.terms.place(release.member)
        if tuple(one.dealer for one in release.released) != self.dealers:
            raise SealingError("a member did not release what the set asks for")
        outside, found = self._outside(), {}
        listed = len(terms.participants) - 1 if outside else 0
        for one in release.released:
            if len(one.pairs) != len(outside) or len(one.commitments) != listed:
                raise SealingError("a member did not release what the set asks for")
            leaf = self._lists[one.dealer].leaf(member)
            if outside and list_hash(one.commitments) != leaf[48:]:
                raise SealingError("a member shows other commitments than the dealer signed")
            shares = (one.own, *one.pairs)
            places = (_place(terms, one.dealer, pc) for pc in outside)
            signed = [leaf[32:48], *(one.commitments[place - 1] for place in places)]
            if commitments(terms.context, one.dealer, release.member, shares) != signed:
                raise SealingError("a member released a share that the dealer did not sign")
            found[one.dealer] = b"".join(shares)
        self._shares[member] = found

    def open(self) -> None:
        """Remove all masks of this group from the total; once (M27, M28).

        Raises SealingError where too few members released, BadDealer where one dealt shares of
        another key than it used; then the total stays as it was.
        """
        if not self.ready:
            raise SealingError(
                f"{len(self._shares)} members released their shares; it takes "
                f"{self.terms.thresholds.shares}"
            )
        plus: list[bytes] = []
        minus: list[bytes] = []
        outside = self._outside()
        for dealer in self.dealers:
            minus.append(self._key(dealer, 0, 0))
            for number, other in enumerate(outside, 1):
                key = self._key(dealer, number, _place(self.terms, dealer, other))
                (plus if dealer > other else minus).append(key)
        add_masks(self._total, plus, minus)

    def close(self) -> None:
        """Forget all that opening took, but for whose uploads are in the sum."""
        self._lists.clear()
        self._shares.clear()

    def _outside(self) -> list[bytes]:
        """Participants whose uploads are not in the set, ascending."""
        return [pc for pc in self.terms.participants if pc not in self._headers]

    def _key(self, dealer: bytes, number: int, place: int) -> bytes:
        """Of a dealer, from the released shares with this number, by the check value at `place`."""
        # The first members: then all keys have the same ones, whose weights are kept.
        members = sorted(self._shares)[: self.terms.thresholds.shares]
        part = slice(number * SHARE_BYTES, (number + 1) * SHARE_BYTES)
        try:
            key = combine({member: self._shares[member][dealer][part] for member in members})
        except SealingError:  # it committed to what are no shares
            raise BadDealer(dealer) from None
        if check_value(self.terms.context, key) != self._lists[dealer].check(place):
            raise BadDealer(dealer)
        return key

    def _pair_check(self, dealer: bytes, other: bytes) -> bytes:
        return self._lists[dealer].check(_place(self.terms, dealer, other))


def _place(terms: Terms, dealer: bytes, other: bytes) -> int:
    """Of the pair's key among the dealer's keys; its own key has place 0."""
    return terms.place(other) + (other < dealer)
