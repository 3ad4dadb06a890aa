"""The coordinator's side of a round: sum, propose a set, unmask the sum (SPEC.md, section 5).

All groups of a round add to one vector. Of an upload only header and signature stay in memory
while uploads arrive; its lists are shown again (`recall`) when its group agrees, its vector where
it is left out. The caller keeps both on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.errors import BadUploader, SecAggError
from fedaipc.secagg import tree
from fedaipc.secagg.committee import Proposal, ProposedUpload
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
    """The lists of one upload, joined: many small objects would take three times the memory."""

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
    """One group of a round. Every method raises SecAggError where the round's rules are broken."""

    def __init__(self, terms: Terms, total: npt.NDArray[Any]) -> None:
        """`total`: ring elements of shape (terms.size,), changed in place; shared by all groups."""
        self.terms = terms
        self._total = total
        self._headers: dict[bytes, tuple[Header, bytes]] = {}
        self._lists: dict[bytes, _Lists] = {}
        # By the member's place and the uploader: of its own key, then of pairs with PCs outside.
        self._shares: dict[int, dict[bytes, bytes]] = {}

    @property
    def uploaders(self) -> tuple[bytes, ...]:
        """Whose uploads are in the sum, ascending."""
        return tuple(sorted(self._headers))

    @property
    def ready(self) -> bool:
        """Whether enough members have released their shares."""
        return len(self._shares) >= self.terms.thresholds.shares

    def accept(self, upload: Upload) -> None:
        """Add an upload; of two by one PC the first counts (M17)."""
        upload.check(self.terms)
        uploader = upload.header.uploader
        if uploader in self._headers:
            raise SecAggError("a PC has sent two uploads in one round")
        self._total += self.terms.encoding.unpack(upload.vector, self.terms.size)
        self._headers[uploader] = upload.header, upload.signature

    def leave_out(self, uploader: bytes, vector: bytes | memoryview) -> None:
        """Take an upload out again, with the `vector` that was added."""
        del self._headers[uploader]
        self._lists.pop(uploader, None)
        self._total -= self.terms.encoding.unpack(vector, self.terms.size)

    def recall(self, uploads: Iterable[Upload]) -> None:
        """The lists of what was accepted, for the methods below; needs no vectors."""
        for upload in uploads:
            if self._headers.get(upload.header.uploader) != (upload.header, upload.signature):
                raise SecAggError("an upload is not the one that was added")
            self._lists[upload.header.uploader] = _Lists.of(upload)

    def disagreeing(self) -> list[tuple[bytes, bytes]]:
        """Pairs of uploaders that gave different keys for their pair: one of the two is wrong."""
        return [
            (one, other)
            for one in self.uploaders
            for other in self.uploaders
            if one < other and self._pair_check(one, other) != self._pair_check(other, one)
        ]

    @property
    def set_hash(self) -> bytes:
        """The hash of the set that `proposal` shows."""
        signed = [self._headers[uploader] for uploader in self.uploaders]
        return set_hash(self.terms.context, [header.encode() + sig for header, sig in signed])

    def proposal(self, member: bytes, blobs: Mapping[bytes, bytes]) -> Proposal:
        """The set as `member` needs it; `blobs` are for it, by uploader.

        Raises SecAggError where too few are left (M28).
        """
        least = self.terms.thresholds.least
        if len(self._headers) < least:
            raise SecAggError(f"{len(self._headers)} updates; only sums of {least} are unmasked")
        place = self.terms.place(member)
        return Proposal(
            tuple(
                ProposedUpload(
                    *self._headers[uploader],
                    self._lists[uploader].leaf(place),
                    self._lists[uploader].tree.path(place),
                    blobs[uploader],
                )
                for uploader in self.uploaders
            )
        )

    def take(self, release: Release) -> None:
        """Keep a member's shares. Raises SecAggError unless all that it owes are there and fit
        (M26).
        """
        terms, member = self.terms, self.terms.place(release.member)
        if tuple(one.uploader for one in release.released) != self.uploaders:
            raise SecAggError("a member did not release what the set asks for")
        outside, found = self._outside(), {}
        listed = len(terms.participants) - 1 if outside else 0
        for one in release.released:
            if len(one.pairs) != len(outside) or len(one.commitments) != listed:
                raise SecAggError("a member did not release what the set asks for")
            leaf = self._lists[one.uploader].leaf(member)
            if outside and list_hash(one.commitments) != leaf[48:]:
                raise SecAggError("a member shows other commitments than the uploader signed")
            shares = (one.own, *one.pairs)
            places = (_place(terms, one.uploader, pc) for pc in outside)
            signed = [leaf[32:48], *(one.commitments[place - 1] for place in places)]
            if commitments(terms.context, one.uploader, release.member, shares) != signed:
                raise SecAggError("a member released a share that the uploader did not sign")
            found[one.uploader] = b"".join(shares)
        self._shares[member] = found

    def unmask(self) -> None:
        """Remove all masks of this group from the total; once (M27, M28).

        Raises SecAggError where too few members released, BadUploader where one shared parts of
        another key than it used; then the total stays as it was.
        """
        if not self.ready:
            raise SecAggError(
                f"{len(self._shares)} members released their shares; it takes "
                f"{self.terms.thresholds.shares}"
            )
        plus: list[bytes] = []
        minus: list[bytes] = []
        outside = self._outside()
        for uploader in self.uploaders:
            minus.append(self._key(uploader, 0, 0))
            for number, other in enumerate(outside, 1):
                key = self._key(uploader, number, _place(self.terms, uploader, other))
                (plus if uploader > other else minus).append(key)
        add_masks(self._total, plus, minus)

    def close(self) -> None:
        """Forget all that unmasking needed, except for whose uploads are in the sum."""
        self._lists.clear()
        self._shares.clear()

    def _outside(self) -> list[bytes]:
        """Participants whose uploads are not in the set, ascending."""
        return [pc for pc in self.terms.participants if pc not in self._headers]

    def _key(self, uploader: bytes, number: int, place: int) -> bytes:
        """One uploader's, from shares with this number; by the check value at `place`."""
        # The first members: then all keys have the same ones, whose weights are kept.
        members = sorted(self._shares)[: self.terms.thresholds.shares]
        part = slice(number * SHARE_BYTES, (number + 1) * SHARE_BYTES)
        try:
            key = combine({member: self._shares[member][uploader][part] for member in members})
        except SecAggError:  # it committed to values that are not shares
            raise BadUploader(uploader) from None
        if check_value(self.terms.context, key) != self._lists[uploader].check(place):
            raise BadUploader(uploader)
        return key

    def _pair_check(self, uploader: bytes, other: bytes) -> bytes:
        return self._lists[uploader].check(_place(self.terms, uploader, other))


def _place(terms: Terms, uploader: bytes, other: bytes) -> int:
    """The place of the pair's key among the uploader's keys; its own key has place 0."""
    return terms.place(other) + (other < uploader)
