"""What a member of a group does: sign one set of uploads, and release shares for it alone.

SPEC.md, sections 5.3 and 5.4. Both functions are pure: `recorded` is the set that this member has
on its disk for this run and round, and the set in what they return must be on the disk before the
answer leaves (M21, M23).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from fedaipc.errors import SecAggError
from fedaipc.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, verify
from fedaipc.secagg.roster import MAX_IN_A_GROUP
from fedaipc.secagg.round_keys import BLOB_BYTES, open_shares
from fedaipc.secagg.shares import SHARE_BYTES
from fedaipc.secagg.uploads import HEADER_BYTES, Header
from fedaipc.secagg.wire import Reader, Writer, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedaipc.secagg.round_keys import Group, Keys
    from fedaipc.secagg.uploads import LedgerHead

PROPOSAL, AGREEMENT, COMPLAINT, UNMASK, RELEASE = 6, 7, 8, 9, 10
NO_SHARE = b"\xff" * SHARE_BYTES  # above the prime, so that it cannot be a share
_HASH_BYTES = 32
_AGREE_LABEL, _COMPLAINT_LABEL = b"fedaipc agree", b"fedaipc complaint"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The set of uploads that the coordinator wants to sum: each header with its signature."""

    uploads: tuple[tuple[Header, bytes], ...]

    def encode(self) -> bytes:
        writer = Writer(PROPOSAL)
        return writer.items(self._signed(), HEADER_BYTES + SIGNATURE_BYTES).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Proposal:
        """Raises EncodingError or SecAggError."""
        return _proposal(bytes(content))

    @property
    def uploaders(self) -> tuple[bytes, ...]:
        """Whose uploads are in the set."""
        return tuple(header.uploader for header, _ in self.uploads)

    def hash(self, group: Group) -> bytes:
        """The hash of the set."""
        digests = [hashlib.sha256(signed).digest() for signed in self._signed()]
        writer = Writer().string(b"fedaipc set").fixed(group.context, KEY_BYTES)
        return hashlib.sha256(writer.items(digests, _HASH_BYTES).done()).digest()

    def _signed(self) -> list[bytes]:
        return [header.encode() + signature for header, signature in self.uploads]


@dataclass(frozen=True, slots=True)
class Agreement:
    """A member's promise to release shares for the set with this hash, and for no other."""

    member: bytes
    set_hash: bytes
    signature: bytes

    def encode(self) -> bytes:
        writer = Writer(AGREEMENT).fixed(self.member, KEY_BYTES)
        return writer.fixed(self.set_hash, _HASH_BYTES).fixed(self.signature, 64).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Agreement:
        """Raises EncodingError."""
        return parsed(
            content,
            AGREEMENT,
            lambda reader: cls(reader.fixed(KEY_BYTES), reader.fixed(32), reader.fixed(64)),
        )

    def check(self, group: Group) -> None:
        """Raise SecAggError unless a PC of the group signed it for this round."""
        if self.member not in group.members:
            raise SecAggError("an agreement by a PC that takes no part")
        verify(self.member, self.signature, _agreed(group, self.set_hash), "an agreement")


@dataclass(frozen=True, slots=True)
class Complaint:
    """A member's claim that an uploader's ledger went back, instead of agreement (M31)."""

    member: bytes
    uploader: bytes
    signature: bytes

    def encode(self) -> bytes:
        writer = Writer(COMPLAINT).fixed(self.member, KEY_BYTES).fixed(self.uploader, KEY_BYTES)
        return writer.fixed(self.signature, 64).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Complaint:
        """Raises EncodingError."""
        return parsed(
            content,
            COMPLAINT,
            lambda reader: cls(reader.fixed(KEY_BYTES), reader.fixed(KEY_BYTES), reader.fixed(64)),
        )

    def check(self, group: Group) -> None:
        """Raise SecAggError unless a PC of the group signed it for this round."""
        if not {self.member, self.uploader}.issubset(group.members):
            raise SecAggError("a complaint by or about a PC that takes no part")
        verify(self.member, self.signature, _complained(group, self.uploader), "a complaint")


def read_answer(content: bytes) -> Agreement | Complaint:
    """What a member says to a proposal. Raises EncodingError."""
    kind = Complaint if content[:1] == bytes([COMPLAINT]) else Agreement
    return kind.decode(content)


@dataclass(frozen=True, slots=True, repr=False)
class Unmask:
    """The agreed set again, with the agreements of enough members; and for one member the blobs
    of all PCs that take part, ascending.
    """

    proposal: Proposal
    agreements: tuple[Agreement, ...]
    blobs: tuple[bytes, ...]

    def encode(self) -> bytes:
        writer = Writer(UNMASK).string(self.proposal.encode())
        writer.items([a.encode() for a in self.agreements], 130)
        return writer.items(self.blobs, BLOB_BYTES).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Unmask:
        """Raises EncodingError or SecAggError."""

        def read(reader: Reader) -> Unmask:
            proposal = Proposal.decode(reader.view())
            found = [Agreement.decode(a) for a in reader.items(130, MAX_IN_A_GROUP)]
            return cls(proposal, tuple(found), tuple(reader.items(BLOB_BYTES, MAX_IN_A_GROUP)))

        return parsed(content, UNMASK, read)


@dataclass(frozen=True, slots=True, repr=False)
class Release:
    """One share of each PC that takes part, ascending: of its own mask where its upload is in the
    set, otherwise of its round key.

    `NO_SHARE` stands where the member could not decrypt what it got.
    """

    member: bytes
    shares: tuple[bytes, ...]

    def encode(self) -> bytes:
        writer = Writer(RELEASE).fixed(self.member, KEY_BYTES)
        return writer.items(self.shares, SHARE_BYTES).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Release:
        """Raises EncodingError."""
        return parsed(
            content,
            RELEASE,
            lambda r: cls(r.fixed(KEY_BYTES), tuple(r.items(SHARE_BYTES, MAX_IN_A_GROUP))),
        )


def agree(
    group: Group,
    keys: Keys,
    proposal: Proposal,
    recorded: bytes | None,
    heads: Mapping[bytes, LedgerHead],
) -> Agreement | Complaint:
    """A member's answer to a set; of an Agreement, `set_hash` must be durable before it leaves.

    `heads` are the last ones of uploaders' ledgers that this member saw; it complains of a
    ledger that has not grown since (M31). Raises SecAggError where the set does not belong to this
    round (M18), or another one is `recorded`.
    """
    digest = _checked(group, proposal, recorded)
    own = keys.identity.public
    for header, _ in proposal.uploads:
        seen = heads.get(header.uploader)
        # Where this set is recorded its heads may be those that were seen.
        again = recorded is not None and header.head == seen
        if seen is not None and not again and header.head.count <= seen.count:
            signature = keys.identity.sign(_complained(group, header.uploader))
            return Complaint(own, header.uploader, signature)
    return Agreement(own, digest, keys.identity.sign(_agreed(group, digest)))


def release(
    group: Group, keys: Keys, request: Unmask, recorded: bytes | None
) -> tuple[bytes, Release]:
    """The set's hash, which must be durable before the release leaves, and the release.

    Of a PC in the set the share of its own mask, of one outside that of its round key, and never
    both (M24). Raises SecAggError: not enough agreements (M22), another set is `recorded` (M23,
    M25).
    """
    digest = _checked(group, request.proposal, recorded)
    signers = set()
    for agreement in request.agreements:
        if agreement.set_hash != digest:
            raise SecAggError("an agreement is on another set")
        agreement.check(group)
        signers.add(agreement.member)
    enough = group.terms.thresholds.shares
    if len(signers) < enough:
        raise SecAggError(f"{len(signers)} members agreed; it takes {enough} to unmask the sum")
    if len(request.blobs) != len(group.members):
        raise SecAggError("the request has not one blob for each PC that takes part")
    inside, found = set(request.proposal.uploaders), []
    for sharer, blob in zip(group.members, request.blobs, strict=True):
        try:
            round_key, own_mask = open_shares(group, keys, sharer, blob)
        except SecAggError:
            found.append(NO_SHARE)
        else:
            found.append(own_mask if sharer in inside else round_key)
    return digest, Release(keys.identity.public, tuple(found))


def _checked(group: Group, proposal: Proposal, recorded: bytes | None) -> bytes:
    """The hash of the set, if it is one of this round and no other was recorded (M18, M21)."""
    digest = _set(group, proposal)
    if recorded is not None and recorded != digest:
        raise SecAggError("another set was agreed on in this round; only that one is ever unmasked")
    return digest


@lru_cache(maxsize=8)  # a group's PCs get the same; a call that raises is not kept
def _proposal(content: bytes) -> Proposal:
    def read(reader: Reader) -> Proposal:
        found = reader.items(HEADER_BYTES + SIGNATURE_BYTES, MAX_IN_A_GROUP)
        return Proposal(
            tuple((Header.decode(one[:HEADER_BYTES]), one[HEADER_BYTES:]) for one in found)
        )

    return parsed(content, PROPOSAL, read)


@lru_cache(maxsize=8)
def _set(group: Group, proposal: Proposal) -> bytes:
    """The hash of the set, if it is one of this round (M18)."""
    if any(a >= b for a, b in pairwise(proposal.uploaders)):
        raise SecAggError("a set is out of order or holds a PC twice")
    least = group.terms.thresholds.least
    if len(proposal.uploads) < least:
        raise SecAggError(f"a set of {len(proposal.uploads)} PCs; at least {least} hide")
    for header, signature in proposal.uploads:
        if header.context != group.context:
            raise SecAggError("a set holds an upload for another round")
        group.card(header.uploader)
        verify(header.uploader, signature, header.signed_part(), "an upload of the set")
    return proposal.hash(group)


def _agreed(group: Group, digest: bytes) -> bytes:
    return Writer().string(_AGREE_LABEL).fixed(group.context, 32).fixed(digest, 32).done()


def _complained(group: Group, uploader: bytes) -> bytes:
    writer = Writer().string(_COMPLAINT_LABEL).fixed(group.context, 32)
    return writer.fixed(uploader, 32).done()
