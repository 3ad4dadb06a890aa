"""Hash trees: one hash for a list, and a short proof that an entry stands in it.

As in RFC 6962, section 2.1: leaves and nodes are hashed with different first bytes, so that none
can stand for the other. Built from the bottom up; a node without a partner goes up as it is, which
gives the tree that the RFC defines from the top down.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fedaipc.errors import SecAggError

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_BYTES = 32


class Tree:
    """The hash tree of the byte strings `entries`; empty and single lists are allowed."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        level = [_leaf(entry) for entry in entries]
        self._levels = [b"".join(level)]  # many small objects would take three times the memory
        while len(level) > 1:
            above = [_node(*pair) for pair in zip(level[::2], level[1::2], strict=False)]
            if len(level) % 2:
                above.append(level[-1])
            self._levels.append(b"".join(above))
            level = above

    @property
    def root(self) -> bytes:
        """32 bytes that stand for all entries in their order."""
        return self._levels[-1] or hashlib.sha256().digest()

    def path(self, number: int) -> tuple[bytes, ...]:
        """What proves entry `number`: hashes from the bottom up, at most log2 of their count."""
        if not 0 <= number < len(self._levels[0]) // HASH_BYTES:
            raise IndexError(number)
        found = []
        for level in self._levels[:-1]:
            start = (number ^ 1) * HASH_BYTES
            if start < len(level):
                found.append(level[start : start + HASH_BYTES])
            number >>= 1
        return tuple(found)


def root(entries: Sequence[bytes]) -> bytes:
    """The root of the entries' tree."""
    return Tree(entries).root


def check(expected: bytes, entry: bytes, number: int, count: int, proof: Sequence[bytes]) -> None:
    """Raise SecAggError unless `entry` is number `number` of the `count` behind `expected`."""
    if not 0 <= number < count:
        raise SecAggError("an entry outside its list is claimed")
    found, left = _leaf(entry), list(proof)
    while count > 1:
        if number ^ 1 < count:
            if not left:
                raise SecAggError("a proof has the wrong length")
            other = left.pop(0)
            found = _node(other, found) if number % 2 else _node(found, other)
        number, count = number >> 1, (count + 1) >> 1
    if left:
        raise SecAggError("a proof has the wrong length")
    if found != expected:
        raise SecAggError("an entry is not the one that was signed")


def _leaf(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
