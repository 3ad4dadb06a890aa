"""The coordinator's side of a round: sum, propose a set, open the sum (SPEC.md, section 5).

All groups of a round add to one vector. Of an upload only header and signature stay in memory
while uploads arrive; its lists are shown again (`recall`) when its group agrees, its vector where
it is left out. The caller keeps both on the disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.errors import SealingError
from fedaipc.sealing import tree
from fedaipc.sealing.committee import Dealt, Proposal
from fedaipc.sealing.masks import add_masks
from fedaipc.sealing.shares import combine
from fedaipc.sealing.terms import check_value, commitments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from fedaipc.sealing.committee import Release
    from fedaipc.sealing.dealing import Header, Upload
    from fedaipc.sealing.terms import Terms


@dataclass(frozen=True, slots=True, repr=False)
class _Lists:
    checks: tuple[bytes, ...]
    leaves: tuple[bytes, ...]
    tree: tree.Tree


class Aggregator:
    """One group of a round. Every method raises SealingError where the round's rules are broken."""

    def __init__(self, terms: Terms, total: npt.NDArray[Any]) -> None:
        """`total`: ring elements of shape (terms.size,), changed in place; shared by all groups."""
        self._terms = terms
        self._total = total
        self._headers: dict[bytes, tuple[Header, bytes]] = {}
        self._lists: dict[bytes, _Lists] = {}
        self._shares: dict[int, dict[tuple[bytes, int], bytes]] = {}  # by the member's place

    @property
    def dealers(self) -> tuple[bytes, ...]:
        """Whose uploads are in the sum, ascending."""
        return tuple(sorted(self._headers))

    @property
    def ready(self) -> bool:
        """Whether enough members have released their shares."""
        return len(self._shares) >= self._terms.thresholds.shares

    def accept(self, upload: Upload) -> None:
        """Add an upload; of two by one PC the first counts (M17)."""
        upload.check(self._terms)
        dealer = upload.header.dealer
        if dealer in self._headers:
            raise SealingError("a PC has sent two uploads in one round")
        self._total += self._terms.encoding.unpack(upload.vector, self._terms.size)
        self._headers[dealer] = upload.header, upload.signature

    def leave_out(self, dealer: bytes, vector: bytes | memoryview) -> None:
        """Take an upload out again, with the `vector` that was added."""
        del self._headers[dealer]
        self._lists.pop(dealer, None)
        self._total -= self._terms.encoding.unpack(vector, self._terms.size)

    def recall(self, uploads: Iterable[Upload]) -> None:
        """The lists of what was accepted, for the methods below; needs no vectors."""
        for upload in uploads:
            if self._headers.get(upload.header.dealer) != (upload.header, upload.signature):
                raise SealingError("an upload is not the one that was added")
            leaves = tree.Tree(upload.leaves)
            self._lists[upload.header.dealer] = _Lists(upload.checks, upload.leaves, leaves)

    def disagreeing(self) -> tuple[bytes, ...]:
        """Dealers that gave another pair key than the other end of the pair did.

        One that disagrees with more PCs than may collude is named alone: honest PCs agree with
        each other. Else both ends of a pair: which of the two lies cannot be told.
        """
        pairs = [
            (one, other)
            for one in self.dealers
            for other in self.dealers
            if one < other and self._pair_check(one, other) != self._pair_check(other, one)
        ]
        counts = Counter(dealer for pair in pairs for dealer in pair)
        sure = {d for d, n in counts.items() if n > self._terms.thresholds.colluding}
        rest = {d for pair in pairs if not sure.intersection(pair) for d in pair}
        return tuple(sorted(sure | rest))

    def proposal(self, member: bytes, blobs: Mapping[bytes, bytes]) -> Proposal:
        """The set as `member` needs it; `blobs` are for it, by dealer.

        Raises SealingError where too few are left (M28).
        """
        least = self._terms.thresholds.least
        if len(self._headers) < least:
            raise SealingError(f"{len(self._headers)} updates; only sums of {least} are opened")
        place = self._terms.place(member)
        return Proposal(
            tuple(
                Dealt(
                    *self._headers[dealer],
                    self._lists[dealer].leaves[place],
                    self._lists[dealer].tree.path(place),
                    blobs[dealer],
                )
                for dealer in self.dealers
            )
        )

    def take(self, release: Release) -> None:
        """Keep a member's shares. Raises SealingError unless all that it owes fit (M26)."""
        terms, member = self._terms, self._terms.place(release.member)
        found = {}
        for share in release.shares:
            lists = self._lists.get(share.dealer)
            if lists is None:
                raise SealingError("a member released a share of a PC outside the set")
            (value,) = commitments(terms.context, share.dealer, release.member, [share.share])
            count = len(terms.participants)
            tree.check(lists.leaves[member][32:], value, share.place, count, share.proof)
            found[share.dealer, share.place] = share.share
        if found.keys() != set(self._keys()):
            raise SealingError("a member did not release what the set asks for")
        self._shares[member] = found

    def open(self) -> None:
        """Remove all masks of this group from the total; once (M27, M28).

        Raises SealingError, and leaves the total as it was: too few members released, or a
        dealer, who is named, dealt shares of another key than it used.
        """
        if not self.ready:
            raise SealingError(
                f"{len(self._shares)} members released their shares; it takes "
                f"{self._terms.thresholds.shares}"
            )
        plus: list[bytes] = []
        minus: list[bytes] = []
        for dealer, place in self._keys():
            key = self._key(dealer, place)
            other = self._terms.neighbours(dealer)[place - 1] if place else dealer
            (plus if dealer > other else minus).append(key)
        add_masks(self._total, plus, minus)

    def _keys(self) -> list[tuple[bytes, int]]:
        """The keys that the set asks for: (dealer, place among its keys)."""
        terms = self._terms
        outside = [other for other in terms.participants if other not in self._headers]
        return [
            (dealer, place)
            for dealer in self.dealers
            for place in (0, *(_place(terms, dealer, other) for other in outside))
        ]

    def _key(self, dealer: bytes, place: int) -> bytes:
        # The first ones: then all keys have the same members, whose weights are kept.
        members = sorted(self._shares)[: self._terms.thresholds.shares]
        key = combine({member: self._shares[member][dealer, place] for member in members})
        if check_value(self._terms.context, key) != self._lists[dealer].checks[place]:
            raise SealingError(f"PC {dealer.hex()[:16]} dealt shares of another key than it used")
        return key

    def _pair_check(self, dealer: bytes, other: bytes) -> bytes:
        return self._lists[dealer].checks[_place(self._terms, dealer, other)]


def _place(terms: Terms, dealer: bytes, other: bytes) -> int:
    """Of the pair's key among the dealer's keys; its own key has place 0."""
    place = terms.place(other)
    return place + (place < terms.place(dealer))
