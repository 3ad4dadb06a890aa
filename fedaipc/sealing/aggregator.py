"""The coordinator's side of a round: sum, propose a set, open the sum (SPEC.md, section 5).

Holds one vector, and of each upload what is small: header, lists and blobs. A vector that was
added is needed again only where its dealer is left out; the caller keeps it on the disk.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.errors import SealingError
from fedaipc.sealing import tree
from fedaipc.sealing.committee import Dealt, Proposal
from fedaipc.sealing.masks import add_masks
from fedaipc.sealing.shares import combine
from fedaipc.sealing.terms import check_value, commitment

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from fedaipc.sealing.committee import Release, Share
    from fedaipc.sealing.dealing import Header, Upload
    from fedaipc.sealing.terms import Terms


@dataclass(frozen=True, slots=True, repr=False)
class _Kept:
    header: Header
    signature: bytes
    checks: tuple[bytes, ...]
    leaves: tuple[bytes, ...]
    blobs: tuple[bytes, ...]


class Aggregator:
    """One round. Every method raises SealingError where the round's rules are broken."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._total: npt.NDArray[Any] = np.zeros(terms.size, terms.encoding.dtype)
        self._kept: dict[bytes, _Kept] = {}

    @property
    def dealers(self) -> tuple[bytes, ...]:
        """Whose uploads are in the sum, ascending."""
        return tuple(sorted(self._kept))

    def accept(self, upload: Upload) -> None:
        """Add an upload; of two by one PC the first counts (M17)."""
        upload.check(self._terms)
        dealer = upload.header.dealer
        if dealer in self._kept:
            raise SealingError("a PC has sent two uploads in one round")
        self._total += self._terms.encoding.unpack(upload.vector, self._terms.size)
        self._kept[dealer] = _Kept(
            upload.header, upload.signature, upload.checks, upload.leaves, upload.blobs
        )

    def leave_out(self, dealer: bytes, vector: bytes | memoryview) -> None:
        """Take an upload out again, with the `vector` that was added."""
        del self._kept[dealer]
        self._total -= self._terms.encoding.unpack(vector, self._terms.size)

    def disagreeing(self) -> bytes | None:
        """The dealer with most pairs whose two ends gave different keys; None if all agree."""
        counts: dict[bytes, int] = defaultdict(int)
        for dealer in self._kept:
            for other in self._terms.neighbours(dealer):
                if other in self._kept and self._check(dealer, other) != self._check(other, dealer):
                    counts[dealer] += 1
        return max(sorted(counts), key=counts.__getitem__) if counts else None

    def proposal(self, member: bytes) -> Proposal:
        """The set, as `member` needs it. Raises SealingError where too few are left (M28)."""
        if len(self._kept) < self._terms.thresholds.least:
            raise SealingError(
                f"{len(self._kept)} uploads; a sum over fewer than "
                f"{self._terms.thresholds.least} is never opened"
            )
        number = self._terms.committee.index(member)
        dealt = []
        for dealer in self.dealers:
            kept = self._kept[dealer]
            proof = tuple(tree.path(kept.leaves, number))
            leaf, blob = kept.leaves[number], kept.blobs[number]
            dealt.append(Dealt(kept.header, kept.signature, leaf, proof, blob))
        return Proposal(tuple(dealt))

    def open(self, releases: Iterable[Release]) -> npt.NDArray[np.float64]:
        """The weighted sum over the set, shape (size,); once (M26 to M28).

        A member whose share does not fit is left out; a dealer whose shares give another key is
        named, and the round is void.
        """
        found: dict[tuple[bytes, int], dict[int, bytes]] = defaultdict(dict)
        for one in releases:
            number = self._terms.committee.index(one.member)
            for share in self._fitting(one):
                found[share.dealer, share.place][number] = share.share
        plus: list[bytes] = []
        minus: list[bytes] = []
        for dealer in self.dealers:
            minus.append(self._key(dealer, 0, found))
            for place, other in enumerate(self._terms.neighbours(dealer), 1):
                if other not in self._kept:
                    key = self._key(dealer, place, found)
                    (plus if dealer > other else minus).append(key)
        add_masks(self._total, plus, minus)
        return self._terms.encoding.decode(self._total)

    def _key(
        self, dealer: bytes, place: int, found: dict[tuple[bytes, int], dict[int, bytes]]
    ) -> bytes:
        threshold, shares = self._terms.thresholds.shares, found[dealer, place]
        if len(shares) < threshold:
            raise SealingError(f"{len(shares)} shares of a key; it takes {threshold}: void")
        # The first ones: then most keys have the same members, whose weights are kept.
        key = combine({number: shares[number] for number in sorted(shares)[:threshold]})
        if check_value(self._terms.context, key) != self._kept[dealer].checks[place]:
            raise SealingError(f"PC {dealer.hex()[:16]} dealt shares of another key than it used")
        return key

    def _fitting(self, release: Release) -> list[Share]:
        """The shares that are what their dealers signed (M26)."""
        fitting = []
        number = self._terms.committee.index(release.member)
        for share in release.shares:
            kept = self._kept.get(share.dealer)
            if kept is None:
                continue
            value = commitment(self._terms.context, share.dealer, release.member, share.share)
            count = 1 + len(self._terms.neighbours(share.dealer))
            try:
                tree.check(kept.leaves[number][32:], value, share.place, count, share.proof)
            except SealingError:
                continue
            fitting.append(share)
        return fitting

    def _check(self, dealer: bytes, other: bytes) -> bytes:
        place = self._terms.neighbours(dealer).index(other)
        return self._kept[dealer].checks[1 + place]
