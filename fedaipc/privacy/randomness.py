"""Randomness that nobody but this PC can predict.

Noise and sampling must come from a cryptographic generator: torch's CPU generator keeps 32 bits of
its seed, so that noise drawn from it could be enumerated and subtracted. Here AES-256 in counter
mode (NIST SP 800-38A) expands a key from the operating system.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    import numpy.typing as npt

_CHUNK = 1 << 15  # values at a time: the working set stays in the second-level cache


class SecureRandom:
    """A stream of AES-256-CTR output. Never shared between purposes, never saved."""

    def __init__(self, key: bytes | None = None) -> None:
        """`key`: 32 bytes, only for tests; the default asks the operating system."""
        cipher = Cipher(algorithms.AES256(key or secrets.token_bytes(32)), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    @classmethod
    def for_test(cls, seed: int, *labels: object) -> SecureRandom:
        """A repeatable stream: whoever knows the seed can remove the noise. NOT PRIVATE."""
        text = "\x1f".join(["fedaipc insecure test seed", str(seed), *map(str, labels)])
        return cls(hashlib.sha256(text.encode()).digest())

    def __repr__(self) -> str:
        return "SecureRandom()"

    def uint64(self, count: int) -> npt.NDArray[np.uint64]:
        """`count` uniform words of 64 bits, read as little-endian on every machine."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8").astype(
            np.uint64, copy=False
        )

    def key(self) -> bytes:
        """32 bytes, for a stream of another purpose."""
        return self._stream.update(bytes(32))

    def poisson_sample(self, count: int, rate: float) -> npt.NDArray[np.int64]:
        """Indices below `count`, each present independently with probability `rate`.

        Exact to 2^-64, and never above `rate`: a rate is a float, hence a multiple of 2^-64 but
        for tiny ones, which are rounded down.
        """
        if not 0 < rate <= 1:
            raise ValueError("rate must lie in (0, 1]")
        words = self.uint64(count)
        threshold = int(rate * 2.0**64)
        present = words <= np.uint64(threshold - 1) if threshold else np.zeros(count, dtype=bool)
        return np.flatnonzero(present)

    def normal(self, count: int, deviation: float) -> npt.NDArray[np.float64]:
        """`count` Gaussian values of mean 0 and standard deviation `deviation`, shape (count,).

        Each is half the sum of four independent Box-Muller values, which hides the gaps between
        floating-point outputs that Mironov (CCS 2012) exploits: to undo it one has to search over
        four draws (Holohan and Braghin, "Secure random sampling in differential privacy",
        ESORICS 2021, section 4). The two values of one Box-Muller pair go to different outputs:
        within one output they would fold into a single draw.
        """
        result = np.empty(count)
        for start in range(0, count, _CHUNK):
            part = result[start : start + _CHUNK]
            part[:] = self._gaussians(len(part))
            for _ in range(3):
                part += self._gaussians(len(part))
        result *= deviation / 2.0
        return result

    def _gaussians(self, count: int) -> npt.NDArray[np.float64]:
        pairs = (count + 1) // 2
        uniform = self._open_uniform(2 * pairs)
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = (2.0 * np.pi) * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def _open_uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Uniform on the middle points of 2^52 equal intervals of (0, 1): exact, never 0 or 1."""
        words = (self.uint64(count) >> np.uint64(12)).astype(np.float64)
        words += 0.5  # with 53 bits this would round, the last one to 1
        words *= 2.0**-52
        return words
