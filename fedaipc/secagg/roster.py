"""Who belongs to a federation, who is asked in a round, and with which keys (SPEC.md, sections 3
and 4).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from fedaipc.errors import SecAggError
from fedaipc.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, ExchangeKey, SigningKey, verify
from fedaipc.secagg.wire import Reader, Writer, parsed

if TYPE_CHECKING:
    from collections.abc import Sequence

ROSTER, BUNDLE = 1, 2
ROSTER_FILE = "roster.bin"  # the admission key's public half, then the list that it signed
MAX_MEMBERS = 100_000
MAX_IN_A_GROUP = 100
KEY_SECONDS = 24 * 3600  # of an epoch
_ROSTER_LABEL, _BUNDLE_LABEL = b"fedaipc roster", b"fedaipc bundle"


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The admitted identities in ascending order, as the admission key signed them.

    What follows from it is computed once: every PC of a simulation asks for it in every round.
    """

    federation: str
    version: int
    beacon: bytes
    members: tuple[bytes, ...]
    signature: bytes

    @classmethod
    def sign(
        cls,
        key: SigningKey,
        *,
        federation: str,
        version: int,
        beacon: bytes,
        members: Sequence[bytes],
    ) -> Roster:
        """The list, signed by the admission key. `beacon` must be drawn after the members are
        final.
        """
        draft = cls(
            federation=federation,
            version=version,
            beacon=beacon,
            members=tuple(sorted(members)),
            signature=bytes(SIGNATURE_BYTES),
        )
        return replace(draft, signature=key.sign(draft.signed_part()))

    def encode(self) -> bytes:
        return self._fields(Writer(ROSTER)).fixed(self.signature, SIGNATURE_BYTES).done()

    @classmethod
    def decode(cls, content: bytes | memoryview, admission: bytes) -> Roster:
        """Raises EncodingError, or SecAggError where `admission` did not sign it (M5, M7)."""
        return _decoded(bytes(content), admission)

    @cached_property
    def hash(self) -> bytes:
        return hashlib.sha256(self.signed_part()).digest()

    def __hash__(self) -> int:  # the signature covers all of it
        return hash(self.signature)

    def __contains__(self, identity: bytes) -> bool:
        return identity in self._set

    @cached_property
    def _set(self) -> frozenset[bytes]:
        return frozenset(self.members)

    def groups(self, number: int, cohort: int) -> tuple[tuple[bytes, ...], ...]:
        """The `cohort` members that round `number` may ask, in groups of up to 100, each ascending.

        A public draw: it follows from the beacon, so that the coordinator chooses neither who is
        asked nor who is with whom.
        """
        return _groups(self, number, cohort)

    def _fields(self, writer: Writer) -> Writer:
        return (
            writer.text(self.federation)
            .number(self.version)
            .fixed(self.beacon, KEY_BYTES)
            .items(self.members, KEY_BYTES)
        )

    def signed_part(self) -> bytes:
        """What the signature covers: a label and every field."""
        return self._fields(Writer().string(_ROSTER_LABEL)).done()


@lru_cache(maxsize=4)  # a call that raises is not kept
def _decoded(content: bytes, admission: bytes) -> Roster:
    def read(reader: Reader) -> Roster:
        return Roster(
            federation=reader.text(100),
            version=reader.number(),
            beacon=reader.fixed(KEY_BYTES),
            members=tuple(reader.items(KEY_BYTES, MAX_MEMBERS)),
            signature=reader.fixed(SIGNATURE_BYTES),
        )

    roster = parsed(content, ROSTER, read)
    verify(admission, roster.signature, roster.signed_part(), "the list of members")
    if any(a >= b for a, b in pairwise(roster.members)):
        raise SecAggError("the list of members is out of order or names a PC twice")
    return roster


@lru_cache(maxsize=64)
def _groups(roster: Roster, number: int, cohort: int) -> tuple[tuple[bytes, ...], ...]:
    start = hashlib.sha256(
        Writer().string(b"fedaipc cohort").fixed(roster.beacon, KEY_BYTES).number(number).done()
    )

    def rank(member: bytes) -> bytes:
        digest = start.copy()
        digest.update(member)
        return digest.digest()

    asked = sorted(roster.members, key=rank)[:cohort]
    count = -(-len(asked) // MAX_IN_A_GROUP)
    return tuple(tuple(sorted(asked[first::count])) for first in range(count))


def read_roster(content: bytes) -> tuple[bytes, Roster]:
    """The admission key's public half, and the list that it signed.

    Raises SecAggError or EncodingError.
    """
    if len(content) < KEY_BYTES:
        raise SecAggError("the list of members is cut off")
    admission = content[:KEY_BYTES]
    return admission, Roster.decode(content[KEY_BYTES:], admission)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A PC's public key of one epoch, and its public size class; made to last `KEY_SECONDS`.

    `not_after` is in seconds since 1970.
    """

    federation: str
    run: str
    epoch: int
    not_after: int
    identity: bytes
    size_class: int
    share_key: bytes
    signature: bytes = bytes(SIGNATURE_BYTES)

    def signed_by(self, key: SigningKey) -> Bundle:
        """The same bundle with the signature of its identity's key."""
        return replace(self, signature=key.sign(self.signed_part()))

    def check(self, roster: Roster, run: str, now: float) -> None:
        """Raise SecAggError unless it may be used in `run` at time `now` (M8)."""
        if self.identity not in roster:
            raise SecAggError("a PC is not on the list of members")
        verify(self.identity, self.signature, self.signed_part(), "the keys of a PC")
        if (self.federation, self.run) != (roster.federation, run):
            raise SecAggError("the keys of a PC are for another federation or run")
        if self.not_after < now:
            raise SecAggError("the keys of a PC have expired; it must make new ones")

    def check_keys(self) -> None:
        """Raise SecAggError where no secret can be shared with it: otherwise only others notice."""
        ExchangeKey().agree(self.share_key)

    def encode(self) -> bytes:
        return self._fields(Writer(BUNDLE)).fixed(self.signature, SIGNATURE_BYTES).done()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Bundle:
        """Raises EncodingError."""
        return parsed(content, BUNDLE, cls._read)

    @classmethod
    def _read(cls, reader: Reader) -> Bundle:
        return cls(
            federation=reader.text(100),
            run=reader.text(100),
            epoch=reader.number(),
            not_after=reader.number(),
            identity=reader.fixed(KEY_BYTES),
            size_class=reader.number(),
            share_key=reader.fixed(KEY_BYTES),
            signature=reader.fixed(SIGNATURE_BYTES),
        )

    def _fields(self, writer: Writer) -> Writer:
        return (
            writer.text(self.federation)
            .text(self.run)
            .number(self.epoch)
            .number(self.not_after)
            .fixed(self.identity, KEY_BYTES)
            .number(self.size_class)
            .fixed(self.share_key, KEY_BYTES)
        )

    def signed_part(self) -> bytes:
        """What the signature covers: a label and every field."""
        return self._signed_part

    @cached_property
    def _signed_part(self) -> bytes:  # each PC of a group looks at it in each round
        return self._fields(Writer().string(_BUNDLE_LABEL)).done()
