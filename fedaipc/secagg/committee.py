"""What a member of a group does: sign one set of uploads, and release shares for it alone.

SPEC.md, sections 5.2 and 5.3. Both functions are pure: `recorded` is the set that this member has
on its disk for this run and round, and the set in what they return must be on the disk before the
answer leaves (M21, M23).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.secagg import tree
from fedaipc.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, verify
from fedaipc.secagg.roster import MAX_IN_A_GROUP
from fedaipc.secagg.shares import SHARE_BYTES
from fedaipc.secagg.terms import commitments, set_hash
from fedaipc.secagg.uploads import (
    CHECK_BYTES,
    HEADER_BYTES,
    LEAF_BYTES,
    Header,
    Keys,
    LedgerHead,
    blob_bytes,
    open_shares,
    shares_in,
)
from fedaipc.secagg.wire import Reader, Writer, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedaipc.secagg.terms import Terms

PROPOSAL, AGREEMENT, COMPLAINT, UNMASK, RELEASE = 6, 7, 8, 9, 10
_MAX_PATH, _HASH_BYTES = 7, 32  # hashes in a proof among 100
_AGREE_LABEL, _COMPLAINT_LABEL = b"fedaipc agree", b"fedaipc complaint"


@dataclass(frozen=True, slots=True, repr=False)
class ProposedUpload:
    """What a member gets of one upload: the signed header, its own leaf with a proof, its blob."""

    header: Header
    signature: bytes
    leaf: bytes
    proof: tuple[bytes, ...]
    blob: bytes

    def write(self, writer: Writer) -> None:
        writer.fixed(self.header.encode(), HEADER_BYTES).fixed(self.signature, SIGNATURE_BYTES)
        writer.fixed(self.leaf, LEAF_BYTES).items(self.proof, _HASH_BYTES).string(self.blob)

    @classmethod
    def read(cls, reader: Reader) -> ProposedUpload:
        return cls(
            header=Header.decode(reader.fixed(HEADER_BYTES)),
            signature=reader.fixed(SIGNATURE_BYTES),
            leaf=reader.fixed(LEAF_BYTES),
            proof=tuple(reader.items(_HASH_BYTES, _MAX_PATH)),
            blob=reader.string(blob_bytes(MAX_IN_A_GROUP)),
        )


@dataclass(frozen=True, slots=True, repr=False)
class Proposal:
    """The set of uploads that the coordinator wants to sum, as one member sees it."""

    uploads: tuple[ProposedUpload, ...]

    def encode(self) -> bytes:
        return self._write(Writer(PROPOSAL)).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Proposal:
        """Raises EncodingError or SecAggError."""
        return parsed(content, PROPOSAL, cls._read)

    def hash(self, terms: Terms) -> bytes:
        """The hash of the set: of the signed headers, which are the same for every member."""
        return set_hash(terms.context, [d.header.encode() + d.signature for d in self.uploads])

    def _write(self, writer: Writer) -> Writer:
        writer.number(len(self.uploads), 4)
        for one in self.uploads:
            one.write(writer)
        return writer

    @classmethod
    def _read(cls, reader: Reader) -> Proposal:
        return cls(tuple(ProposedUpload.read(reader) for _ in range(reader.count(MAX_IN_A_GROUP))))


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

    def check(self, terms: Terms) -> None:
        """Raise SecAggError unless a PC of the group signed it for this round."""
        if self.member not in terms.participants:
            raise SecAggError("an agreement by a PC that takes no part")
        verify(self.member, self.signature, _agreed(terms, self.set_hash), "an agreement")


class Reason(IntEnum):
    """What a member says that an uploader did wrong."""

    SHARES = 1
    LEDGER = 2

    @property
    def text(self) -> str:
        if self is Reason.SHARES:
            return "its encrypted shares cannot be read"
        return "its ledger went back: an older copy was restored, or some of it is missing"


@dataclass(frozen=True, slots=True)
class Complaint:
    """A member's claim that an uploader's blob or ledger head is wrong, instead of agreement."""

    member: bytes
    uploader: bytes
    reason: Reason
    signature: bytes

    def encode(self) -> bytes:
        writer = Writer(COMPLAINT).fixed(self.member, KEY_BYTES).fixed(self.uploader, KEY_BYTES)
        return writer.number(self.reason, 1).fixed(self.signature, 64).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Complaint:
        """Raises EncodingError."""

        def read(reader: Reader) -> Complaint:
            member, uploader = reader.fixed(KEY_BYTES), reader.fixed(KEY_BYTES)
            reason = reader.number(1)
            if reason not in set(Reason):
                raise EncodingError("a complaint of something unknown")
            return cls(member, uploader, Reason(reason), reader.fixed(64))

        return parsed(content, COMPLAINT, read)

    def check(self, terms: Terms) -> None:
        """Raise SecAggError unless a PC of the group signed it for this round."""
        if not {self.member, self.uploader}.issubset(terms.participants):
            raise SecAggError("a complaint by or about a PC that takes no part")
        verify(
            self.member,
            self.signature,
            _complained(terms, self.uploader, self.reason),
            "a complaint",
        )


def read_answer(content: bytes) -> Agreement | Complaint:
    """What a member says to a proposal. Raises EncodingError."""
    kind = Complaint if content[:1] == bytes([COMPLAINT]) else Agreement
    return kind.decode(content)


@dataclass(frozen=True, slots=True, repr=False)
class Unmask:
    """The agreed set again, with the agreements of enough members."""

    proposal: Proposal
    agreements: tuple[Agreement, ...]

    def encode(self) -> bytes:
        writer = Writer(UNMASK).string(self.proposal.encode())
        return writer.items([a.encode() for a in self.agreements], 130).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Unmask:
        """Raises EncodingError or SecAggError."""

        def read(reader: Reader) -> Unmask:
            proposal = Proposal.decode(reader.view())
            found = [Agreement.decode(a) for a in reader.items(130, MAX_IN_A_GROUP)]
            return cls(proposal, tuple(found))

        return parsed(content, UNMASK, read)


@dataclass(frozen=True, slots=True, repr=False)
class Released:
    """A member's shares of one uploader's keys.

    `own` is of its own key, `pairs` of those with PCs outside the set, ascending; `commitments` are
    of all its pair keys, and left out where there are no `pairs`.
    """

    uploader: bytes
    own: bytes
    commitments: tuple[bytes, ...]
    pairs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Release:
    """All shares that a member releases for the agreed set."""

    member: bytes
    released: tuple[Released, ...]

    def encode(self) -> bytes:
        writer = Writer(RELEASE).fixed(self.member, KEY_BYTES).number(len(self.released), 4)
        for one in self.released:
            writer.fixed(one.uploader, KEY_BYTES).fixed(one.own, SHARE_BYTES)
            writer.items(one.commitments, CHECK_BYTES).items(one.pairs, SHARE_BYTES)
        return writer.done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Release:
        """Raises EncodingError."""

        def read(reader: Reader) -> Release:
            member, released = reader.fixed(KEY_BYTES), []
            for _ in range(reader.count(MAX_IN_A_GROUP)):
                uploader, own = reader.fixed(KEY_BYTES), reader.fixed(SHARE_BYTES)
                values = tuple(reader.items(CHECK_BYTES, MAX_IN_A_GROUP))
                pairs = tuple(reader.items(SHARE_BYTES, MAX_IN_A_GROUP))
                released.append(Released(uploader, own, values, pairs))
            return cls(member, tuple(released))

        return parsed(content, RELEASE, read)


def agree(
    terms: Terms,
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
    digest = _checked(terms, proposal, recorded)
    own = keys.identity.public
    keys.opened.clear()
    for one in proposal.uploads:
        uploader, reason = one.header.uploader, Reason.LEDGER
        seen, head = heads.get(uploader), one.header.head
        # Where this set is recorded its heads may be those that were seen.
        again = recorded is not None and head == seen
        fine = seen is None or again or head.count > seen.count
        if fine:
            try:
                keys.opened[_name(terms, one)] = b"".join(_opened(terms, keys, one))
            except SecAggError:
                fine, reason = False, Reason.SHARES
        if not fine:
            signature = keys.identity.sign(_complained(terms, uploader, reason))
            return Complaint(own, uploader, reason, signature)
    return Agreement(own, digest, keys.identity.sign(_agreed(terms, digest)))


def release(
    terms: Terms, keys: Keys, request: Unmask, recorded: bytes | None
) -> tuple[bytes, Release]:
    """The set's hash, which must be durable before the release leaves, and the release.

    For a PC in the set its own key's share, for a pair of one in it and one outside the pair's
    (M24). Raises SecAggError: not enough agreements (M22), another set is `recorded` (M23, M25).
    """
    digest = _checked(terms, request.proposal, recorded)
    signers = set()
    for agreement in request.agreements:
        if agreement.set_hash != digest:
            raise SecAggError("an agreement is on another set")
        agreement.check(terms)
        signers.add(agreement.member)
    if len(signers) < terms.thresholds.shares:
        raise SecAggError(
            f"{len(signers)} members agreed; it takes {terms.thresholds.shares} to unmask the sum"
        )
    inside = {one.header.uploader for one in request.proposal.uploads}
    own, found = keys.identity.public, []
    for one in request.proposal.uploads:
        uploader = one.header.uploader
        try:
            kept = keys.opened.pop(_name(terms, one), b"")
            shares = shares_in(kept) if kept else _opened(terms, keys, one)
        except SecAggError:
            continue  # its complaint was ignored, or the blob was changed: nothing to release
        others = enumerate(terms.neighbours(uploader), 1)
        pairs = tuple(shares[place] for place, other in others if other not in inside)
        values = commitments(terms.context, uploader, own, shares[1:]) if pairs else ()
        found.append(Released(uploader, shares[0], tuple(values), pairs))
    return digest, Release(own, tuple(found))


def _checked(terms: Terms, proposal: Proposal, recorded: bytes | None) -> bytes:
    """The hash of the set, if it is one of this round and no other was recorded (M18, M21)."""
    uploaders = [one.header.uploader for one in proposal.uploads]
    if any(a >= b for a, b in pairwise(uploaders)):
        raise SecAggError("a set is out of order or holds a PC twice")
    if len(uploaders) < terms.thresholds.least:
        raise SecAggError(f"a set of {len(uploaders)} PCs; at least {terms.thresholds.least} hide")
    for one in proposal.uploads:
        if one.header.context != terms.context:
            raise SecAggError("a set holds an upload for another round")
        terms.place(one.header.uploader)
        verify(one.header.uploader, one.signature, one.header.signed_part(), "an upload of the set")
    digest = proposal.hash(terms)
    if recorded is not None and recorded != digest:
        raise SecAggError("another set was agreed on in this round; only that one is ever unmasked")
    return digest


def _opened(terms: Terms, keys: Keys, one: ProposedUpload) -> list[bytes]:
    place, count = terms.place(keys.identity.public), len(terms.participants)
    tree.check(one.header.leaves_root, one.leaf, place, count, one.proof)
    return open_shares(terms, keys, one.header, one.leaf, one.blob)


def _name(terms: Terms, one: ProposedUpload) -> bytes:
    """The name of a checked blob in `Keys.opened`: no other blob can have this name."""
    parts = (
        terms.context,
        one.header.encode(),
        one.leaf,
        one.blob,
    )  # the first three: fixed lengths
    return hashlib.sha256(b"".join(parts)).digest()


def _agreed(terms: Terms, digest: bytes) -> bytes:
    return Writer().string(_AGREE_LABEL).fixed(terms.context, 32).fixed(digest, 32).done()


def _complained(terms: Terms, uploader: bytes, reason: Reason) -> bytes:
    writer = Writer().string(_COMPLAINT_LABEL).fixed(terms.context, 32).fixed(uploader, 32)
    return writer.number(reason, 1).done()
