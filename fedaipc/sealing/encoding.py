"""Updates as elements of a ring, so that a sum of sealed vectors is the sealed sum.

A PC's update, times its public weight, is limited to a public bound, scaled, rounded and reduced
modulo 2^bits. The scale leaves room for the sum over the whole cohort: what a coordinator decodes
can never have wrapped around, whatever the PCs send that follow the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedaipc.errors import SealingError

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[Any]
    Floats = npt.NDArray[np.float32]

BITS = (16, 24, 32)
_LEAST_STEPS = 8  # of the integer grid on either side of 0, for one PC
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Public: `bits` of the ring, `count` of PCs in the cohort, `bound` on |weight * update|.

    Raises SealingError where no useful integers are left for one PC.
    """

    bits: int
    count: int
    bound: float

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise SealingError(f"a ring of {self.bits} bits is unknown; there are 16, 24 and 32")
        if not 0 < self.bound < 1e30:
            raise SealingError("the bound on an update must be positive and finite")
        if self.count < 1 or self.most < _LEAST_STEPS:
            raise SealingError(
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
        """Little-endian words: 2 bytes for 16 bits, else 4."""
        return np.dtype("<u2" if self.bits == 16 else "<u4")

    @property
    def width(self) -> int:
        """Bytes of one value on the wire."""
        return self.bits // 8

    def encode(self, update: Floats, weight: int, dither: bytes) -> Words:
        """Ring elements of `weight` times `update`, both of shape (size,).

        Rounds up or down at random so that the mean is exact; `dither` is a fresh key of 32 bytes
        for it. A value beyond the bound is moved to it. Raises SealingError where a value is not
        finite.
        """
        words = np.empty(len(update), dtype=self.dtype)
        randomness = Cipher(algorithms.AES256(dither), modes.CTR(bytes(16))).encryptor()
        factor, most, zeros = self.scale * weight, self.most, bytes(4 * _CHUNK)
        for start in range(0, len(update), _CHUNK):
            part = update[start : start + _CHUNK].astype(np.float64)
            if not np.isfinite(part).all():
                raise SealingError("an update that is not finite cannot be sealed")
            part *= factor
            draws = np.frombuffer(randomness.update(zeros[: 4 * len(part)]), dtype="<u4")
            part += draws * 2.0**-32  # in [0, 1): then rounding down is rounding at random
            np.floor(part, out=part)
            np.clip(part, -most, most, out=part)
            words[start : start + _CHUNK] = part.astype(np.int64).astype(self.dtype)
        return words

    def decode(self, total: Words) -> npt.NDArray[np.float64]:
        """The weighted sum, shape (size,), of what was encoded by up to `count` PCs."""
        signed = total.view("<i2" if self.bits == 16 else "<i4")
        unused = 8 * total.dtype.itemsize - self.bits
        if unused:  # the sign's bit to the top and back again
            signed = (signed << unused) >> unused
        return signed.astype(np.float64) / self.scale

    def pack(self, words: Words) -> bytes:
        """`words` as `width` bytes each, little-endian."""
        if self.width == words.dtype.itemsize:
            return words.tobytes()
        return words.view(np.uint8).reshape(-1, 4)[:, : self.width].tobytes()

    def unpack(self, content: bytes | memoryview, size: int) -> Words:
        """What `pack` made of `size` words. Raises SealingError where the length is another."""
        if len(content) != size * self.width:
            raise SealingError(f"{len(content)} bytes where a vector has {size * self.width}")
        if self.width == self.dtype.itemsize:
            return np.frombuffer(content, self.dtype)
        words = np.zeros((size, 4), dtype=np.uint8)
        words[:, : self.width] = np.frombuffer(content, np.uint8).reshape(size, self.width)
        return words.reshape(-1).view(self.dtype)
