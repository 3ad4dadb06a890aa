"""Hash trees: one hash for a list, and a short proof that an entry stands in it.

As in RFC 6962, section 2.1: leaves and nodes are hashed with different first bytes, so that none
can stand for the other.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fedaipc.errors import SealingError

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_BYTES = 32


def root(entries: Sequence[bytes]) -> bytes:
    """The 32-byte hash of all entries in their order."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return _leaf(entries[0])
    middle = _middle(len(entries))
    return _node(root(entries[:middle]), root(entries[middle:]))


def path(entries: Sequence[bytes], number: int) -> list[bytes]:
    """What proves entry `number`: hashes from the bottom up, at most log2 of their count."""
    if not 0 <= number < len(entries):
        raise IndexError(number)
    if len(entries) == 1:
        return []
    middle = _middle(len(entries))
    if number < middle:
        return [*path(entries[:middle], number), root(entries[middle:])]
    return [*path(entries[middle:], number - middle), root(entries[:middle])]


def check(expected: bytes, entry: bytes, number: int, count: int, proof: Sequence[bytes]) -> None:
    """Raise SealingError unless `entry` is number `number` of the `count` behind `expected`."""
    if not 0 <= number < count:
        raise SealingError("an entry outside its list is claimed")
    sides = []  # from the top down: whether the entry is on the right
    while count > 1:
        middle = _middle(count)
        right = number >= middle
        sides.append(right)
        number, count = (number - middle, count - middle) if right else (number, middle)
    if len(proof) != len(sides):
        raise SealingError("a proof has the wrong length")
    found = _leaf(entry)
    for right, other in zip(reversed(sides), proof, strict=True):
        found = _node(other, found) if right else _node(found, other)
    if found != expected:
        raise SealingError("an entry is not the one that was signed")


def _middle(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _leaf(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
