"""Bytes on the wire: one canonical form for each value, and a reader that accepts no other.

A frame is label (1 byte), version (1 byte), fields. Numbers are big-endian and of fixed width,
byte strings have a 4-byte length before them unless the field's length is fixed. There is nothing
optional, so that equal meaning is equal bytes and a hash or a signature covers the meaning.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeVar

from fedaipc.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

VERSION = 4
_T = TypeVar("_T")
LONGEST = 1 << 31  # bytes of one string


class Writer:
    """Collects the fields of a frame, or of what is hashed or signed."""

    def __init__(self, label: int | None = None) -> None:
        self._parts: list[bytes | memoryview] = []
        if label is not None:
            self.number(label, 1).number(VERSION, 1)

    def number(self, value: int, width: int = 8) -> Writer:
        """A whole number from 0 on in `width` bytes. Raises EncodingError where it does not fit."""
        try:
            self._parts.append(value.to_bytes(width, "big"))
        except OverflowError:
            raise EncodingError(f"{value} does not fit into {width} bytes") from None
        return self

    def real(self, value: float) -> Writer:
        """A float of 8 bytes (IEEE 754 binary64)."""
        self._parts.append(struct.pack(">d", value))
        return self

    def fixed(self, value: bytes | memoryview, width: int) -> Writer:
        """A byte string whose length both sides know."""
        if len(value) != width:
            raise EncodingError(f"{len(value)} bytes where {width} belong")
        self._parts.append(value)
        return self

    def string(self, value: bytes | memoryview) -> Writer:
        """A byte string with its length."""
        return self.number(len(value), 4).fixed(value, len(value))

    def text(self, value: str) -> Writer:
        """A text, as UTF-8."""
        return self.string(value.encode())

    def items(self, values: Iterable[bytes], width: int) -> Writer:
        """A list of byte strings of one length, with their number before them."""
        listed = list(values)
        self.number(len(listed), 4)
        for value in listed:
            self.fixed(value, width)
        return self

    def done(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Takes a frame apart. Every method raises EncodingError where the bytes are not as written."""

    def __init__(self, content: bytes | memoryview, label: int | None = None) -> None:
        self._content = memoryview(content)
        self._place = 0
        if label is not None:
            found, version = self.number(1), self.number(1)
            if found != label:
                raise EncodingError(f"frame {found} where frame {label} belongs")
            if version != VERSION:
                raise EncodingError(f"frame version {version}; this side speaks {VERSION}")

    def number(self, width: int = 8) -> int:
        return int.from_bytes(self._take(width), "big")

    def real(self) -> float:
        (value,) = struct.unpack(">d", self._take(8))
        return float(value)

    def fixed(self, width: int) -> bytes:
        return bytes(self._take(width))

    def string(self, longest: int = LONGEST) -> bytes:
        return bytes(self.view(longest))

    def view(self, longest: int = LONGEST) -> memoryview:
        """As `string`, without a copy."""
        length = self.number(4)
        if length > longest:
            raise EncodingError(f"a field of {length} bytes; at most {longest} are allowed")
        return self._take(length)

    def text(self, longest: int = 4096) -> str:
        try:
            return self.string(longest).decode()
        except UnicodeDecodeError:
            raise EncodingError("a text is not UTF-8") from None

    def items(self, width: int, most: int) -> list[bytes]:
        count = self.count(most)
        return [self.fixed(width) for _ in range(count)]

    def count(self, most: int) -> int:
        """How many entries follow, at most `most`."""
        count = self.number(4)
        if count > most:
            raise EncodingError(f"a list of {count} entries; at most {most} are allowed")
        return count

    def done(self) -> None:
        """Nothing may follow."""
        if self._place != len(self._content):
            raise EncodingError("more bytes than the frame has fields")

    def _take(self, count: int) -> memoryview:
        end = self._place + count
        if end > len(self._content):
            raise EncodingError("the frame ends too early")
        part = self._content[self._place : end]
        self._place = end
        return part


def parsed(content: bytes | memoryview, label: int, read: Callable[[Reader], _T]) -> _T:
    """What `read` makes of a whole frame. Raises EncodingError."""
    reader = Reader(content, label)
    value = read(reader)
    reader.done()
    return value
