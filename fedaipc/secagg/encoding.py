"""Updates as elements of a ring, so that a sum of sealed vectors is the sealed sum.

A PC's update, times its public weight, is limited to a public bound, scaled, rounded and reduced
modulo 2^bits. The scale leaves room for the sum over the whole cohort: what a coordinator
decodes can never have wrapped around, whatever PCs that follow the rules send.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedaipc.errors import SecAggError
from fedaipc.secagg.masks import in_parts

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[Any]
    Floats = npt.NDArray[np.float32]

BITS = (16, 24, 32)
_MIN_STEPS = 8  # of the integer grid on either side of 0, for one PC
_CHUNK = 1 << 16  # values; smaller ones keep threads waiting for each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Public: `bits` of the ring, `count` of PCs in the cohort, `bound` on |weight * update|.

    Raises SecAggError where no useful integers are left for one PC.
    """

    bits: int
    count: int
    bound: float

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise SecAggError(f"a ring of {self.bits} bits is unknown; there are 16, 24 and 32")
        if not 0 < self.bound < 1e30:
            raise SecAggError("the bound on an update must be positive and finite")
        if self.count < 1 or self.most < _MIN_STEPS:
            raise SecAggError(
                f"{self.count} PCs leave no room in a ring of {self.bits} bits; ask fewer PCs a "
                "round, or take a larger ring"
            )

    @property
    def most(self) -> int:
        """The largest integer of one PC: `count` of them stay below 2^(bits - 1)."""
        return ((1 << (self.bits - 1)) - 1) // self.count

    @property
    def scale(self) -> float:
        """Integers for one unit; rounding up by less than 1 still stays within `most`."""
        return (self.most - 1) / self.bound

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian words: 2 bytes for 16 bits, otherwise 4."""
        return np.dtype("<u2" if self.bits == 16 else "<u4")

    @property
    def width(self) -> int:
        """Bytes of one value on the wire."""
        return self.bits // 8

    def encode(self, update: Floats, weight: int, dither: bytes) -> Words:
        """Ring elements of `weight` times `update`, both of shape (size,).

        Rounds up or down at random so that the mean is exact; `dither` is a fresh key of 32 bytes
        for it. A value beyond the bound is moved to it. Raises SecAggError where a value is not
        finite.
        """
        words = np.empty(len(update), dtype=self.dtype)
        in_parts(len(update), _CHUNK, lambda start, end: self._encode(
            update[start:end], words[start:end], weight, dither, start
        ))  # fmt: skip
        return words

    def _encode(self, update: Floats, words: Words, weight: int, dither: bytes, start: int) -> None:
        """Values from number `start` on, a multiple of the chunk."""
        counter = (start * 4 // 16).to_bytes(16, "big")
        randomness = Cipher(algorithms.AES256(dither), modes.CTR(counter)).encryptor()
        factor, offset = self.scale * weight, self.most + 1
        limit = np.float32(self.bound / weight)
        if float(limit) * weight > self.bound:  # the largest of 32 bits within the bound
            limit = np.nextafter(limit, np.float32(0))
        zeros, stream = bytes(4 * _CHUNK), bytearray(4 * _CHUNK + 16)
        draws = np.frombuffer(stream, "<u4")
        inside, values = np.empty(_CHUNK, np.float32), np.empty(_CHUNK)
        noise, whole = np.empty(_CHUNK), np.empty(_CHUNK, np.uint32)
        for first in range(0, len(update), _CHUNK):
            count = min(_CHUNK, len(update) - first)
            given, part = update[first : first + count], inside[:count]
            value, draw = values[:count], noise[:count]
            # A sum shows at once what is not finite; one that only overflowed is looked at again.
            if not math.isfinite(given.sum()) and not np.isfinite(given).all():
                raise SecAggError("an update that is not finite cannot be sealed")
            np.minimum(given, limit, out=part)
            np.maximum(part, -limit, out=part)
            randomness.update_into(zeros[: 4 * count], stream)
            np.multiply(draws[:count], 2.0**-32, out=draw)  # in [0, 1)
            draw += offset
            value[:] = part  # and not times the factor at once, which 32 bits would round
            value *= factor
            value += draw  # at least 1: then to cut off is to round down, at random
            whole[:count] = value
            words[first : first + count] = whole[:count] - np.uint32(offset)  # modulo the ring

    def decode(self, total: Words) -> npt.NDArray[np.float64]:
        """The weighted sum, shape (size,), of what was encoded by up to `count` PCs."""
        signed = total.view("<i2" if self.bits == 16 else "<i4")
        unused = 8 * total.dtype.itemsize - self.bits
        if unused:  # the sign's bit to the top and back again
            signed = (signed << unused) >> unused
        return signed.astype(np.float64) / self.scale

    def pack(self, words: Words) -> bytes | memoryview:
        """`words` as `width` bytes each, little-endian; a view of them where they lie like that."""
        if self.width == words.dtype.itemsize:
            return words.view(np.uint8).data
        return words.view(np.uint8).reshape(-1, 4)[:, : self.width].tobytes()

    def unpack(self, content: bytes | memoryview, size: int) -> Words:
        """What `pack` made of `size` words. Raises SecAggError where the length is another."""
        if len(content) != size * self.width:
            raise SecAggError(f"{len(content)} bytes where a vector has {size * self.width}")
        if self.width == self.dtype.itemsize:
            return np.frombuffer(content, self.dtype)
        words = np.zeros((size, 4), dtype=np.uint8)
        words[:, : self.width] = np.frombuffer(content, np.uint8).reshape(size, self.width)
        return words.reshape(-1).view(self.dtype)
